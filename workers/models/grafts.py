"""Puts parts of the base model into the tuned one, in place, and takes them out again.

One model is in memory: the base model's weights lie on disk, a file for each parameter that may be wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.models.structure import blocks_of, parameters_before


class BaseWeights:
    """The weights of a model's body on disk, and which of them belong to which layer.

    prefix[k]: names of all that the states at layer k depend on. block[k]: names of block k's own (0: the embeddings').
    """

    def __init__(self, body: PreTrainedModel, folder: Path) -> None:
        names = {id(parameter): name for name, parameter in body.named_parameters()}
        blocks = blocks_of(body)
        self.prefix = [
            [names[id(parameter)] for parameter in parameters_before(body, layer)] for layer in range(len(blocks) + 1)
        ]
        self.block = [self.prefix[0], *([names[id(one)] for one in block.parameters()] for block in blocks)]
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "base.safetensors"
        wanted = dict.fromkeys(name for names_of_layer in (*self.prefix, *self.block) for name in names_of_layer)
        parameters = dict(body.named_parameters())
        save_file({name: parameters[name].detach().cpu().contiguous() for name in wanted}, self._path)

    def same(self, body: nn.Module, names: list[str]) -> bool:
        """Whether these parameters of `body` are the base model's already, bit by bit: a graft would change nothing."""
        parameters = dict(body.named_parameters())
        with safe_open(self._path, framework="pt") as base:
            return all(torch.equal(base.get_tensor(name), parameters[name].detach().cpu()) for name in names)

    @contextmanager
    def grafted(self, body: nn.Module, names: list[str]) -> Iterator[None]:
        """Inside, these parameters of `body` are the base model's; afterwards, whatever happens, its own again.

        Of an embedding table that one of the two has more rows of, the common rows are taken.
        """
        parameters = dict(body.named_parameters())
        own: dict[str, Tensor] = {}
        try:
            with safe_open(self._path, framework="pt") as base:
                for name in names:
                    own[name] = parameters[name].detach().clone()
                    _copy_rows(base.get_tensor(name), parameters[name])
            yield
        finally:
            for name, value in own.items():
                _copy_rows(value, parameters[name])


def untied(model: PreTrainedModel) -> bool:
    """Gives a tied output head a copy of its own, so that a change of the embeddings leaves it; whether it was tied.

    An adapter may change one of the two alone, and a graft of the embeddings must not exchange the head.
    """
    head: Any = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        return False
    embeddings: Any = model.get_input_embeddings()
    if head.weight is not embeddings.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone())
    return True


def _copy_rows(source: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        target[: len(source)].copy_(source[: len(target)])
