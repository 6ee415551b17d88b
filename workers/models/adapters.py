"""PEFT adapters: merged into a copy of their base model, so that every later stage sees a plain checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from backends.sources.checkpoint_files import TOKENIZER_FILES
from backends.sources.checkpoint_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from backends.storage.uploads import SCHEME
from layerdrift.contract.errors import InputError
from workers.models.grafts import untied
from workers.models.loading import Whole, below_heads, body_class, loaded, read_config, whole_model
from workers.results.warnings import ReportWarning

_PREFIX = "base_model.model."
MAX_ADDED_ROWS = 100_000
MAX_LABELS = 100_000
_HEAD_WEIGHTS = ("classifier.weight", "score.weight", "classifier.out_proj.weight", "qa_outputs.weight")
_TASKS: dict[str, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}
_TUNERS = (
    "lora_", "ia3_", "hada_", "lokr_", "oft_", "boft_", "vera_", "randlora_", "hra_", "fourierft_", "token_",
    "trainable_tokens_",
)  # fmt: skip
"""How PEFT's methods begin the names of the parameters that they put into a module."""

_WRAPPED = ("modules_to_save", "original_module")
"""How PEFT names whole modules that it trains beside the others."""

_BASE_LAYER = "base_layer"
"""How PEFT names the module that it put its own around; embeddings and biases are saved under that name."""

_ARCHITECTURES: dict[str, Any] = {
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForCausalLM": AutoModelForCausalLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForConditionalGeneration": AutoModelForImageTextToText,
}
"""The base model's own head comes before others that would fit the names: PEFT has no task for masked models."""

_EMBEDDINGS = ("embed_tokens", "lm_head", "word_embeddings", "wte", "embed_in", "embed_out")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as its files have it: its method's configuration, what else stands in it, and its weights."""

    config: PeftConfig
    stored: dict[str, Any]
    weights: dict[str, Tensor]
    pointer: str


def merge_adapter(base: Path, adapter: Path, target: Path, pointer: str, base_uri: str = "") -> list[ReportWarning]:
    """Writes the base model with the adapter's changes in it, its head and its tokenizer where the adapter has them.

    Raises:
        InputError: the adapter is broken, NaN, or fits another base.
    """
    found = read_adapter(adapter, pointer)
    whole = _base_for(base, found)
    merged = loaded(adapter, pointer, "the adapter", lambda: _merged(whole.model, found, adapter))
    if any(not _holds(found, name) for name in whole.drawn):
        merged = below_heads(merged)  # a head that is in no file would answer at random
    merged.save_pretrained(target, safe_serialization=True)
    for name in TOKENIZER_FILES:
        if (adapter / name).exists():
            shutil.copyfile(adapter / name, target / name)
    return other_base(found, base, base_uri)


def read_adapter(folder: Path, pointer: str) -> AdapterFiles:
    """An adapter's files; InputError where they are broken, empty or not finite."""
    stored = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    weights = loaded(folder, pointer, "the adapter", lambda: load_file(folder / ADAPTER_WEIGHTS))
    for name, tensor in weights.items():
        if not tensor.numel():
            raise InputError.at(pointer, f"the adapter's weight {name} is empty (shape {list(tensor.shape)})")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError.at(pointer, f"the adapter's weight {name} contains NaN or infinite values")
    config = loaded(folder, pointer, "the adapter's configuration", lambda: _config(stored))
    return AdapterFiles(config, stored, weights, pointer)


def _config(stored: dict[str, Any]) -> PeftConfig:
    """The method's configuration; fields of later versions of PEFT, which this one does not know, are passed over."""
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(str(stored["peft_type"]).upper())]
    known = {name: value for name, value in stored.items() if name in kind.__dataclass_fields__}
    config: PeftConfig = kind(**known | {"inference_mode": True, "auto_mapping": None})
    return config


