"""Stage `extract`: runs the models over the texts, and measures what their layers hold.

Block by block where the models are large and nothing asks for them whole; else both whole.
"""

from __future__ import annotations

from backends.estimates.execution import runs_in_layers
from workers.models.device import FATAL
from workers.models.structure import NotBlockwise
from workers.stages.common.context import PairContext
from workers.stages.common.layered_pair import layered_pair
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.layered import extract_layered
from workers.stages.extract.whole_models import extract_whole
from workers.stages.finetune.stage import FineTuned


def extract(context: PairContext, finetuned: FineTuned | None) -> Extracted:
    """Runs the models; `finetuned` is what the fine-tune left beside the checkpoint, None for a pair.

    Raises:
        InputError: a model is broken, the pair does not fit together, or activations are NaN or infinite.
    """
    resolved, reason = context.resolved, None
    size = sum(path.stat().st_size for path in resolved.base.folder.glob("*.safetensors"))
    if runs_in_layers(context.request, size):
        try:
            pair = layered_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length, resolved.units)
            return extract_layered(context, pair)
        except FATAL:
            raise
        except (NotBlockwise, RuntimeError) as error:  # of a model that cannot do without its other blocks
            reason = (str(error) or type(error).__name__).splitlines()[0]
    return extract_whole(context, finetuned, reason)
