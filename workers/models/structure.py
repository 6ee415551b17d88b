"""What a transformer is made of, found by its structure and behaviour, not by its name."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from layerdrift.contract.errors import InputError


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The list of the model's blocks: the one ModuleList as long as its configured depth.

    Raises:
        InputError: there is no such list, or more than one.
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise InputError(
            f"the blocks of {type(model).__name__} could not be found: {len(found)} module lists have its "
            f"configured depth of {depth}"
        )
    return found[0]


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token sees only those before it: changing the last token then leaves the first one's states alone."""
    vocabulary = model.config.vocab_size
    ids = torch.arange(10, 14, device=model.device).remainder(vocabulary)[None]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 7) % vocabulary
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        first, second = (
            model(input_ids=tokens, attention_mask=mask).last_hidden_state[:, 0] for tokens in (ids, other)
        )
    return torch.equal(first, second)


def parameters_before(model: nn.Module, block: int) -> list[nn.Parameter]:
    """All that the states at layer `block` depend on: the embeddings' and the first `block` blocks' parameters.

    Read off autograd's graph of one small run, so that what a model keeps beside its blocks (a shared position bias,
    say) is counted where it is used. 0 gives the embeddings; at the last layer a final norm belongs to it.

    Raises:
        InputError: the model has fewer blocks.
    """
    depth = len(blocks_of(model))
    if block > depth:
        raise InputError.at("/finetune/freeze_first", f"the model has {depth} blocks; {block} of them cannot be frozen")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.ones(1, 4, dtype=torch.int64, device=parameters[0].device)
    with torch.enable_grad():
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
        gradients = torch.autograd.grad(states[block].sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


PartName = Literal["embeddings", "attention", "mlp", "norm"]


def weight_groups(model: nn.Module) -> list[dict[PartName, list[str]]]:
    """The names of the parameters of layers 0 (embeddings) to L, by part.

    A norm is known by its class, attention by a module of that name around it; the rest of a block is its MLP.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: list[dict[PartName, list[str]]] = [
        {"embeddings": [names[id(parameter)] for parameter in parameters_before(model, 0)]}
    ]
    for block in blocks_of(model):
        parts: dict[PartName, list[str]] = {}
        for path, module in block.named_modules():
            for parameter in module.parameters(recurse=False):
                parts.setdefault(_part(path, module), []).append(names[id(parameter)])
        groups.append(parts)
    return groups


def _part(path: str, module: nn.Module) -> PartName:
    if "norm" in type(module).__name__.lower():
        return "norm"
    return "attention" if "att" in path.lower() else "mlp"