def _base_for(base: Path, adapter: AdapterFiles) -> Whole:
    """The base model under the head whose modules the adapter's names are of, with embeddings as large as it needs."""
    config = read_config(base, "/base/uri")
    kind = adapter_class(config, adapter)
    options: dict[str, Any] = {}
    if kind in (AutoModelForSequenceClassification, AutoModelForTokenClassification):
        options["num_labels"] = _labels(adapter)
    cpu = torch.device("cpu")
    whole = whole_model(base, adapter.pointer, cpu, kind, options)
    rows = _embedding_rows(adapter)
    embeddings: Any = whole.model.get_input_embeddings()
    if rows is not None and rows > len(embeddings.weight):
        if rows > len(embeddings.weight) + MAX_ADDED_ROWS:
            raise InputError.at(
                adapter.pointer,
                f"the adapter was trained with {rows} embeddings, but its base has {len(embeddings.weight)}; at most "
                f"{MAX_ADDED_ROWS} more are supported",
            )
        whole.model.resize_token_embeddings(rows, mean_resizing=False)
    return whole


def _holds(adapter: AdapterFiles, parameter: str) -> bool:
    """Whether the adapter's file has a whole parameter of the model, not just a change of it."""
    for name in adapter.weights:
        if any(part.startswith(_TUNERS) for part in name.split(".")):
            continue
        module = _module(name.removeprefix(_PREFIX))
        if module and parameter.startswith(f"{module}."):
            return True
    return False


def adapter_class(config: PretrainedConfig, adapter: AdapterFiles) -> Any:
    """The class that has a module for every one of the adapter's tensors: by its task where that fits, else any."""
    architecture = (config.architectures or [""])[0]
    own = next((kind for suffix, kind in _ARCHITECTURES.items() if architecture.endswith(suffix)), None)
    named = _TASKS.get(str(adapter.stored.get("task_type")))
    others = [AutoModelForMaskedLM, *_TASKS.values(), AutoModelForImageTextToText]
    missing: dict[Any, list[str]] = {}
    for kind in (named, body_class(config), own, *others):
        if kind is None or kind in missing or not (kind is body_class(config) or type(config) in kind._model_mapping):
            continue
        missing[kind] = list(_without_module(config, kind, adapter))
        if not missing[kind]:
            return kind
    fewest = min(missing.values(), key=len)
    raise InputError.at(
        adapter.pointer,
        f"the adapter does not fit this base: {len(fewest)} of its {len(adapter.weights)} tensors belong to modules "
        f"that a {config.model_type} model does not have, first {fewest[0]}",
    )


def _without_module(config: PretrainedConfig, kind: Any, adapter: AdapterFiles) -> Iterator[str]:
    """The adapter's tensors for which a class has no module."""
    with torch.device("meta"):
        model = kind.from_config(config, trust_remote_code=False)
    modules = {name for name, _ in model.named_modules()}
    for name in adapter.weights:
        if name.startswith(_PREFIX) and _module(name.removeprefix(_PREFIX)) not in modules:
            yield name


def _module(name: str) -> str:
    """The module that a tensor of an adapter changes: what stands before the method's own names."""
    parts = name.split(".")
    own = (place for place, part in enumerate(parts) if part.startswith(_TUNERS) or part in (*_WRAPPED, _BASE_LAYER))
    end = next(own, len(parts) - 1)
    return ".".join(parts[:end])


def _labels(adapter: AdapterFiles) -> int:
    for name, tensor in adapter.weights.items():
        if name.endswith(_HEAD_WEIGHTS):
            if tensor.dim() != 2 or len(tensor) > MAX_LABELS:
                raise InputError.at(
                    adapter.pointer,
                    f"the adapter's weight {name} has shape {list(tensor.shape)}; a head must be a matrix with at "
                    f"most {MAX_LABELS} rows",
                )
            return len(tensor)
    return 2


def _embedding_rows(adapter: AdapterFiles) -> int | None:
    """Rows of the vocabulary that the adapter was trained with, where it holds tensors of embeddings."""
    found = []
    for name, tensor in adapter.weights.items():
        parts = [part for part in name.split(".") if part != _BASE_LAYER]
        if parts[-1] == "weight" and len(parts) > 1 and parts[-2] in _EMBEDDINGS and tensor.dim() == 2:
            found.append(len(tensor))
        elif parts[-1] == "lora_embedding_A" and tensor.dim() == 2:
            found.append(tensor.shape[1])
        elif parts[-3:-2] in (["lm_head"], ["embed_out"]) and parts[-2:] == ["lora_B", "weight"]:
            found.append(len(tensor))
    return max(found, default=None)


