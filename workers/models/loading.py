"""Opens staged checkpoints. Offline, safetensors only, no remote code; every failure says what is wrong with the files.

Returns transformers' models in evaluation mode and float32; knows nothing of jobs. Of a multimodal checkpoint the
language model is the body, and its own head the head.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from backends.sources.checkpoint_folder import CONFIG
from layerdrift.contract.errors import InputError
from workers.models.staging import refuse_untaken
from workers.models.structure import NotBlockwise
from workers.models.texts import reads_padding

_T = TypeVar("_T")

disable_progress_bar()  # a worker's log is no terminal
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS: dict[str, Any] = {
    **_OFFLINE,
    "use_safetensors": True,
    "dtype": torch.float32,
    "return_dict": True,
    "ignore_mismatched_sizes": True,  # so that we can say which; `_checked` refuses them
    "output_loading_info": True,
}
ANSWER = "the model's output for a small batch"
_HEADED_CLASS = re.compile(r"For[A-Z]|LMHeadModel$")
HEADS = ("pooler", "classifier", "score", "cls.", "lm_head", "qa_outputs", "pre_classifier")


def load_config(folder: Path, pointer: str, max_parameters: int) -> PretrainedConfig:
    """The configuration, after its size was limited: no memory is taken for weights before.

    Raises:
        InputError: transformers cannot build the model, or it is larger than `max_parameters`.
    """
    config = read_config(folder, pointer)
    if config.is_encoder_decoder and not is_encoder_part(config):
        raise InputError.at(
            pointer,
            f"{config.model_type} is an encoder-decoder; only encoders, decoders and the encoders of the T5 family "
            "are supported",
        )

    def count() -> int:
        with torch.device("meta"):
            return int(body_class(config).from_config(config, trust_remote_code=False).num_parameters())

    parameters = loaded(folder, pointer, CONFIG, count)
    if parameters > max_parameters:
        raise InputError.at(
            pointer, f"the model has {parameters} parameters; the limit of this service is {max_parameters}"
        )
    return config


def is_encoder_part(config: PretrainedConfig) -> bool:
    """Whether the body that is read is the encoder of an encoder-decoder, as in the T5 family."""
    encoder: Any = AutoModelForTextEncoding._model_mapping.get(type(config), None)
    return encoder is not None and bool(encoder.__name__.endswith("EncoderModel"))


def body_class(config: PretrainedConfig) -> Any:
    """The class that opens a model without its heads."""
    return AutoModelForTextEncoding if is_encoder_part(config) else AutoModel


def load_body(folder: Path, pointer: str, device: torch.device) -> PreTrainedModel:
    """The model without heads, whole and finite, on a device; of a multimodal one its language model.

    Raises:
        InputError: weights are missing, misshapen, NaN or infinite, not taken up, or the files are broken.
    """
    config = read_config(folder, pointer)
    model = _checked(folder, pointer, device, lambda: body_class(config).from_pretrained(folder, **_WEIGHTS))
    return body_of(model)


def read_config(folder: Path, pointer: str) -> PretrainedConfig:
    """The configuration of a staged checkpoint; InputError where it cannot be read."""
    config: PretrainedConfig = loaded(folder, pointer, CONFIG, lambda: AutoConfig.from_pretrained(folder, **_OFFLINE))
    return config


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether the model that reads text is a part of it."""
    return config.get_text_config() is not config


def is_quantised(config: PretrainedConfig) -> bool:
    """Whether the files hold quantised weights, which transformers turns back as it loads them."""
    return bool(getattr(config, "quantization_config", None))


def below_heads(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its heads, whatever attribute holds it."""
    body: PreTrainedModel = model.base_model  # type: ignore[assignment]
    if body is not model or not _HEADED_CLASS.search(type(model).__name__):
        return body
    inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inner[0] if len(inner) == 1 else body


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The body below a model's heads whose layers are compared: in a multimodal model its language model."""
    body = below_heads(model)
    if not is_multimodal(body.config):
        return body
    inner = body.get_decoder()
    if not isinstance(inner, PreTrainedModel) or inner is body:
        raise InputError(f"the language model inside {type(body).__name__} could not be found")
    return inner


def load_classifier(folder: Path, pointer: str, device: torch.device, labels: list[str]) -> PreTrainedModel:
    """The model under a classification head for these labels; a head that the files lack is drawn at random.

    Raises:
        InputError: as `load_body`, or it is an encoder that has no such head.
    """
    config = read_config(folder, pointer)
    if is_multimodal(config):
        raise InputError.at(
            pointer,
            f"{config.model_type} is multimodal, which cannot be fine-tuned here; give the tuned checkpoint instead",
        )
    if is_encoder_part(config):
        raise InputError.at(
            pointer, f"the encoder of {config.model_type} cannot be fine-tuned here; give the tuned checkpoint instead"
        )
    id2label = dict(enumerate(labels))
    model = _checked(
        folder,
        pointer,
        device,
        lambda: AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels),
            id2label=id2label,
            label2id={label: index for index, label in id2label.items()},
            **_WEIGHTS,
        ),
    )
    loaded(folder, pointer, ANSWER, lambda: reads_padding(model))
    return model


class Whole(NamedTuple):
    """A model with a head. drawn: the tensors that its files lack or have in another shape, drawn at random instead."""

    model: PreTrainedModel
    drawn: list[str]


