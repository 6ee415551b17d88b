"""What a transformer is made of, found by its structure and behaviour, not by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from layerdrift.contract.errors import InputError
from workers.models.device import FATAL

CAUSAL_TOLERANCE = 1e-4
"""A later token may move earlier states by this share of what it moves its own: kernels of experts round otherwise."""

HALF_TOLERANCE = 1e-2
"""The same of models in bfloat16 or float16."""

_PROBE_TOKENS = 12
_CHANGED_POSITIONS = (3, 7, 11)


class NotBlockwise(Exception):
    """The blocks of a model cannot run one at a time; the text says why. The whole model may."""


def block_list(model: nn.Module) -> nn.ModuleList:
    """The list of the model's blocks: the one ModuleList as long as its configured depth.

    Raises:
        InputError: there is no such list, or more than one.
    """
    depth = _depth(model)
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if len(found) != 1:
        raise InputError(
            f"the blocks of {type(model).__name__} could not be found: {len(found)} module lists have its configured "
            f"depth of {depth}; there must be exactly one, of whole blocks. This architecture is not supported"
        )
    return found[0]


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """The model's blocks in the order in which they run, blocks 1 to L. A block that runs several times is named again.

    Raises:
        InputError: they cannot be found.
    """
    try:
        return list(block_list(model))
    except InputError:
        shared = _shared_blocks(model)
        if not shared:
            raise
        return shared


def shares_blocks(model: nn.Module) -> bool:
    """Whether one block runs several times, as in ALBERT: then no block can be changed or frozen without the others."""
    blocks = blocks_of(model)
    return len({id(block) for block in blocks}) < len(blocks)


def _depth(model: nn.Module) -> int | None:
    depth: int | None = getattr(model.config, "num_hidden_layers", None)
    return depth


def _shared_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost ModuleList that run as often as the configured depth, call by call; else none."""
    short = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not isinstance(model, PreTrainedModel) or not short:
        return []
    calls: list[nn.Module] = []
    members = {id(member): member for one in short for member in one}
    handles = [member.register_forward_hook(lambda module, *_: calls.append(module)) for member in members.values()]
    try:
        with torch.no_grad():
            model(**probe_inputs(model, texts=1, tokens=4))
    finally:
        for handle in handles:
            handle.remove()
    found = [(one, ran) for one in short if len(ran := _calls_of(one, calls)) == _depth(model)]
    if not found:
        return []
    outermost, ran = found[0]
    inside = {id(module) for module in outermost.modules()}
    return ran if all(id(one) in inside for one, _ in found) else []  # else parts of blocks, as in XLM


def _calls_of(modules: nn.ModuleList, calls: list[nn.Module]) -> list[nn.Module]:
    members = {id(member) for member in modules}
    return [module for module in calls if id(module) in members]


def probe_inputs(model: nn.Module, texts: int, tokens: int) -> dict[str, Tensor]:
    """A small batch of tokens that every vocabulary has, without padding."""
    device = next(model.parameters()).device
    vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
    ids = (torch.arange(texts * tokens, device=device) * 7 + 3).remainder(vocabulary).view(texts, tokens)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class BlockStates:
    """What went into block 1 and came out of every block while the model ran, as the blocks passed it on."""

    def __init__(self, copies: bool) -> None:
        self.copies = copies
        self.first: Any = None
        self.outputs: list[Any] = []

    def noted(self, value: Any) -> Tensor | None:
        """The state in what a block takes or answers, in memory of its own where blocks write into others' states."""
        state = first_tensor(value)
        return state.clone() if self.copies and state is not None else state


