"""What the configuration of a checkpoint or an adapter shows by itself: refusals before anything is fetched.

Reads dictionaries only; which files they come from is the business of `sources`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from layerdrift.contract.errors import InputError

MAX_BLOCKS, MAX_WIDTH = 1_000, 65_536
"""Depth and width beyond which a configuration is taken for a mistake, before anything is built from it."""

MAX_COUNT = 100_000
"""Of labels, heads, experts and whatever else a model has a module or a name for each of."""

MAX_EXPERTS = 600_000
"""Of all blocks together."""

MAX_NUMBER = 2**40
MAX_RANK = 16_384
MAX_PATTERN, MAX_REPEATS = 10_000, 5
"""Characters of an expression for names of modules, and parts that it repeats."""

_PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
_REPEAT = re.compile(r"[*+]|\{\d*,?\d*\}|(?<![*+?}(])\?")
"""What repeats a part or makes it optional; not the ? of a lazy repeat or of a group such as (?:."""

_REPEATED_GROUP = re.compile(r"\)\s*([*+]|\{\d*,?\d*\})")
_SIDES = (
    *("r", "init_r", "target_r", "mini_r", "hybrid_r", "gralora_k", "subspace_rank", "num_subspaces", "u", "depth"),
    *("block_size", "boft_block_num", "boft_block_size", "oft_block_size", "num_vectors", "vector_length"),
)
"""Numbers of adapter configurations that PEFT makes matrices by before it looks at the adapter's weights."""

_MAX_DEPTH = 12
_COUNT = re.compile(r"(num|n|nb)_\w+|depths?|\w*(layers?|blocks?|heads?|groups?|experts?|labels?|stages?|branches)")
_NO_COUNT = re.compile(r"\w*(position|ctx|token|param|sample|step|length|window|vocab|embd|embed|size|dim|id)\w*")
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "dim")
_INNER_KEYS = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff")
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where multimodal configurations keep the configuration of their language model."""

READ_QUANTISATIONS = ("fp8", "mxfp4", "gguf")
"""Stored formats that are read, dequantised by transformers itself without another package. Of gguf only the name stays
in config.json: safetensors files of such a model hold its dequantised weights."""

_QUANTISERS = {
    "bitsandbytes": "bitsandbytes (4 or 8 bits)",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "NVIDIA ModelOpt",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "aqlm": "AQLM",
    "eetq": "EETQ",
}

MERGED_ADAPTERS = (
    "LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "FOURIERFT", "HRA", "LN_TUNING", "VBLORA", "BONE",
    "SHIRA", "MISS", "RANDLORA", "C3A", "ROAD", "WAVEFT", "OSF", "DELORA", "GRALORA",
    "TRAINABLE_TOKENS",
)  # fmt: skip
"""PEFT methods that change weights, so that they can be merged into the base model."""

PROMPT_METHODS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
"""PEFT methods that put something in front of or between the tokens and leave the weights as they are."""


READ_ENCODER_DECODERS = ("t5", "mt5", "umt5", "t5gemma")
"""Model types whose encoder is read, though the checkpoint also holds a decoder."""


class Shape(NamedTuple):
    """Depth and width that a configuration tells; None where it does not."""

    blocks: object
    width: object


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the language model inside a multimodal one, else the configuration itself."""
    for name in _TEXT_PARTS:
        inner = config.get(name)
        if isinstance(inner, dict) and inner:
            return inner if _first(inner, _DEPTH_KEYS) is not None else text_part(inner) or inner
    return config


def shape_of(config: dict[str, Any]) -> Shape:
    """What a configuration tells of the blocks that will be compared."""
    inner = text_part(config)
    return Shape(_first(inner, _DEPTH_KEYS), _first(inner, _WIDTH_KEYS))


