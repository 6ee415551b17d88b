"""PEFT adapters: merged into a copy of their base model, so that every later stage sees a plain checkpoint."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from layerdrift.backends.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from layerdrift.contract.errors import InputError
from workers.models.loading import load_body, load_causal_lm, load_classifier, loaded

_LABELLED_HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


def merge_adapter(base: Path, adapter: Path, target: Path, pointer: str) -> None:
    """Writes the base model with the adapter's changes in it, and its head where the adapter holds one.

    Raises:
        InputError: the adapter is broken, NaN, or fits another base.
    """
    weights = loaded(adapter, pointer, "the adapter", lambda: load_file(adapter / ADAPTER_WEIGHTS))
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError.at(pointer, f"the adapter's weight {name} holds NaN or infinite values")
    model = _base_for(base, adapter, weights, pointer)
    merged = loaded(adapter, pointer, "the adapter", lambda: _merged(model, adapter))
    merged.save_pretrained(target, safe_serialization=True)


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft only warns of tensors that are missing or fit nowhere
        wrapped = PeftModel.from_pretrained(model, str(adapter), is_trainable=False, local_files_only=True)
    merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    return merged


def _base_for(base: Path, adapter: Path, weights: dict[str, Tensor], pointer: str) -> PreTrainedModel:
    """The base model under the kind of head that the adapter was trained for."""
    task = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("task_type")
    cpu = torch.device("cpu")
    if task == "SEQ_CLS":
        labels = next((len(tensor) for name, tensor in weights.items() if name.endswith(_LABELLED_HEADS)), 2)
        return load_classifier(base, pointer, cpu, [f"LABEL_{index}" for index in range(labels)])
    return load_causal_lm(base, pointer, cpu) if task == "CAUSAL_LM" else load_body(base, pointer, cpu)
