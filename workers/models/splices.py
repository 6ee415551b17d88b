"""Changes the states of real tokens between two blocks while a model runs; what goes on from there sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from workers.models.structure import blocks_of

Edit = Callable[[Tensor], Tensor]
"""Rows of real tokens to as many others; [N, D] -> [N, D], float32, in the processor's memory."""


@contextmanager
def spliced(body: nn.Module, layer: int, edit: Edit, real: Tensor) -> Iterator[None]:
    """Inside, every run of the body has its states at a layer edited, 0: the embeddings' output.

    Args:
        real: [B, T] bool, the tokens that are edited; special ones and padding stay.
    """
    blocks = blocks_of(body)

    def edited(states: Tensor) -> Tensor:
        chosen = real.to(states.device)
        changed = states.clone()
        changed[chosen] = edit(states[chosen].float().cpu()).to(changed)
        return changed

    def before_block(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (edited(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edited(kwargs["hidden_states"])}

    def after_body(_: nn.Module, __: tuple[Any, ...], output: ModelOutput) -> ModelOutput:
        return type(output)(**{**output, "last_hidden_state": edited(output["last_hidden_state"])})

    if layer < len(blocks):
        handle = blocks[layer].register_forward_pre_hook(before_block, with_kwargs=True)
    else:
        handle = body.register_forward_hook(after_body)
    try:
        with torch.inference_mode():
            yield
    finally:
        handle.remove()
