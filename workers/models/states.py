"""Hidden states at the layers that the blocks define, whatever a model lists as its own `hidden_states`.

Layer 0 is what goes into block 1, layer i what block i puts out; the last layer is what the model itself puts out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from layerdrift.contract.errors import InputError
from workers.models.structure import blocks_of, probe_inputs, run_states
from workers.models.texts import Batch, known_tokens, padded_for, reads_padding

_CHECK_TEXTS, _CHECK_TOKENS = 2, 5

Edit = Callable[[Tensor], Tensor]
"""Rows of tokens to as many others; [N, D] -> [N, D], float32, in the processor's memory."""


@dataclass(frozen=True)
class StateReader:
    """Reads the states of every model of one architecture.

    order: where texts, tokens and features lie in what a block passes on; (0, 1, 2) nearly everywhere, (1, 0, 2) in
    XLNet. The model's own output has texts first. copies: states are copied as they pass, since later blocks overwrite
    them. reads_padding: texts of different lengths are read apart, since padding would change their states.
    """

    layers: int
    width: int
    order: tuple[int, int, int] = (0, 1, 2)
    copies: bool = False
    reads_padding: bool = False

    @staticmethod
    def of(model: PreTrainedModel, pointer: str) -> StateReader:
        """Runs one batch and checks what comes: L + 1 states of one width, every element written.

        Raises:
            InputError: the layers cannot be compared; it says what was found, at `pointer`.
        """
        try:
            states, overwritten = _checked_states(model)
        except InputError as error:
            raise InputError.at(pointer, error.detail) from error
        name = type(model).__name__
        order = _order(states[0], states[-1].shape[-1])
        if order is None:
            raise InputError.at(pointer, f"block 1 of {name} takes states of shape {_shape(states[0])}, {_EXPECTED}")
        width = states[0].shape[order[2]]
        reader = StateReader(len(states), width, order, overwritten, reads_padding(model))
        for layer, state in enumerate(states):
            kept = state if layer == len(states) - 1 else reader.standard(state, _CHECK_TOKENS)
            if kept.shape != (_CHECK_TEXTS, _CHECK_TOKENS, reader.width):
                raise InputError.at(pointer, _misshapen(name, layer, kept, reader.width))
            if not bool(torch.isfinite(kept).all()):
                side = pointer.strip("/").split("/")[0]
                found = f"the activations of the {side} model are NaN or infinite at layer {layer}, or were not written"
                raise InputError.at(pointer, found)
        return reader

    def standard(self, state: Tensor, tokens: int) -> Tensor:
        """What a block passes on, as [B, T, D]; what it pads the texts with beyond T tokens is cut off."""
        return state.permute(self.order)[:, :tokens]

    def states(self, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
        """The states at every layer, L + 1 times [B, T, D], on the CPU."""
        known_tokens(model, batch)
        if self.reads_padding and bool((batch.attention_mask == 0).any()):
            return self._states_by_length(model, batch)
        with torch.inference_mode(), padded_for(model, batch) as inputs:
            *inner, last = run_states(model, inputs, self.copies)
        tokens = batch.input_ids.shape[1]
        return [*(self.standard(state, tokens).cpu() for state in inner), last[:, :tokens].cpu()]

    def _states_by_length(self, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
        """The same, read in parts that need no padding; zeros where the batch has padding."""
        found: list[Tensor] = []
        for rows, part in batch.by_length():
            states = self.states(model, part)
            if not found:
                found = [state.new_zeros(*batch.input_ids.shape, self.width) for state in states]
            for whole, state in zip(found, states, strict=True):
                whole[rows, : state.shape[1]] = state
        return found

    @contextmanager
    def edited(self, body: nn.Module, layer: int, edit: Edit, chosen: Tensor) -> Iterator[None]:
        """Inside, every run of the body has its states at a layer edited.

        Args:
            chosen: [B, T] bool, the tokens that are edited; all others stay as they are.
        """
        blocks, runs = blocks_of(body), 0

        def changed(state: Tensor, order: tuple[int, int, int]) -> Tensor:
            view = state.clone().permute(order)
            places = chosen.to(state.device)
            inside = view[:, : places.shape[1]]
            inside[places] = edit(inside[places].float().cpu()).to(inside)
            return view.permute([order.index(axis) for axis in range(3)])

        def before_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            nonlocal runs
            number, runs = runs, (runs + 1) % calls
            if number != call:
                return args, kwargs
            if args:
                return (changed(args[0], self.order), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": changed(kwargs["hidden_states"], self.order)}

        def after_body(_: nn.Module, __: tuple[Any, ...], output: ModelOutput) -> ModelOutput:
            last = changed(output["last_hidden_state"], (0, 1, 2))
            return type(output)(**{**output, "last_hidden_state": last})

        if layer < len(blocks):
            same = [number for number, block in enumerate(blocks) if block is blocks[layer]]
            calls, call = len(same), same.index(layer)
            handle = blocks[layer].register_forward_pre_hook(before_block, with_kwargs=True)
        else:
            handle = body.register_forward_hook(after_body)
        try:
            with torch.inference_mode():
                yield
        finally:
            handle.remove()


_EXPECTED = "not [texts, tokens, features]: its layers cannot be compared"


def _misshapen(name: str, layer: int, state: Tensor, width: int) -> str:
    if state.dim() == 3 and state.shape[-1] != width:
        return (
            f"the states of {name} have width {width} up to the last block, but {state.shape[-1]} at layer {layer}: "
            "layers of different widths cannot be compared in one report"
        )
    return f"the states of {name} at layer {layer} have shape {_shape(state)}, {_EXPECTED}"


def _shape(state: Tensor) -> str:
    return str(list(state.shape))


def _order(state: Tensor, width: int) -> tuple[int, int, int] | None:
    """Which axes are texts, tokens and features: told by their lengths, which differ in the batch of the check."""
    if state.dim() != 3:
        return None
    lengths = list(state.shape)
    texts = [axis for axis in range(3) if lengths[axis] == _CHECK_TEXTS]
    if not texts:
        return None
    rest = [axis for axis in range(3) if axis != texts[0]]
    features = next((axis for axis in reversed(rest) if lengths[axis] == width), rest[1])
    tokens = next(axis for axis in rest if axis != features)
    return (texts[0], tokens, features) if lengths[tokens] >= _CHECK_TOKENS else None


def _checked_states(model: PreTrainedModel) -> tuple[list[Tensor], bool]:
    """The states of a small batch, and whether later blocks overwrite those of earlier ones.

    Memory that a model takes and does not write is filled with NaN meanwhile, so that it shows.
    """
    inputs = probe_inputs(model, _CHECK_TEXTS, _CHECK_TOKENS)
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of algorithms that are not deterministic on a GPU
            copied = run_states(model, inputs, copies=True)
            passed = run_states(model, inputs)
        overwritten = any(not torch.equal(one, other) for one, other in zip(copied[:-1], passed[:-1], strict=True))
        return copied, overwritten
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def hidden_states(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """The states at every layer of a model that was not looked at before; L + 1 times [B, T, D], on the CPU."""
    return StateReader.of(model, "").states(model, batch)
