"""A base model with an adapter in it, block by block: each made of the base's while that is in memory.

PEFT itself merges the weights, so they are those of `merge_and_unload` in the base's precision. Base and adapter share
one read of the files.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from layerdrift.contract.errors import InputError
from workers.models.adapters import AdapterFiles, adapter_class, read_adapter
from workers.models.blockwise import BlockFiles, BlockwiseModel, without_weights
from workers.models.checkpoint_tensors import buffers_to
from workers.models.device import FATAL
from workers.models.loading import body_of, loaded
from workers.models.structure import NotBlockwise, block_list


class AdapterBlocks(BlockwiseModel):
    """The tuned model of a pair whose tuned checkpoint is an adapter.

    Args:
        original: the base model. folder: of the adapter. pointer: what in the request errors point at.

    Raises:
        NotBlockwise: the adapter changes more than weights of blocks, or does not merge into them.
        InputError: the adapter is broken, or fits another base.
    """

    def __init__(self, original: BlockFiles, folder: Path, pointer: str = "/tuned/uri") -> None:
        self.pointer, self.dtype, self.folder = pointer, original.dtype, original.folder
        self._original = original
        super().__init__(without_weights(copy.deepcopy(original.model.config), original.dtype), original.device)
        rest, own = dict(original.model.named_parameters()), dict(self.model.named_modules())
        inside = {id(module) for module in self.blocks.modules()}
        for path, module in own.items():
            for leaf in module._parameters if id(module) not in inside else ():
                module._parameters[leaf] = rest.get(f"{path}.{leaf}" if path else leaf, module._parameters[leaf])
        buffers_to(self.model, original.device)
        files = read_adapter(folder, self.pointer)
        self._wrapped = loaded(folder, self.pointer, "the adapter", lambda: _wrapped(original, files))
        self._tuned_blocks = block_list(body_of(self._wrapped))
        self._require_blocks_alone(files)

    def fill(self, number: int) -> None:
        tuned = dict(self._tuned_blocks[number].named_modules())
        sources = dict(self._original.blocks[number].named_modules())
        with torch.no_grad():
            for path, module in self.blocks[number].named_modules():
                module._parameters.update(sources[path]._parameters)
                layer = tuned.get(path)
                if isinstance(layer, BaseTunerLayer):
                    self._merge(layer, module)

    def _merge(self, layer: Any, module: nn.Module) -> None:
        """Gives a module the weights of the base with the adapter's change."""
        inner: nn.Module = layer.get_base_layer()
        for leaf, weight in module._parameters.items():
            inner._parameters[leaf] = None if weight is None else nn.Parameter(weight.clone(), requires_grad=False)
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:  # NaN after the merge
            raise InputError.at(self.pointer, f"the adapter cannot be merged: {error}") from error
        except FATAL:
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise NotBlockwise(f"the adapter does not merge into a block: {error}") from error
        layer.merged_adapters.clear()
        for leaf, merged in inner._parameters.items():
            module._parameters[leaf] = merged
            inner._parameters[leaf] = None if merged is None else nn.Parameter(merged.to("meta"), requires_grad=False)

    def _require_blocks_alone(self, files: AdapterFiles) -> None:
        inside = {id(module) for module in self._tuned_blocks.modules()}
        layers = [one for one in self._wrapped.modules() if isinstance(one, BaseTunerLayer)]
        if not layers or any(id(layer) not in inside for layer in layers) or files.stored.get("modules_to_save"):
            raise NotBlockwise("the adapter changes more than the weights of blocks")
        if files.config.is_prompt_learning or any(not hasattr(layer, "merge") for layer in layers):
            raise NotBlockwise("the adapter does not merge into weights")


def _wrapped(original: BlockFiles, files: AdapterFiles) -> PreTrainedModel:
    """The model under the head that the adapter was trained with: without weights, but for the adapter's own."""
    config = copy.deepcopy(original.model.config)
    kind = adapter_class(config, files)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = kind.from_config(config, dtype=original.dtype, trust_remote_code=False)
    files.config.task_type = None  # PEFT's classes for tasks add heads of their own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice for training
        wrapped: Any = get_peft_model(model, files.config)
        prefix = wrapped.base_model.prefix
        for module in wrapped.modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta and _of_adapter(wrapped, parameter, prefix):
                    empty = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype, device=original.device)
                    module._parameters[leaf] = nn.Parameter(empty, requires_grad=False)
        given: Any = set_peft_model_state_dict(wrapped, files.weights)
    if given.unexpected_keys:
        first = sorted(given.unexpected_keys)[0]
        raise InputError.at(
            files.pointer,
            f"{len(given.unexpected_keys)} tensors of the adapter belong to no module that it names, first {first}",
        )
    missing = [name for name, one in wrapped.named_parameters() if prefix in name and bool(one.isnan().any())]
    if missing:
        raise InputError.at(files.pointer, f"the adapter lacks {len(missing)} required tensors, first {missing[0]}")
    return model


def _of_adapter(wrapped: Any, parameter: nn.Parameter, prefix: str) -> bool:
    return any(prefix in name for name, one in wrapped.named_parameters() if one is parameter)