@contextmanager
def recorded_blocks(model: nn.Module, copies: bool = False) -> Iterator[BlockStates]:
    """Inside, each run of the model fills the yielded record anew."""
    record = BlockStates(copies)
    blocks = blocks_of(model)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not record.outputs:
            record.first = record.noted(args or (kwargs.get("hidden_states"), *kwargs.values()))

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        record.outputs.append(record.noted(output))

    distinct = {id(block): block for block in blocks}.values()
    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in distinct]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(value: Any) -> Tensor | None:
    """The first floating tensor in what a block takes or answers: a tensor, a tuple or a mapping of some."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    inside = value.values() if hasattr(value, "values") else value if isinstance(value, tuple | list) else ()
    return next((found for one in inside if (found := first_tensor(one)) is not None), None)


def run_states(model: nn.Module, inputs: dict[str, Tensor], copies: bool = False) -> list[Tensor]:
    """The states at layers 0 to L, laid out as the blocks pass them on; gradients flow where they are enabled.

    Layer 0 is what goes into block 1, layer i what block i puts out; the last is what the model itself puts out, which
    is after a final norm where there is one.

    Args:
        copies: take copies at once, for models whose blocks write into the states that others passed on.

    Raises:
        InputError: a block passes no tensor on, or the blocks did not run once each.
    """
    with recorded_blocks(model, copies) as record:
        last = model(**inputs).last_hidden_state
    depth = len(blocks_of(model))
    states = [record.first, *record.outputs[:-1], last]
    if len(states) != depth + 1 or any(not isinstance(state, Tensor) for state in states):
        raise InputError(
            f"{type(model).__name__} has {depth} blocks, but returned {len(record.outputs)} states: its layers "
            "cannot be told apart"
        )
    return states


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a token sees only those before it: changing a later one then leaves the states of earlier ones alone.

    Tried at several positions, with a tolerance: expert kernels round otherwise when other tokens change.
    """
    inputs = probe_inputs(model, texts=1, tokens=_PROBE_TOKENS)
    tolerance = HALF_TOLERANCE if model.dtype in (torch.bfloat16, torch.float16) else CAUSAL_TOLERANCE
    ids = inputs["input_ids"]
    vocabulary = int(model.config.get_text_config().vocab_size)
    with torch.inference_mode():
        before = model(**inputs).last_hidden_state
        for position in _CHANGED_POSITIONS:
            other = ids.clone()
            other[0, position] = (other[0, position] + 7) % vocabulary
            change = (model(**inputs | {"input_ids": other}).last_hidden_state - before).float().norm(dim=-1)[0]
            if float(change[:position].max()) > tolerance * float(change[position]):
                return False
    return True


def parameters_before(model: nn.Module, block: int) -> list[nn.Parameter]:
    """All that the states at layer `block` depend on: the embeddings' and the first `block` blocks' parameters.

    Read off autograd's graph of one small run, so that what a model keeps beside its blocks (a shared position bias,
    say) is counted where it is used. 0 gives the embeddings; at the last layer a final norm belongs to it.

    Raises:
        InputError: the model has fewer blocks, or has no gradient.
    """
    depth = len(blocks_of(model))
    if block > depth:
        raise InputError.at("/finetune/freeze_first", f"the model has {depth} blocks; {block} of them cannot be frozen")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.ones(1, 4, dtype=torch.int64, device=parameters[0].device)
    with torch.enable_grad():
        states = run_states(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        try:
            gradients = torch.autograd.grad(states[block].sum(), parameters, allow_unused=True)
        except FATAL:
            raise
        except RuntimeError as error:  # blocks that write over what their gradient needs, as in RWKV
            name = type(model).__name__
            raise InputError(
                f"could not determine which parameters layer {block} of {name} depends on: {error}"
            ) from error
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def embedding_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """What layer 0 depends on, read off autograd's graph of one small run, without a gradient.

    Args:
        model: whose floating parameters need no gradient otherwise.
    """
    asked = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    for parameter in asked:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            first = run_states(model, probe_inputs(model, texts=1, tokens=4))[0]
        found, waiting, seen = set[int](), [first.grad_fn], set[Any]()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            waiting += [before for before, _ in node.next_functions]
        return [parameter for parameter in asked if id(parameter) in found]
    finally:
        for parameter in asked:
            parameter.requires_grad_(False)


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
        groups.append({part: [names[id(one)] for one in found.values()] for part, found in block_parts(block).items()})
    return groups


def block_parts(block: nn.Module) -> dict[PartName, dict[str, nn.Parameter]]:
    """The parameters of a block by part, each under its name inside the block."""
    parts: dict[PartName, dict[str, nn.Parameter]] = {}
    for path, module in block.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            parts.setdefault(_part(path, module), {})[f"{path}.{leaf}" if path else leaf] = parameter
    return parts


def _part(path: str, module: nn.Module) -> PartName:
    if "norm" in type(module).__name__.lower():
        return "norm"
    return "attention" if "att" in path.lower() else "mlp"
