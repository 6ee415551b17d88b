"""The tensors in a checkpoint's files, read a part of a model at a time.

Names in the files become parameters as transformers itself makes them, fused experts and prefixes of heads included.
That part of transformers is semi-internal: its version is pinned, and every family is tested.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from backends.sources.checkpoint_files import INDEX, WEIGHTS
from layerdrift.contract.errors import InputError
from workers.models.loading import HEADS, loaded
from workers.models.staging import refuse_untaken
from workers.models.structure import NotBlockwise

PART_NUMBERS = 1 << 22
"""Numbers that are looked at together for NaN."""

_STORED = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class StoredTensor(NamedTuple):
    """A tensor in a file of the checkpoint, under the name that safetensors gives its type."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many it has."""
        found = 1
        for size in self.shape:
            found *= size
        return found

    @property
    def bytes(self) -> int:
        """What it takes in its file."""
        kind = _STORED.get(self.dtype)
        return self.numbers * (kind.itemsize if kind is not None else 1)


class ModelTensors:
    """Fills a model without weights from the files of a checkpoint, part by part.

    Args:
        stored: as `stored_tensors` gives them. dtype: of the weights. device: where they go.
        part_of: the number of the part that a parameter is in; None: it is never filled.

    Attributes:
        bytes_read: of the files so far.

    Raises:
        InputError: weights are missing, misshapen or not taken up.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stored: dict[str, StoredTensor],
        folder: Path,
        pointer: str,
        device: torch.device,
        part_of: Callable[[str], int | None],
    ) -> None:
        self.bytes_read = 0
        self._model, self._stored, self._folder, self._pointer = model, stored, folder, pointer
        self._device = device
        self._dtype = model.dtype
        self._part_of = part_of
        self._mapping: list[Any] = get_model_conversion_mapping(model)
        self._keys = self._grouped()

    def bytes_of(self, part: int) -> int:
        """What a part takes in its files."""
        return sum(self._stored[key].bytes for key in self._keys[part])

    @torch.no_grad()
    def fill(self, part: int) -> None:
        """Gives the parameters of a part their weights.

        Raises:
            InputError: a file is broken, or a weight is misshapen, NaN or infinite.
        """
        loaded(self._folder, self._pointer, "the weights", lambda: self._read(part))
        for name, parameter in self._model.named_parameters():
            if self._part_of(name) == part and not parameter.is_meta and not _finite(parameter):
                self._refuse(f"the weight {name} contains NaN or infinite values")

    def require(self, missing: list[str]) -> None:
        """InputError where one of these parameters belongs to no head."""
        needed = sorted(name for name in missing if not any(head in name for head in HEADS))
        if needed:
            self._refuse(f"the weights lack {len(needed)} tensors that config.json requires, first {needed[0]}")

    def _grouped(self) -> dict[int, list[str]]:
        """The tensors in the files by part."""
        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        model = self._model
        own, prefix = model.state_dict(), model.base_model_prefix
        groups: dict[int, list[str]] = defaultdict(list)
        taken, untaken, converted = set[str](), list[str](), False
        for key, tensor in self._stored.items():
            name, pattern = rename_source_key(key, renamings, converters, prefix, own)
            if name not in own and key in own:
                name, pattern = rename_source_key(key, [], [], prefix, own)
            if name not in own:
                untaken.append(key)
                continue
            if pattern is None and tuple(own[name].shape) != tensor.shape and not any(head in name for head in HEADS):
                self._refuse(f"a weight does not have the shape that config.json requires: {key}")
            converted = converted or pattern is not None
            taken.add(name)
            part = self._part_of(name)
            if part is not None:
                groups[part].append(key)
        body = {name for name, _ in (*model.named_children(), *model.named_parameters(recurse=False))}
        refuse_untaken(untaken, body, prefix, self._pointer)
        if not converted:  # what is made of several tensors is looked for when its part is read
            tied = set(dict(getattr(model, "all_tied_weights_keys", None) or {}))
            self.require([name for name, _ in model.named_parameters() if name not in taken | tied])
        return groups

    def _read(self, part: int) -> None:
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            slices = {}
            for key in self._keys[part]:
                name = self._stored[key].file
                if name not in files:
                    files[name] = stack.enter_context(safe_open(self._folder / name, framework="pt"))
                slices[key] = files[name].get_slice(key)
                self.bytes_read += self._stored[key].bytes
            info, _ = convert_and_load_state_dict_in_model(
                self._model,
                slices,
                LoadStateDictConfig(
                    weight_mapping=self._mapping,
                    dtype=self._dtype,
                    dtype_plan=self._model._get_dtype_plan(self._dtype),
                    device_map={"": self._device},
                ),
            )
        misshapen = [str(one) for one in info.mismatched_keys if not any(head in str(one) for head in HEADS)]
        if misshapen:
            self._refuse(f"a weight does not have the shape that config.json requires: {sorted(misshapen)[0]}")
        if info.conversion_errors:
            self._refuse(f"a weight could not be converted: {next(iter(info.conversion_errors.values()))}")

    def _refuse(self, reason: str) -> None:
        raise InputError.at(self._pointer, reason)


def stored_tensors(folder: Path, pointer: str) -> dict[str, StoredTensor]:
    """The tensors in the files of a checkpoint by name; InputError where the index names one that is not there."""
    index = folder / INDEX
    if index.exists():
        named: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(named.values()))
    else:
        named, names = {}, [WEIGHTS]
    found: dict[str, StoredTensor] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # no mapping
                    part = file.get_slice(key)
                    found[key] = StoredTensor(name, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise InputError.at(pointer, f"the weights could not be loaded: {name}: {error}") from error
    missing = sorted(key for key in named if key not in found or found[key].file != named[key])
    if missing:
        raise InputError.at(
            pointer, f"{INDEX} names {len(missing)} tensors that are not in the file it says, first {missing[0]}"
        )
    return found


def main_dtype(stored: dict[str, StoredTensor]) -> torch.dtype:
    """The precision that most of the weights are stored in."""
    numbers: Counter[torch.dtype] = Counter()
    for tensor in stored.values():
        if tensor.dtype in _STORED:
            numbers[_STORED[tensor.dtype]] += tensor.numbers
    return numbers.most_common(1)[0][0] if numbers else torch.float32


def tensors_in_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Some rows at a time, in the same memory."""
    yield from tensor.split(max(1, PART_NUMBERS // max(1, tensor[0].numel()))) if tensor.ndim else (tensor,)


def set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts a weight where a parameter of this name was."""
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def buffers_to(model: nn.Module, device: torch.device) -> None:
    """Moves all buffers; NotBlockwise where one has no value."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                raise NotBlockwise(f"the buffer {name} of {type(module).__name__} is made of its weights")
            module._buffers[name] = buffer.to(device)


def _finite(parameter: Tensor) -> bool:
    return not parameter.is_floating_point() or all(
        bool(torch.isfinite(part).all()) for part in tensors_in_parts(parameter)
    )