def parameters_of(config: dict[str, Any]) -> tuple[int, int]:
    """About how many parameters the blocks and the whole model have, by the usual shape of a block; 0: not known."""
    inner = text_part(config)
    blocks, width = shape_of(config)
    if not isinstance(blocks, int) or not isinstance(width, int):
        return 0, 0
    inside = _first(inner, _INNER_KEYS)
    inside = inside if isinstance(inside, int) else 4 * width
    gated = str(_first(inner, ("hidden_act", "activation_function")) or "") in ("silu", "swish")
    own = blocks * (4 * width**2 + (3 if gated else 2) * width * inside)
    words = inner.get("vocab_size")
    return own, own + width * (words if isinstance(words, int) else 0)


def is_language_model(config: dict[str, Any]) -> bool:
    """Whether a checkpoint says that it predicts the next token."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    return name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))


def check_config(config: dict[str, Any], pointer: str, uri: str) -> None:
    """Refuses a checkpoint whose configuration shows that it cannot be read.

    Raises:
        InputError: no model type, an impossible size, or weights quantised in a way that is not read.
    """
    if not isinstance(config.get("model_type"), str):
        raise InputError.at(pointer, f"config.json of {uri} has no model_type")
    for what, value, limit in zip(("blocks", "hidden width"), shape_of(config), (MAX_BLOCKS, MAX_WIDTH), strict=True):
        if value is not None and not (type(value) is int and 1 <= value <= limit):
            raise InputError.at(pointer, f"config.json of {uri}: {what} is {value!r}; must be 1 to {limit}")
    _check_numbers(config, pointer, uri)
    kind = config["model_type"]
    if config.get("is_encoder_decoder") is True and kind not in READ_ENCODER_DECODERS:
        raise InputError.at(
            pointer,
            f"{uri} is an encoder-decoder ({kind}), which is not supported. Encoders and decoders are, and the "
            f"encoders of {', '.join(READ_ENCODER_DECODERS)}: give a checkpoint of the encoder or the decoder alone",
        )
    _check_quantisation(config, pointer, uri)


def _check_numbers(config: dict[str, Any], pointer: str, uri: str) -> None:
    """InputError where a number would make a model of modules without end: it is built to count its weights."""
    left: list[tuple[str, object, int]] = [("", config, 0)]
    while left:
        key, value, depth = left.pop()
        if depth > _MAX_DEPTH:
            raise InputError.at(pointer, f"config.json of {uri} is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            left += [(str(name), inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(key, inner, depth + 1) for inner in value]
        elif type(value) is int:
            counted = _COUNT.fullmatch(key) and not _NO_COUNT.fullmatch(key)
            limit = MAX_COUNT if counted else MAX_NUMBER
            if abs(value) > limit:
                shown = value if abs(value) < 10**20 else "a number with more than 20 digits"
                raise InputError.at(pointer, f"config.json of {uri}: {key} is {shown}; the limit is {limit}")
    inner = text_part(config)
    blocks, experts = _first(inner, _DEPTH_KEYS), _first(inner, _EXPERT_KEYS)
    if isinstance(blocks, int) and isinstance(experts, int) and blocks * experts > MAX_EXPERTS:
        raise InputError.at(
            pointer,
            f"config.json of {uri}: {blocks} blocks of {experts} experts; the limit is {MAX_EXPERTS} experts in total",
        )


def check_files(names: set[str], pointer: str, uri: str) -> None:
    """Refuses a folder whose files tell of a quantisation that config.json does not mention."""
    for name in ("hf_quant_config.json", "quantize_config.json", "quant_config.json"):
        if name in names:
            raise InputError.at(pointer, _quantised(uri, f"(see {name})"))


def check_adapter_config(config: dict[str, Any], pointer: str, uri: str) -> None:
    """Refuses an adapter that cannot be merged into the weights of its base model.

    Raises:
        InputError: it names no method, or one that changes no weights, or a rank that no adapter has.
    """
    _check_ranks(config, pointer, uri)
    _check_patterns(config, pointer, uri)
    method = config.get("peft_type")
    if not isinstance(method, str):
        raise InputError.at(pointer, f"adapter_config.json of {uri} has no peft_type")
    if method.upper() in PROMPT_METHODS:
        raise InputError.at(
            pointer,
            f"the adapter {uri} is of type {method}: it prepends learned states to the tokens and changes no "
            "weights, so there is nothing to merge into the blocks and nothing to compare block by block. Give an "
            f"adapter that changes weights ({', '.join(MERGED_ADAPTERS[:5])}, …) or a full checkpoint",
        )
    if method.upper() not in MERGED_ADAPTERS:
        raise InputError.at(
            pointer,
            f"the adapter {uri} is of type {method}, which is not supported; supported types: "
            f"{', '.join(MERGED_ADAPTERS)}. Merge it into its base model with merge_and_unload() and give the full "
            "checkpoint",
        )


def _check_ranks(config: dict[str, Any], pointer: str, uri: str) -> None:
    """InputError for sides of matrices, and for copies of layers, that no adapter has."""
    patterns = config.get("rank_pattern")
    sides = [(name, config.get(name)) for name in _SIDES] + [*(patterns if isinstance(patterns, dict) else {}).items()]
    copies = config.get("layer_replication") or []
    sides.append(("layer_replication", sum(_copied(one) for one in copies) if isinstance(copies, list) else None))
    for name, value in sides:
        if type(value) is int and value > MAX_RANK:
            shown = value if value < 10**20 else "a number with more than 20 digits"
            raise InputError.at(pointer, f"adapter_config.json of {uri}: {name} is {shown}; the limit is {MAX_RANK}")


def _check_patterns(config: dict[str, Any], pointer: str, uri: str) -> None:
    """InputError for expressions whose matching may take for ever: PEFT tries them on the name of every module."""
    keys = [(name, key) for name in _PATTERN_KEYS for key in _keys(config.get(name))]
    texts = [(name, config.get(name)) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    for name, text in [*keys, *texts]:
        for one in text if isinstance(text, list) else [text]:
            if isinstance(one, str) and (
                len(one) > MAX_PATTERN or _REPEATED_GROUP.search(one) or len(_REPEAT.findall(one)) > MAX_REPEATS
            ):
                raise InputError.at(
                    pointer,
                    f"adapter_config.json of {uri}: matching the pattern in {name} may never finish: {one[:80]!r}. "
                    f"Do not repeat groups or use more than {MAX_REPEATS} repetitions; list the module names instead",
                )


def _keys(part: object) -> list[str]:
    return list(part) if isinstance(part, dict) else []


def _copied(part: object) -> int:
    """Layers that a range of `layer_replication` names."""
    if isinstance(part, list | tuple) and len(part) == 2 and all(type(end) is int for end in part):
        return max(0, int(part[1]) - int(part[0]))
    return 0


def _check_quantisation(config: dict[str, Any], pointer: str, uri: str) -> None:
    for part in (config, text_part(config)):
        found = part.get("quantization_config") or part.get("compression_config")
        if not found:
            continue
        method = str(found.get("quant_method") or "") if isinstance(found, dict) else ""
        if isinstance(found, dict) and not method:
            method = "bitsandbytes" if any("load_in_" in key for key in found) else "unknown"
        if method.lower() not in READ_QUANTISATIONS:
            known = next((text for name, text in _QUANTISERS.items() if method.lower().startswith(name)), method)
            raise InputError.at(pointer, _quantised(uri, f"with {known}"))


def _quantised(uri: str, how: str) -> str:
    return (
        f"{uri} is quantised {how}; its stored weights are not the model's, and this service cannot dequantise them. "
        "Give the checkpoint it was quantised from, or load it where it runs, call model.dequantize(), save it with "
        "save_pretrained, and give that"
    )


def _first(config: dict[str, Any], names: tuple[str, ...]) -> object:
    return next((config[name] for name in names if name in config), None)
