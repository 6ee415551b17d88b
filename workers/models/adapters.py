"""PEFT adapters: merged into a copy of their base model, so that every later stage sees a plain checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from layerdrift.backends.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from layerdrift.contract.errors import InputError
from workers.models.loading import load_body, load_classifier, loaded

_LABELLED_HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


def merge_adapter(base: Path, adapter: Path, target: Path, pointer: str) -> None:
    """Writes the base model with the adapter's changes in it, and its head where the adapter holds one.

    Raises:
        InputError: the adapter is broken, NaN, or fits another base.
    """
    _check_finite(adapter, pointer)
    model = _base_for(base, adapter, pointer)
    merged = loaded(adapter, pointer, "the adapter", lambda: _merged(model, adapter))
    merged.save_pretrained(target, safe_serialization=True)


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft only warns of tensors that are missing or fit nowhere
        wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=False, local_files_only=True)
    merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    return merged


def _base_for(base: Path, adapter: Path, pointer: str) -> PreTrainedModel:
    """The base model under the kind of head that the adapter was trained for."""
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    cpu = torch.device("cpu")
    task = config.get("task_type")
    if task == "SEQ_CLS":
        return load_classifier(base, pointer, cpu, [f"LABEL_{index}" for index in range(_label_count(adapter))])
    if task == "CAUSAL_LM":
        load: Callable[[], Any] = lambda: AutoModelForCausalLM.from_pretrained(  # noqa: E731
            base, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
        found: PreTrainedModel = loaded(base, pointer, "the base model", load)
        return found
    return load_body(base, pointer, cpu)


def _label_count(adapter: Path) -> int:
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            if name.endswith(_LABELLED_HEADS):
                return int(stored.get_slice(name).get_shape()[0])
    return 2


def _check_finite(adapter: Path, pointer: str) -> None:
    def check() -> None:
        with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if not bool(torch.isfinite(stored.get_tensor(name)).all()):
                    raise InputError.at(pointer, f"the adapter's weight {name} holds NaN or infinite values")

    loaded(adapter, pointer, "the adapter", check)
