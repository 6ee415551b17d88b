"""Models that follow from others block by block: one rounded, one that was never trained, one changed at random."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.models.blockwise import BlockFiles, BlockwiseModel, without_weights
from workers.models.checkpoint_tensors import buffers_to, tensors_in_parts
from workers.models.structure import NotBlockwise

DITHER = 0.65
"""Of bfloat16's spacing: how far weights are moved at random before they are rounded to it. The error is then as large
for weights that bfloat16 holds exactly as for those in float32: of both a variance of 0.23 spacings squared."""


def dithered(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Weights moved by up to DITHER of bfloat16's spacing where they lie, either way, uniformly."""
    spacing = torch.ldexp(torch.ones_like(weights), torch.frexp(weights).exponent - 8)  # 8 bits: one of them implicit
    moved = 2 * torch.rand(weights.shape, generator=generator).to(weights.device) - 1
    return weights + DITHER * moved * torch.where(weights == 0, 0.0, spacing)


PADDING_IDS = 2048
"""A batch is padded with an id that none of its texts has: one of the first, as many as a batch has tokens."""


class DitheredBlocks(BlockwiseModel):
    """A model in bfloat16 with dithered weights, each block made of the original's while that is in memory.

    Args:
        tokens: the ids that it will read; of other rows of the embeddings there is only the address.
    """

    def __init__(self, original: BlockFiles, tokens: Iterable[int]) -> None:
        self._original = original
        self._generator = torch.Generator().manual_seed(0)
        model = without_weights(copy.deepcopy(original.model.config), torch.bfloat16)
        table = _table(original.model)
        given = dict(original.model.named_parameters())
        with torch.no_grad():
            for path, module in model.named_modules():
                for leaf in module._parameters:
                    source = given.get(f"{path}.{leaf}" if path else leaf)
                    if source is None or source.is_meta:
                        continue
                    rows = _rows(original.model, tokens) if source is table else None
                    module._parameters[leaf] = self._rounded(source, rows)
        model.tie_weights()
        buffers_to(model, original.device)
        super().__init__(model, original.device)

    def fill(self, number: int) -> None:
        sources = dict(self._original.blocks[number].named_modules())
        with torch.no_grad():
            for path, module in self.blocks[number].named_modules():
                for leaf in module._parameters:
                    source = sources[path]._parameters[leaf]
                    if source is not None:
                        module._parameters[leaf] = self._rounded(source)
                for leaf, buffer in sources[path]._buffers.items():
                    module._buffers[leaf] = buffer

    def _rounded(self, parameter: Tensor, rows: list[int] | None = None) -> nn.Parameter:
        """In parts: on the way a weight takes many times its own memory. rows: those that are read; None: all."""
        found = torch.empty(parameter.shape, dtype=torch.bfloat16, device=parameter.device)
        if rows is not None:
            found[rows] = dithered(parameter[rows].float(), self._generator).to(torch.bfloat16)
            return nn.Parameter(found, requires_grad=False)
        for part, made in zip(tensors_in_parts(parameter), tensors_in_parts(found), strict=True):
            made.copy_(dithered(part.float(), self._generator))
        return nn.Parameter(found, requires_grad=False)