def whole_model(folder: Path, pointer: str, device: torch.device, kind: Any, options: dict[str, Any]) -> Whole:
    """A checkpoint as a model of one of transformers' classes; a head that the files lack is drawn at random.

    Raises:
        InputError: as `load_body`.
    """
    drawn: list[str] = []

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        model, info = kind.from_pretrained(folder, **options, **_WEIGHTS)
        drawn.extend([*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])])
        return model, info

    return Whole(_checked(folder, pointer, device, load), drawn)


HeadKind = Literal["classifier", "causal_lm", "masked_lm"]
_HEAD_SUFFIXES: dict[str, tuple[HeadKind, Any]] = {
    "ForSequenceClassification": ("classifier", AutoModelForSequenceClassification),
    "ForCausalLM": ("causal_lm", AutoModelForCausalLM),
    "LMHeadModel": ("causal_lm", AutoModelForCausalLM),
    "ForMaskedLM": ("masked_lm", AutoModelForMaskedLM),
}


def random_copy(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same configuration whose weights were never trained, on the same device."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        copy = type(model)(model.config)
    copy.eval()
    copy.to(model.device)  # type: ignore[arg-type]
    return copy


class Headed(NamedTuple):
    """A model with the head that its files hold."""

    kind: HeadKind
    model: PreTrainedModel


def head_kind(folder: Path, pointer: str) -> HeadKind | None:
    """What head a checkpoint says that it has, where its answers can be judged."""
    return _head(read_config(folder, pointer)).kind


def head_refusal(folder: Path, pointer: str) -> str | None:
    """Why a checkpoint's head is not judged though it says that it has one; None where it is, or where it has none."""
    return _head(read_config(folder, pointer)).reason


class _Head(NamedTuple):
    """The head that a configuration names: its kind where it is judged, else the reason why not."""

    kind: HeadKind | None
    reason: str | None


def _head(config: PretrainedConfig) -> _Head:
    name = (config.architectures or [""])[0]
    if name.endswith("ForSequenceClassification"):
        if config.problem_type == "multi_label_classification":
            return _Head(None, "its head is multi-label, so accuracy is undefined")
        if (config.num_labels or 0) < 2 or config.problem_type == "regression":
            return _Head(None, "its head predicts a number (regression or ranking), so accuracy is undefined")
        return _Head("classifier", None)
    if name.endswith("ForConditionalGeneration") and is_multimodal(config):
        return _Head("causal_lm", None)
    found = next((kind for suffix, (kind, _) in _HEAD_SUFFIXES.items() if name.endswith(suffix)), None)
    if found is None and "For" in name:
        return _Head(None, f"{name[name.index('For') :]} heads are not evaluated")
    return _Head(found, None)


def load_headed(folder: Path, pointer: str, device: torch.device) -> Headed | None:
    """The model with its head; None where its files hold no whole one, or one whose answers cannot be judged.

    Raises:
        InputError: as `load_body`.
    """
    kind = head_kind(folder, pointer)
    if kind is None:
        return None
    loader = loader_of(kind, read_config(folder, pointer))
    whole = whole_model(folder, pointer, device, loader, {})
    if whole.drawn:
        return None
    loaded(folder, pointer, ANSWER, lambda: reads_padding(whole.model))
    return Headed(kind, whole.model)


def loader_of(kind: HeadKind, config: PretrainedConfig) -> Any:
    """The class that opens a checkpoint with a head of this kind."""
    if kind == "causal_lm":
        candidates: list[Any] = [AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM]
        return next((one for one in candidates if type(config) in one._model_mapping), AutoModelForCausalLM)
    return next(loader for known, loader in _HEAD_SUFFIXES.values() if known == kind)


def _checked(
    folder: Path, pointer: str, device: torch.device, load: Callable[[], tuple[PreTrainedModel, dict[str, Any]]]
) -> PreTrainedModel:
    model, info = loaded(folder, pointer, "the weights", load)
    missing = sorted(name for name in info["missing_keys"] if not any(head in name for head in HEADS))
    if missing:
        raise InputError.at(
            pointer, f"the weights lack {len(missing)} tensors that config.json requires, first {missing[0]}"
        )
    body = below_heads(model)
    parts = {name for name, _ in (*body.named_children(), *body.named_parameters(recurse=False))}
    refuse_untaken(info["unexpected_keys"], parts, model.base_model_prefix, pointer)
    misshapen = [entry for entry in info["mismatched_keys"] if not any(head in str(entry) for head in HEADS)]
    if misshapen:
        raise InputError.at(pointer, f"a weight does not have the shape that config.json requires: {misshapen[0]}")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError.at(pointer, f"the weight {name} contains NaN or infinite values")
    nn.Module.to(model, device)
    model.eval()
    return model


def loaded(folder: Path, pointer: str, what: str, load: Callable[[], _T]) -> _T:
    """What `load` returns; InputError where it cannot read the files, which `what` says for people."""
    try:
        return load()
    except (InputError, NotBlockwise):
        raise
    except ImportError as error:
        raise InputError.at(
            pointer,
            f"{what} needs a Python package that this service does not have ({error.name or _first_line(error)}). On "
            "a machine that has it, save a form that does not need it: a tokenizer as tokenizer.json (a fast "
            "tokenizer, with save_pretrained), weights dequantised",
        ) from error
    except Exception as error:  # transformers raises nearly anything on files that are broken
        reason = str(error).replace(str(folder), "the folder") or type(error).__name__
        raise InputError.at(pointer, f"{what} could not be loaded: {reason}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
