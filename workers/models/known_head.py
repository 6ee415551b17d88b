"""A model's head on states that are known: the rest of the model is never in memory.

The model's own code runs, scaling and caps of its logits included; only its body answers with the known states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from workers.models.checkpoint_tensors import ModelTensors, buffers_to, stored_tensors
from workers.models.device import FATAL
from workers.models.loading import Headed, body_of, head_kind, is_quantised, loaded, loader_of, read_config
from workers.models.prefix import UNLIKE
from workers.models.texts import Batch, padded_for

LOGITS_BYTES = 16 << 20
"""Logits of some tokens over the whole vocabulary, in float32, that are in memory at a time."""


class _Known(BaseModelOutputWithPast):
    """What a body answers; it has no router's logits and the like."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def load_head(folder: Path, pointer: str, device: torch.device, dtype: torch.dtype) -> Headed | None:
    """A language model or classifier of which the head alone has weights; None where its files hold no whole one.

    None too of other kinds, and of a classifier that reads more of its body than the states of the last layer.

    Raises:
        InputError: a weight is misshapen, NaN or infinite, or a file is broken.
    """
    kind = head_kind(folder, pointer)
    if kind not in ("causal_lm", "classifier"):
        return None
    config = read_config(folder, pointer)
    if is_quantised(config):
        return None

    def build() -> PreTrainedModel:
        with init_empty_weights(include_buffers=False):
            made: PreTrainedModel = loader_of(kind, config).from_config(config, dtype=dtype, trust_remote_code=False)
        made.eval()
        return made

    model = loaded(folder, pointer, "the model", build)
    body = {id(one) for one in body_of(model).parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    head = {name for name, one in every.items() if id(one) not in body} | set(tied) | set(tied.values())
    stored = stored_tensors(folder, pointer)
    ModelTensors(model, stored, folder, pointer, device, lambda name: 0 if name in head else None).fill(0)
    model.tie_weights()
    if any(one.is_meta for name, one in model.named_parameters(remove_duplicate=False) if name in head):
        return None
    buffers_to(model, device)
    found = Headed(kind, model)
    return None if kind == "classifier" and not _answers(found) else found


def is_alone(model: PreTrainedModel) -> bool:
    """Whether no more than a model's head has weights."""
    return any(parameter.is_meta for parameter in body_of(model).parameters())


def _answers(headed: Headed) -> bool:
    """Whether a classifier's head answers on the states of two texts: those of BERT read a pooler in the body."""
    model = headed.model
    width = int(model.config.get_text_config().hidden_size)
    ids = torch.ones(2, 3, dtype=torch.int64)
    batch = Batch(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]), ids.bool(), [0, 1])
    states = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    try:
        found = KnownHead(model, lambda text: states[: 3 - text]).answers(batch)
    except FATAL:
        raise
    except UNLIKE:
        return False
    return found.shape == (2, int(model.config.num_labels or 0)) and bool(found.isfinite().all())


class KnownHead:
    """Logits of a model at texts whose last states are known.

    Args:
        states: of a text by its number, [T, D], as the body puts them out.
    """

    def __init__(self, model: PreTrainedModel, states: Callable[[int], Tensor]) -> None:
        self._model = model
        self._body = body_of(model)
        self._states = states
        self._head: Tensor = next(one for one in model.parameters() if not one.is_meta)
        vocabulary = int(model.config.get_text_config().vocab_size)
        self._tokens = max(1, LOGITS_BYTES // (vocabulary * torch.float32.itemsize))

    def spans(self, batch: Batch) -> Iterator[tuple[int, int]]:
        """The tokens of a batch in parts whose logits fit into memory: from, and before which one."""
        tokens = batch.input_ids.shape[1]
        step = max(1, self._tokens // len(batch.indices))
        for start in range(0, tokens, step):
            yield start, min(tokens, start + step)

    def logits(self, batch: Batch, span: tuple[int, int]) -> Tensor:
        """Of a language model at the tokens of a span, [B, last - first, V]."""
        start, end = span
        with self._known(batch, span):
            ids = batch.input_ids[:, start:end].to(self._head.device)
            found: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return found

    def answers(self, batch: Batch) -> Tensor:
        """Of a classifier, [B, classes]."""
        whole = 0, batch.input_ids.shape[1]
        with self._known(batch, whole), padded_for(self._model, batch, self._head.device) as inputs:
            found: Tensor = self._model(**inputs).logits
        return found

    @contextmanager
    def _known(self, batch: Batch, span: tuple[int, int]) -> Iterator[None]:
        """Inside, the body answers with the known states of a span; zeros stand for those beyond the end of a text."""
        start, end = span
        kept = [self._states(text)[start:end] for text in batch.indices]
        states = kept[0].new_zeros(len(kept), end - start, kept[0].shape[1])
        for row, own in enumerate(kept):
            states[row, : len(own)] = own
        known = states.to(self._head.device, self._head.dtype)
        body: Any = self._body
        body.forward = lambda *_args, **_options: _Known(last_hidden_state=known)
        try:
            yield
        finally:
            del body.__dict__["forward"]
