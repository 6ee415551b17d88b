"""Opens staged checkpoints. Offline, safetensors only, no remote code; every failure says what is wrong with the files.

Returns transformers' models in evaluation mode and float32; knows nothing of jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from layerdrift.backends.sources import CONFIG
from layerdrift.contract.errors import InputError

_T = TypeVar("_T")
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS: dict[str, Any] = {
    **_OFFLINE,
    "use_safetensors": True,
    "dtype": torch.float32,
    "return_dict": True,
    "ignore_mismatched_sizes": True,  # so that we can say which; `_checked` refuses them
    "output_loading_info": True,
}
_HEADS = ("pooler", "classifier", "score", "cls.", "lm_head", "qa_outputs", "pre_classifier")


def load_config(folder: Path, pointer: str, max_parameters: int) -> PretrainedConfig:
    """The configuration, after its size was limited: no memory is taken for weights before.

    Raises:
        InputError: transformers cannot build the model, or it is larger than `max_parameters`.
    """
    config: PretrainedConfig = loaded(folder, pointer, CONFIG, lambda: AutoConfig.from_pretrained(folder, **_OFFLINE))
    if config.is_encoder_decoder and not is_encoder_part(config):
        raise InputError.at(
            pointer,
            f"{config.model_type} is an encoder-decoder; encoders, decoders and the encoders of the T5 family are read",
        )

    def count() -> int:
        with torch.device("meta"):
            return int(_body_class(config).from_config(config, trust_remote_code=False).num_parameters())

    parameters = loaded(folder, pointer, CONFIG, count)
    if parameters > max_parameters:
        raise InputError.at(
            pointer, f"the model has {parameters} parameters; this service loads up to {max_parameters}"
        )
    return config


def is_encoder_part(config: PretrainedConfig) -> bool:
    """Whether the body that is read is the encoder of an encoder-decoder, as in the T5 family."""
    encoder: Any = AutoModelForTextEncoding._model_mapping.get(type(config), None)
    return encoder is not None and bool(encoder.__name__.endswith("EncoderModel"))


def _body_class(config: PretrainedConfig) -> Any:
    return AutoModelForTextEncoding if is_encoder_part(config) else AutoModel


def load_body(folder: Path, pointer: str, device: torch.device) -> PreTrainedModel:
    """The model without heads, whole and finite, on a device.

    Raises:
        InputError: weights are missing, misshapen, NaN or infinite, or the files are broken.
    """
    config = loaded(folder, pointer, CONFIG, lambda: AutoConfig.from_pretrained(folder, **_OFFLINE))
    return _checked(folder, pointer, device, lambda: _body_class(config).from_pretrained(folder, **_WEIGHTS))


def load_classifier(folder: Path, pointer: str, device: torch.device, labels: list[str]) -> PreTrainedModel:
    """The model under a classification head for these labels; a head that the files lack is drawn at random.

    Raises:
        InputError: as `load_body`, or it is an encoder that has no such head.
    """
    config = loaded(folder, pointer, CONFIG, lambda: AutoConfig.from_pretrained(folder, **_OFFLINE))
    if is_encoder_part(config):
        raise InputError.at(
            pointer, f"the encoder of {config.model_type} is not fine-tuned here; give the tuned checkpoint instead"
        )
    id2label = dict(enumerate(labels))
    return _checked(
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


def load_causal_lm(folder: Path, pointer: str, device: torch.device) -> PreTrainedModel:
    """The model under its language-model head; InputError as `load_body`."""
    loader: Any = AutoModelForCausalLM
    return _checked(folder, pointer, device, lambda: loader.from_pretrained(folder, **_WEIGHTS))


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
    config = loaded(folder, pointer, CONFIG, lambda: AutoConfig.from_pretrained(folder, **_OFFLINE))
    name = (config.architectures or [""])[0]
    found = next((kind for suffix, (kind, _) in _HEAD_SUFFIXES.items() if name.endswith(suffix)), None)
    one_of_many = config.num_labels > 1 and config.problem_type in (None, "single_label_classification")
    return found if found != "classifier" or one_of_many else None


def load_headed(folder: Path, pointer: str, device: torch.device) -> Headed | None:
    """The model with its head; None where its files hold no whole one, or one whose answers cannot be judged.

    Raises:
        InputError: as `load_body`.
    """
    kind = head_kind(folder, pointer)
    if kind is None:
        return None
    loader = next(loader for known, loader in _HEAD_SUFFIXES.values() if known == kind)
    missing: list[str] = []

    def load() -> tuple[PreTrainedModel, dict[str, Any]]:
        model, info = loader.from_pretrained(folder, **_WEIGHTS)
        missing.extend(info["missing_keys"])
        missing.extend(str(entry) for entry in info["mismatched_keys"])
        return model, info

    model = _checked(folder, pointer, device, load)
    return None if missing else Headed(kind, model)


def load_tokenizer(base: Path, tuned: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of the base, padding on the right; InputError where the tuned one splits texts otherwise."""
    tokenizer = _tokenizer(base, "/base/uri")
    if tuned is not None and any(tuned.glob("tokenizer*")):
        other = _tokenizer(tuned, "/tuned/uri")
        if other.get_vocab() != tokenizer.get_vocab():
            raise InputError.at(
                "/tuned/uri",
                "the models have different vocabularies, so their tokens cannot be compared one by one",
            )
    return tokenizer


def _tokenizer(folder: Path, pointer: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = loaded(
        folder, pointer, "the tokenizer", lambda: AutoTokenizer.from_pretrained(folder, **_OFFLINE)
    )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise InputError.at(pointer, "the tokenizer has no padding, end or unknown token to fill batches with")
    return tokenizer


def _checked(
    folder: Path, pointer: str, device: torch.device, load: Callable[[], tuple[PreTrainedModel, dict[str, Any]]]
) -> PreTrainedModel:
    model, info = loaded(folder, pointer, "the weights", load)
    missing = sorted(name for name in info["missing_keys"] if not any(head in name for head in _HEADS))
    if missing:
        raise InputError.at(
            pointer, f"the weights lack {len(missing)} tensors that config.json asks for, first {missing[0]}"
        )
    misshapen = [entry for entry in info["mismatched_keys"] if not any(head in str(entry) for head in _HEADS)]
    if misshapen:
        raise InputError.at(pointer, f"a weight has another shape than config.json asks for: {misshapen[0]}")
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise InputError.at(pointer, f"the weight {name} holds NaN or infinite values")
    nn.Module.to(model, device)
    model.eval()
    return model


def loaded(folder: Path, pointer: str, what: str, load: Callable[[], _T]) -> _T:
    """What `load` returns; InputError where it cannot read the files, which `what` says for people."""
    try:
        return load()
    except InputError:
        raise
    except Exception as error:  # transformers raises nearly anything on files that are broken
        reason = str(error).replace(str(folder), "the folder") or type(error).__name__
        raise InputError.at(pointer, f"{what} could not be loaded: {reason}") from error