class RandomBlocks(BlockwiseModel):
    """A model of the same configuration that was never trained, drawn as transformers draws it.

    Args:
        seed: of the weights. tokens: as for `DitheredBlocks`.

    Raises:
        NotBlockwise: transformers does not say how a weight is drawn.
    """

    def __init__(self, original: BlockFiles, dtype: torch.dtype, seed: int, tokens: Iterable[int]) -> None:
        self._seed, self._dtype = seed, dtype
        self._shallow: PreTrainedModel | None = None
        super().__init__(without_weights(copy.deepcopy(original.model.config), dtype), original.device)
        drawn_apart = {id(module) for module in self.blocks.modules()}
        if _table(self.model) is not None:
            embeddings: Any = self.model.get_input_embeddings()
            drawn_apart.add(id(embeddings))
            self._draw_rows(embeddings, _rows(self.model, tokens))
        self._draw([module for module in self.model.modules() if id(module) not in drawn_apart], 0)
        buffers_to(self.model, original.device)

    def fill(self, number: int) -> None:
        self._draw(list(self.blocks[number].modules()), 1 + number)

    def _draw(self, modules: list[nn.Module], part: int) -> None:
        """Draws the weights of some modules, each after those inside it."""
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self._seed * 100_003 + part)
            for module in modules:
                for name, one in module._parameters.items():
                    if one is not None:
                        drawn = torch.full_like(one, torch.nan, dtype=self._dtype_of(one), device=self.device)
                        module._parameters[name] = nn.Parameter(drawn, requires_grad=False)
                reset = getattr(module, "reset_parameters", None)
                if callable(reset) and any(one is not None for one in module._parameters.values()):
                    reset()
            for module in reversed(modules):  # what a module says of those inside it comes after what they say
                self.model._init_weights(module)
            for module in modules:
                for name, one in module.named_parameters(recurse=False):
                    if bool(one.isnan().any()):
                        one.copy_(self._constructed(module, name))

    def _dtype_of(self, parameter: Tensor) -> torch.dtype:
        """float32 is kept where transformers keeps it in half precision."""
        return parameter.dtype if self.model._keep_in_fp32_modules_strict else self._dtype

    def _constructed(self, module: nn.Module, name: str) -> Tensor:
        """A weight that transformers leaves as the module's class makes it, from a model of one block."""
        if self._shallow is None:
            config = copy.deepcopy(self.model.config)
            config.num_hidden_layers, config.vocab_size = 1, PADDING_IDS
            self._shallow = type(self.model)(config)
        wanted = module.get_parameter(name)
        for one in self._shallow.modules():
            found = one._parameters.get(name)
            if type(one) is type(module) and found is not None and found.shape == wanted.shape:
                return found
        raise NotBlockwise(f"how {name} of {type(module).__name__} is drawn is not known")

    def _draw_rows(self, embeddings: nn.Embedding, rows: list[int]) -> None:
        few = nn.Embedding(len(rows), embeddings.embedding_dim, dtype=embeddings.weight.dtype, device=self.device)
        self._draw([few], self.depth + 1)
        table = torch.empty(embeddings.weight.shape, dtype=few.weight.dtype, device=self.device)
        table[rows] = few.weight
        embeddings.weight = nn.Parameter(table, requires_grad=False)


CHANGED_RANK, ROUNDINGS = 8, 8
"""Of the random change of a matrix: as of a small LoRA. How often it is scaled anew for what rounding takes of it."""


class PerturbedBlocks(BlockwiseModel):
    """The base model with random changes: each matrix of a block by as much as it differs in the tuned model.

    What a change of that size does by itself, whatever was learned. Each block is made while that of both models is in
    memory; embeddings and what else is in no block are changed alike. See `perturbed_head` for the head.

    Args:
        seed: of the changes, which have rank CHANGED_RANK.
    """

    def __init__(self, original: BlockFiles, tuned: BlockwiseModel, seed: int) -> None:
        self._original, self._tuned, self._seed = original, tuned, seed
        model = without_weights(copy.deepcopy(original.model.config), original.dtype)
        super().__init__(model, original.device)
        inside = {id(module) for module in self.blocks.modules()}
        given, others = (dict(side.model.named_modules()) for side in (original, tuned))
        for path, module in model.named_modules():
            for leaf in module._parameters if id(module) not in inside else ():
                base, other = (side[path]._parameters[leaf] for side in (given, others))
                if base is not None and other is not None:
                    changed = _changed(base, other, _generator_of(f"{path}.{leaf}", seed))
                    module._parameters[leaf] = base if changed is base else nn.Parameter(changed, requires_grad=False)
        buffers_to(model, original.device)

    def fill(self, number: int) -> None:
        generator = torch.Generator().manual_seed(self._seed * 100_003 + number)
        sources, others = (dict(side.blocks[number].named_modules()) for side in (self._original, self._tuned))
        for path, module in self.blocks[number].named_modules():
            for leaf in module._parameters:
                base, tuned = (blocks[path]._parameters[leaf] for blocks in (sources, others))
                if base is not None and tuned is not None:
                    module._parameters[leaf] = nn.Parameter(_changed(base, tuned, generator), requires_grad=False)
            module._buffers.update(sources[path]._buffers)