def _merged(model: PreTrainedModel, adapter: AdapterFiles, folder: Path) -> PreTrainedModel:
    """The model with the adapter in it; InputError where the adapter's weights are missing, misshapen or left over."""
    modules = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    tied = untied(model)
    adapter.config.task_type = None  # PEFT's classes for tasks add heads of their own; the weights tell which there are
    _keep_saved_modules(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice for training: tied weights, saved embeddings
        wrapped: Any = get_peft_model(model, adapter.config)
        given = wrapped.load_adapter(str(folder), "default", is_trainable=False, local_files_only=True)
        missing = [*given.missing_keys, *_modules_not_saved(adapter, modules)]
        if missing:
            raise InputError.at(
                adapter.pointer, f"the adapter lacks {len(missing)} required tensors, first {missing[0]}"
            )
        # of resized embeddings PEFT also saves its own wrapping, which it does not read
        left = [name for name in given.unexpected_keys if not any(part in name.split(".") for part in _WRAPPED)]
        if left:
            raise InputError.at(
                adapter.pointer,
                f"{len(left)} tensors of the adapter belong to no module that it names, first {left[0]}",
            )
        merged = _unloaded(wrapped, adapter)
    if tied:
        _tied_where_equal(merged)
    return merged


def _unloaded(wrapped: Any, adapter: AdapterFiles) -> PreTrainedModel:
    """The plain model, the adapter's changes added to its weights."""
    try:
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError.at(
            adapter.pointer,
            f"the adapter loads, but cannot be merged into its base model's weights: {error} Train it without that, "
            "or give a full checkpoint with its change merged into the weights",
        ) from error
    return merged


def _tied_where_equal(model: PreTrainedModel) -> None:
    """Ties the head to the embeddings again, or writes down that they differ now."""
    head: Any = model.get_output_embeddings()
    embeddings: Any = model.get_input_embeddings()
    same = torch.equal(head.weight, embeddings.weight)
    if same:
        head.weight = embeddings.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = same  # transformers takes it back once it sees the copy


def _modules_not_saved(adapter: AdapterFiles, modules: set[str]) -> list[str]:
    """Whole modules of the model that the adapter's configuration says it trained, and its file does not hold."""
    named = adapter.stored.get("modules_to_save") or []
    return [name for name in named if name in modules and not _is_saved(name, adapter)]


def _keep_saved_modules(adapter: AdapterFiles) -> None:
    """Asks for the whole modules that the file holds, and no others."""
    named = adapter.stored.get("modules_to_save")
    if named:
        kept = [name for name in named if _is_saved(name, adapter)]
        adapter.config.modules_to_save = kept or None  # type: ignore[attr-defined]


def _is_saved(module: str, adapter: AdapterFiles) -> bool:
    return any(module in name.split(".") for name in adapter.weights)


def other_base(adapter: AdapterFiles, base: Path, base_uri: str) -> list[ReportWarning]:
    """A warning where the adapter names another base model than the request does."""
    named = str(adapter.stored.get("base_model_name_or_path") or "")
    own = str(json.loads((base / "config.json").read_text(encoding="utf-8")).get("_name_or_path") or "")
    if not named or _last(named) in (_last(base_uri.partition("@")[0]), _last(own)):
        return []
    if not own and base_uri.startswith(SCHEME):  # an upload has no name of its own
        return []
    message = (
        f"the adapter says it was trained on {named!r}, but it was merged into {base_uri!r}: if their weights "
        "differ, every number for the tuned model describes a model that nobody trained"
    )
    return [ReportWarning(code="adapter_base", message=message)]


_CACHED = re.compile(r"models--.*?--([^/]+)/snapshots/")
"""A model in the cache of the hub's client."""


def _last(name: str) -> str:
    cached = _CACHED.search(name)
    return (cached[1] if cached else name.rstrip("/").rsplit("/", 1)[-1]).casefold()
