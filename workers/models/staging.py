"""Makes a fetched checkpoint one that transformers reads as its author meant it, or says why that cannot be.

Works on the staged copy alone: what it changes in config.json changes no weight, and what it renames it renames whole.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from backends.sources.checkpoint_files import GENERATION_CONFIG, INDEX, generation_config_of
from backends.sources.checkpoint_folder import CONFIG
from layerdrift.contract.errors import InputError
from workers.results.warnings import ReportWarning

_DROPPED = ("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Settings of where and with which code a model ran; its own code of a repository never runs here."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Names that torch.compile, FSDP, activation checkpointing and DeepSpeed put into the names of parameters."""

_ADAPTER_TENSOR = re.compile(
    r"(^|\.)("
    r"(lora|glora|gralora|hira|delora)_(embedding_)?[A-E](_general)?|lora_magnitude_vector|delora_lambda|ia3_l|"
    r"hada_[tw]\d(_[ab])?|lokr_[tw]\d(_[ab])?|p?vera_lambda_[bd]|randlora_(lambda|gamma)|vblora_logits_[AB]|"
    r"b?oft_(embedding_)?R|boft_s|psoft_R|hra_u|(fourierft|waveft)_spectrum|c3a_kernel|miss_block|road_(alpha|theta)|"
    r"shira_weight|trainable_tokens_delta|base_layer"
    r")(\.|_|$)"
)
"""What PEFT's tuners name their tensors."""


def stage_checkpoint(folder: Path, pointer: str) -> list[ReportWarning]:
    """Makes a staged checkpoint plain; what is worth knowing of it comes back as warnings.

    Raises:
        InputError: the weights hold tensors of an adapter, or the model needs code of its repository.
    """
    _plain_config(folder, pointer)
    if (folder / GENERATION_CONFIG).exists():
        (folder / GENERATION_CONFIG).replace(generation_config_of(folder))
    names = {path: tensor_names(path, pointer) for path in sorted(folder.glob("*.safetensors"))}
    every = [name for found in names.values() for name in found]
    adapters = [name for name in every if _ADAPTER_TENSOR.search(name)]
    if adapters:
        raise InputError.at(
            pointer,
            f"the weights contain {len(adapters)} adapter tensors beside the model's own, first {adapters[0]}; "
            "whether they belong to the model is unknown. Merge them with merge_and_unload() and save the model, or "
            "save the adapter alone with PEFT's save_pretrained",
        )
    wrapped = _wrapping(every)
    if not wrapped:
        return []
    twice = [name for name, count in Counter(map(_plain_name, every)).items() if count > 1]
    if twice:
        raise InputError.at(
            pointer, f"the weights contain {len(twice)} tensors under several names, first {twice[0]}; keep one of each"
        )
    for path, found in names.items():
        _rename(path, found)
    _rename_index(folder)
    message = f"the weight names of the {pointer[1:].split('/')[0]} model began with {wrapped}; this prefix was removed"
    return [ReportWarning(code="wrapped_weights", message=message)]


def tensor_names(path: Path, pointer: str) -> list[str]:
    """The names of the tensors in a file; InputError where it is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError.at(pointer, f"the weights could not be loaded: {path.name}: {error}") from error


def _plain_config(folder: Path, pointer: str) -> None:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError.at(pointer, f"{CONFIG} is not JSON: {error}") from error
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise InputError.at(
            pointer,
            f"the model type {config.get('model_type')!r} needs code from its repository (auto_map), which is never "
            "run here; convert the checkpoint to an architecture built into transformers",
        )
    plain = _without(config, _DROPPED)
    if (plain.get("quantization_config") or {}).get("quant_method") == "gguf":
        del plain["quantization_config"]  # where the weights came from; safetensors files hold them dequantised
    if isinstance(plain.get("id2label"), dict):
        plain["id2label"] = {key: str(value) for key, value in plain["id2label"].items()}
    if isinstance(plain.get("label2id"), dict):
        plain["label2id"] = {str(key): value for key, value in plain["label2id"].items()}
    if plain != config:
        path.write_text(json.dumps(plain), encoding="utf-8")


def _without(value: Any, names: Iterable[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without(inner, names) for key, inner in value.items() if key not in names}


def _wrapping(names: list[str]) -> str | None:
    """What wrappers put before or into the names; None where they are plain."""
    inside = sorted({part for name in names for part in name.split(".") if part in _WRAPPERS})
    if (
        names
        and all(_plain_name(name) != name for name in names)
        and all(name.split(".")[0] in ("module", *_WRAPPERS) for name in names)
    ):
        return f"{names[0].split('.')[0]}."
    return f"{inside[0]}." if inside else None


def _plain_name(name: str) -> str:
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def _rename(path: Path, names: list[str]) -> None:
    """Puts a file with plain names in its place; not into it, since it may be kept for other jobs."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {_plain_name(name): file.get_tensor(name).clone() for name in names}
    anew = path.with_suffix(".renamed")
    save_file(tensors, anew, metadata=metadata)
    anew.replace(path)


def _rename_index(folder: Path) -> None:
    path = folder / INDEX
    if path.exists():
        index = json.loads(path.read_text(encoding="utf-8"))
        index["weight_map"] = {_plain_name(name): shard for name, shard in index["weight_map"].items()}
        path.write_text(json.dumps(index), encoding="utf-8")


HARMLESS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(^|\.)position_ids$",
        r"(^|\.)(inv_freq|original_inv_freq)$",
        r"(^|\.)attn\.(masked_)?bias$",
        r"(^|\.)attention\.(masked_)?bias$",
        r"(^|\.)masked_bias$",
        r"(^|\.)token_type_ids$",
        r"(^|\.)(embed_positions|position_embeddings)\.weights$",
        r"(^|\.)num_batches_tracked$",
    )
)
"""Tensors inside a model's body that older versions of libraries saved though they follow from the configuration."""

_SCALES = re.compile(
    r"(.*_)?((weight|input|output|activation|[qkv])_scale(_\w+)?|scales?|scale_inv|zero_points?|zeros|qzeros|qweight|g_idx|"
    r"absmax|quant_map|SCB|weight_format|bitsandbytes__\w+)"
)
"""Last parts of the names of tensors that turn quantised weights back."""


def refuse_untaken(unexpected: Iterable[str], body_parts: set[str], prefix: str, pointer: str) -> None:
    """Refuses weights of the body that no parameter of the model takes up: to drop them would change the model.

    Args:
        unexpected: names of tensors in the files that were not taken up.
        body_parts: the names of the body's own modules and parameters, one level deep.
        prefix: what stands before them in a model with a head.
    """
    untaken = sorted(name for name in unexpected if not any(pattern.search(name) for pattern in HARMLESS))
    inside = [name for name in untaken if _of_body(name, body_parts, prefix) or _is_scale(name)]
    if not inside:
        return
    found = f"the files contain {len(inside)} tensors that the model of {CONFIG} does not use, first {inside[0]}"
    if any(_is_scale(name) for name in inside):
        raise InputError.at(
            pointer,
            f"{found}: they look like scales of quantised weights, without which the weights have another meaning. "
            "Save the model dequantised, in float or bfloat16",
        )
    raise InputError.at(
        pointer, f"{found}; without them it would be a different model. Give the {CONFIG} that belongs to the weights"
    )


def _is_scale(name: str) -> bool:
    return _SCALES.fullmatch(name.rsplit(".", 1)[-1]) is not None


def _of_body(name: str, parts: set[str], prefix: str) -> bool:
    inner = name.removeprefix(f"{prefix}.") if prefix else name
    return inner.split(".")[0] in parts