def perturbed_head(base: PreTrainedModel, tuned: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The base model's head with random changes, as `PerturbedBlocks` of the same seed; of models with a head alone.

    A head that is tied to the embeddings is changed as these are.
    """
    found, others = copy.deepcopy(base), dict(tuned.named_parameters())
    own, theirs = (model.get_output_embeddings() for model in (found, tuned))
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            other = others.get(name)
            if own is not None and theirs is not None and parameter is own.weight:
                other = theirs.weight  # under another name where one of the two is tied to the embeddings
            if not parameter.is_meta and other is not None and not other.is_meta:
                parameter.copy_(_changed(parameter, other, _generator_of(name, seed)))
    return found


def _generator_of(name: str, seed: int) -> torch.Generator:
    """Of a weight's random change: told by its own name and its module's, whatever model these are in."""
    own = zlib.crc32(".".join(name.split(".")[-2:]).encode())
    return torch.Generator().manual_seed(seed * 100_003 + own)


def _changed(base: Tensor, tuned: Tensor, generator: torch.Generator) -> Tensor:
    """A weight changed at random by as much as it differs from the tuned one: a matrix by one of rank CHANGED_RANK, a
    vector by another, each matrix of a stack by itself.

    Of two tables of different lengths the common rows tell how much.
    """
    with torch.no_grad():
        if base is tuned or base.ndim == 0:
            return base
        if base.ndim > 2:
            return torch.stack([_changed(one, other, generator) for one, other in zip(base, tuned, strict=True)])
        parts = zip(tensors_in_parts(base[: len(tuned)]), tensors_in_parts(tuned[: len(base)]), strict=True)
        size = sum(float((other.float() - one.float()).square().sum()) for one, other in parts)
        if size == 0:
            return base
        change = _random(base, generator)
        change *= (size / float(change.square().sum())) ** 0.5
        return _added(base, change, size**0.5)


def _random(base: Tensor, generator: torch.Generator) -> Tensor:
    """A change of a weight, in any size; float32."""
    if base.ndim == 1:
        return torch.randn(*base.shape, generator=generator).to(base.device)
    left, right = (
        torch.randn(*shape, generator=generator).to(base.device)
        for shape in ((base.shape[0], CHANGED_RANK), (CHANGED_RANK, base.shape[1]))
    )
    return left @ right


def _added(base: Tensor, change: Tensor, size: float) -> Tensor:
    """The sum in the precision of the weight, as far from it as asked for: of a small change rounding takes half."""
    whole = base.float()
    found: Tensor = (whole + change).to(base.dtype)
    for _ in range(ROUNDINGS if base.dtype != torch.float32 else 0):
        made = float((found.float() - whole).norm())
        if abs(made - size) <= 0.02 * size:
            break
        change *= min(4.0, size / made) if made else 4.0
        found = (whole + change).to(base.dtype)
    return found


def _table(model: PreTrainedModel) -> Tensor | None:
    """The embeddings of tokens, where each row is read by its token alone."""
    embeddings = model.get_input_embeddings()
    return embeddings.weight if isinstance(embeddings, nn.Embedding) else None


def _rows(model: PreTrainedModel, tokens: Iterable[int]) -> list[int]:
    """The rows that batches of these tokens read, padding included."""
    table = _table(model)
    known = 0 if table is None else len(table)
    padding = model.config.get_text_config().pad_token_id
    found = {*tokens, *range(PADDING_IDS), *([padding] if isinstance(padding, int) else [])}
    return sorted(token for token in found if 0 <= token < known)
