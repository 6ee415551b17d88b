"""A checkpoint of which one block at a time is in memory; all that is not a block stays.

Weights keep the precision of their files where the device multiplies it. Knows nothing of jobs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from layerdrift.contract.errors import InputError
from workers.models.checkpoint_tensors import ModelTensors, buffers_to, main_dtype, set_parameter, stored_tensors
from workers.models.device import fast_dtype
from workers.models.loading import body_class, is_multimodal, is_quantised, read_config
from workers.models.structure import NotBlockwise, block_list

REST = -1
"""The number of the part that is no block."""


class BlockwiseModel(ABC):
    """A model without heads of which one block at a time has its weights; all that is not a block has them always.

    Args:
        model: its blocks' parameters are on the meta device. device: where parameters go.

    Raises:
        NotBlockwise: it has no list of blocks of its configured depth.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.model.config.use_cache = False  # keys and values of suspended passes would be kept
        try:
            self.blocks = block_list(model)
        except InputError as error:
            raise NotBlockwise(error.detail) from error

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @contextmanager
    def block(self, number: int) -> Iterator[nn.Module]:
        """Inside, block number 0 to depth - 1 has its weights.

        Raises:
            InputError: a weight is missing, misshapen, NaN or infinite, or a file is broken.
        """
        self.fill(number)
        try:
            yield self.blocks[number]
        finally:
            self.empty(number)

    @abstractmethod
    def fill(self, number: int) -> None:
        """Gives a block its weights."""

    def empty(self, number: int) -> None:
        """Takes them away again."""
        for module in self.blocks[number].modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None and not self.stays(parameter):
                    module._parameters[leaf] = _empty(parameter)

    def stays(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter inside a block stays in memory."""
        return False


class BlockFiles(BlockwiseModel):
    """A checkpoint whose blocks are read from its files.

    Args:
        folder: the staged checkpoint. pointer: what in the request errors point at.
        dtype: of the weights; None: that of the files, where the device multiplies it.

    Attributes:
        tensors: of the files.

    Raises:
        NotBlockwise: its blocks cannot run one at a time; the whole model may.
        InputError: weights are missing, misshapen or not taken up, or the files are broken.
    """

    def __init__(self, folder: Path, pointer: str, device: torch.device, dtype: torch.dtype | None = None) -> None:
        self.folder, self.pointer = folder, pointer
        config = read_config(folder, pointer)
        if is_multimodal(config):
            raise NotBlockwise(f"{config.model_type} is multimodal")
        if is_quantised(config):
            raise NotBlockwise("its weights are quantised, which transformers turns back for a whole model alone")
        stored = stored_tensors(folder, pointer)
        self.dtype = dtype or usable_dtype(main_dtype(stored), device)
        try:
            model = without_weights(config, self.dtype)
        except Exception as error:  # the whole model may be built all the same
            raise NotBlockwise(f"it cannot be built without its weights: {str(error).splitlines()[0]}") from error
        super().__init__(model, device)
        self._prefix = next(name for name, module in self.model.named_modules() if module is self.blocks)
        self._shared = self._shared_parameters()
        self._kept: set[int] = set()
        self.tensors = ModelTensors(self.model, stored, folder, pointer, device, self._part_of)
        self._fill_rest()

    def fill(self, number: int) -> None:
        self.tensors.fill(number)
        missing = sorted(name for name, one in self.blocks[number].named_parameters() if one.is_meta)
        if missing:
            raise InputError.at(self.pointer, f"block {number + 1} lacks {len(missing)} tensors, first {missing[0]}")

    def stays(self, parameter: nn.Parameter) -> bool:
        return id(parameter) in self._kept

    @contextmanager
    def stand_ins(self) -> Iterator[PreTrainedModel]:
        """Inside, the model runs whole: every block has the weights of the first block that is built like it.

        For what depends on the architecture and not on the weights, such as whether a token sees later ones.
        """
        firsts: dict[Any, int] = {}
        kinds = [firsts.setdefault(_built_like(block), number) for number, block in enumerate(self.blocks)]
        try:
            for number in firsts.values():
                self.fill(number)
            for number, first in enumerate(kinds):
                if number != first:
                    _share(self.blocks[first], self.blocks[number])
            yield self.model
        finally:
            for number in range(self.depth):
                self.empty(number)

    def _part_of(self, name: str) -> int:
        return REST if name in self._shared else self._block_of(name)

    def _block_of(self, name: str) -> int:
        head = f"{self._prefix}."
        return int(name.removeprefix(head).split(".")[0]) if name.startswith(head) else REST

    def _shared_parameters(self) -> set[str]:
        """Names of parameters that several blocks, or a block and the rest, own: they stay in memory."""
        every = dict(self.model.named_parameters(remove_duplicate=False))
        owners: dict[int, set[int]] = defaultdict(set)
        for name, parameter in every.items():
            owners[id(parameter)].add(self._block_of(name))
        tied = dict(getattr(self.model, "all_tied_weights_keys", None) or {})
        shared = {name for name, parameter in every.items() if len(owners[id(parameter)]) > 1}
        return shared | set(tied) | set(tied.values())

    def _fill_rest(self) -> None:
        self.tensors.fill(REST)
        self.model.tie_weights()
        empty = {
            name: one for name, one in self.model.named_parameters() if one.is_meta and self._part_of(name) == REST
        }
        self.tensors.require(list(empty))
        for name, parameter in empty.items():  # a pooler, which no layer depends on
            set_parameter(self.model, name, torch.zeros(parameter.shape, dtype=parameter.dtype, device=self.device))
        buffers_to(self.model, self.device)
        self._kept = {id(one) for one in self.model.parameters() if not one.is_meta}


def usable_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision that weights of a file run in: their own, or float32 where the device does not multiply it."""
    if stored == torch.bfloat16:
        return fast_dtype(device)
    if stored == torch.float16 and device.type == "cuda":
        return torch.float16
    return torch.float32


def without_weights(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model in evaluation mode with parameters on the meta device; buffers that are not stored have their values."""
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = body_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    model.eval()
    return model


def _built_like(block: nn.Module) -> Any:
    """Equal for blocks that can stand in for each other."""
    return type(block), tuple((name, type(one)) for name, one in block.named_modules()), tuple(
        (name, tuple(one.shape)) for name, one in block.named_parameters()
    )  # fmt: skip


def _share(source: nn.Module, target: nn.Module) -> None:
    modules = dict(target.named_modules())
    for path, module in source.named_modules():
        modules[path]._parameters.update(module._parameters)


def _empty(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
