"""Whole language models, put together from a head and the blocks of a body: for what needs all blocks at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers import PreTrainedModel

from backends.estimates.execution import WRITTEN_BYTES
from workers.models.blockwise import BlockwiseModel
from workers.models.device import best_device, give_memory_back
from workers.models.loading import body_of
from workers.models.structure import block_list


def assembled(
    head: PreTrainedModel, body: BlockwiseModel, block: Callable[[int], AbstractContextManager[object]]
) -> PreTrainedModel:
    """A copy of a head's model with all weights of a body.

    Args:
        head: a model of which the head alone has weights; its body is of the class of `body`. block: inside, a block
        of `body` has its weights.
    """
    model: PreTrainedModel = copy.deepcopy(head)
    own = body_of(model)
    inside = {id(module) for module in body.blocks.modules()}
    _take(own, {name: one for name, one in body.model.named_modules() if id(one) not in inside})
    for number, empty in enumerate(block_list(own)):
        with block(number):
            _take(empty, dict(body.blocks[number].named_modules()))
    model.eval()
    return model


def weight_bytes(head: PreTrainedModel) -> int:
    """What `assembled` would take, in bytes."""
    return sum(parameter.nbytes for parameter in {id(one): one for one in head.parameters()}.values())


def fits_whole(head: PreTrainedModel, models: int = 1) -> bool:
    """Whether so many such models at a time, and half of one for what a generation needs, fit the best device."""
    if best_device().type == "cuda":
        give_memory_back()
        return (2 * models + 1) * weight_bytes(head) <= 2 * torch.cuda.mem_get_info()[0]
    return weight_bytes(head) <= WRITTEN_BYTES


def _take(target: nn.Module, sources: dict[str, nn.Module]) -> None:
    modules = dict(target.named_modules())
    for path, module in sources.items():
        for leaf, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                modules[path]._parameters[leaf] = parameter
        for leaf, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                modules[path]._buffers[leaf] = buffer  # some are stored, such as the biases of routers
