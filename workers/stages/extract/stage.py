"""Stage `extract`: runs the models over the texts, and measures what their layers hold.

Block by block where the models are large and nothing asks for them whole; else both whole.
"""

from __future__ import annotations

from workers.models.structure import NotBlockwise
from workers.stages.common.context import PairContext
from workers.stages.common.layered_pair import layered_pair
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.layered import extract_layered
from workers.stages.extract.whole_models import extract_whole
from workers.stages.finetune.stage import FineTuned

LAYERED_BYTES = 256 << 20
"""Files of a model that are larger are read block by block."""


def extract(context: PairContext, finetuned: FineTuned | None) -> Extracted:
    """Runs the models; `finetuned` is what the fine-tune left beside the checkpoint, None for a pair.

    Raises:
        InputError: a model is broken, the pair does not fit together, or activations are NaN or infinite.
    """
    resolved, reason = context.resolved, None
    if _asks_for_layers(context, finetuned):
        try:
            pair = layered_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length, resolved.units)
            return extract_layered(context, pair)
        except NotBlockwise as error:
            reason = str(error)
    return extract_whole(context, finetuned, reason)


def _asks_for_layers(context: PairContext, finetuned: FineTuned | None) -> bool:
    """Whether the pair is large, and nothing needs its models whole: autoencoders, or what a fine-tune left beside."""
    size = sum(path.stat().st_size for path in context.resolved.base.folder.glob("*.safetensors"))
    return size > LAYERED_BYTES and context.request.analysis.sae is None and finetuned is None
