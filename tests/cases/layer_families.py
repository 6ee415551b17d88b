"""Every text family of transformers that can be made small, block by block against the same model run whole.

`make layer-families` tries them all and writes `layer_families.json`, which the page on compatibility shows.
"""

from __future__ import annotations

import inspect
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel

from layerdrift.contract.errors import InputError
from workers.models.blockwise import BlockFiles
from workers.models.layer_order import Pass
from workers.models.loading import body_class, is_encoder_part
from workers.models.states import StateReader
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch, reads_padding

RESULTS = Path(__file__).with_suffix(".json")
ROUNDING = 1e-6
"""Relative difference that comes of where weights lie in memory: kernels of experts round otherwise there."""

LARGEST = 3_000_000
"""Parameters of a family that counts as small."""

WIDTH, BLOCKS, HEADS, VOCABULARY, LENGTH = 32, 4, 4, 99, 128
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "attention_hidden_size", "lru_width"), WIDTH
    ),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers"), BLOCKS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("intermediate_size", "d_ff", "d_inner", "ffn_dim", "hidden_dim", "dff", "n_inner"), 2 * WIDTH),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "hidden_size_per_layer_input", "rotary_dim", "mamba_dt_rank"), 8),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "embedding_size"), 16),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("state_size", "mamba_d_state", "attention_window", "sliding_window", "window_size"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "context_length"), LENGTH),
    **{"vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "query_pre_attn_scalar": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
}
"""What makes a family small, by the names that configurations have for it."""


def small(model_type: str) -> PreTrainedModel:
    """A family's body with random weights; ValueError where it is no text model or cannot be made small."""
    kind: Any = CONFIG_MAPPING[model_type]
    config = _configuration(kind)
    if config.is_encoder_decoder and not is_encoder_part(config):
        raise ValueError("an encoder-decoder")
    with torch.device("meta"):
        skeleton: Any = body_class(config).from_config(config)
    if skeleton.num_parameters() > LARGEST:
        raise ValueError("it could not be made small")
    if "input_ids" not in inspect.signature(skeleton.forward).parameters:
        raise ValueError("it reads no text")
    torch.manual_seed(0)
    model: PreTrainedModel = body_class(config).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    model.eval()
    return model


def _configuration(kind: Any) -> PretrainedConfig:
    """The family's defaults with the names that it knows made small, one after another where all do not go together."""
    known = {name: value for name, value in SMALL.items() if name in kind().to_dict() or name in kind.attribute_map}
    layers = getattr(kind(), "layer_types", None)
    if layers:
        known["layer_types"] = list(layers[:BLOCKS])
    return kind(**known)  # type: ignore[no-any-return]


def batch(lengths: list[int], start: int) -> Batch:
    """Texts of these lengths, padded to the longest."""
    ids = (torch.arange(len(lengths) * max(lengths)) * 7 + start).remainder(VOCABULARY - 10).add(10)
    ids = ids.view(len(lengths), -1)
    mask = torch.stack([(torch.arange(max(lengths)) < length).long() for length in lengths])
    return Batch(ids * mask, mask, mask.bool(), list(range(len(lengths))))


BATCHES = [batch([5, 17, 30], 0), batch([3, 9], 3), batch([40, 25, 6], 5)]


def result(model_type: str) -> str:
    """`exact`, `exact but for rounding`, or why the family runs whole; ValueError where it cannot be tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = small(model_type)
            reader = StateReader.of(model, "")
            if reader.reads_padding or reads_padding(model):
                return "whole: padding changes its states"
            expected = [reader.states(model, one) for one in BATCHES]
        except Exception as error:  # configurations refuse what does not go together in every way there is
            raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, max_shard_size="60KB")
            try:
                return _compared(Path(folder), reader, expected)
            except (NotBlockwise, InputError) as error:
                return f"whole: {str(error).splitlines()[0]}"


def _compared(folder: Path, reader: StateReader, expected: list[list[torch.Tensor]]) -> str:
    found, furthest = BlockFiles(folder, "/base/uri", torch.device("cpu")), 0.0
    passing = Pass(found, BATCHES, reader)
    try:
        passing.start()
        for layer in range(found.depth + 1):
            for number, state in enumerate(passing.states):
                judge = expected[number][layer]
                if not torch.equal(state, judge):
                    furthest = max(furthest, float((state - judge).norm() / judge.norm()))
            if layer < found.depth:
                with found.block(layer):
                    passing.advance()
    finally:
        passing.close()
    if furthest > ROUNDING:
        return f"differs by {furthest:.1e}"
    return "exact" if furthest == 0 else "exact but for rounding"


def families() -> dict[str, str]:
    """By family that could be tried, what came of it."""
    found = {}
    for model_type in sorted(CONFIG_MAPPING.keys()):
        if CONFIG_MAPPING[model_type] not in AutoModel._model_mapping:
            continue
        try:
            found[model_type] = result(model_type)
        except ValueError:
            continue
    return found


def known() -> dict[str, str]:
    """What came of them when it was written down."""
    stored: dict[str, str] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return stored


if __name__ == "__main__":
    RESULTS.write_text(json.dumps(families(), indent=1) + "\n", encoding="utf-8")
