"""Both models and their nulls on the same batches, one layer after another."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.models.blockwise import BlockwiseModel
from workers.models.derived_blocks import DitheredBlocks, RandomBlocks
from workers.models.device import FATAL, fast_dtype
from workers.models.layer_order import Pass
from workers.models.states import StateReader
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.extract.merged_batches import Layout, MergedBatches, Regrouped

OnBlock = Callable[[int], None]
"""Is told the number of a block of which both models have the weights, 0 to depth - 1."""


@dataclass(frozen=True)
class LayerStates:
    """States at one layer by batch, [B, T, D] each, on the models' device.

    twin, random: of the first batches, of the base model rounded otherwise and of one that was never trained; or why
    there are none.
    """

    layer: int
    base: Sequence[Tensor]
    tuned: Sequence[Tensor]
    twin: Sequence[Tensor] | str
    random: Sequence[Tensor] | str


@dataclass(frozen=True)
class LayerWalk:
    """What is walked; texts are read in batches of like length, whatever batches they come in.

    batches: of all texts. twin_batches, random_batches: so many of the first ones are read by the nulls.
    seed: of the random weights. fast: products are in bfloat16 where the hardware multiplies it, as in `fast_states`.
    """

    pair: LayeredPair
    batches: Sequence[Batch]
    twin_batches: int
    random_batches: int
    seed: int
    fast: bool = False

    def layers(
        self, last: int, on_progress: Callable[[float], None], on_block: OnBlock
    ) -> Generator[LayerStates, None, None]:
        """The states at layers 0 to `last`; those of a layer are gone at the next one.

        Raises:
            NotBlockwise: the models' blocks cannot run one at a time after all.
            InputError: the weights of a block cannot be read.
        """
        pair = self.pair
        reader = pair.tokenization.states
        read = MergedBatches.of(self.batches)
        passes: list[Pass] = [Pass(side, read.batches, reader) for side in (pair.base, pair.tuned)]
        wanted = ((self.twin_batches, self._twin), (self.random_batches, self._random))
        nulls = [_NullPass(reader, model if count else None) for count, model in wanted]
        every: list[Pass | _NullPass] = [*passes, *nulls]
        try:
            with self._precision():
                for one in every:
                    one.start()
            for layer in range(last + 1):
                base, tuned = (Regrouped(one.states, read.layout) for one in passes)
                yield LayerStates(layer, base, tuned, *(one.states for one in nulls))
                if layer == last:
                    return
                with pair.block(layer):
                    on_block(layer)
                    for number, one in enumerate(every):
                        on_progress((layer + number / len(every)) / last)
                        with self._precision():
                            one.advance()
        finally:
            for one in every:
                one.close()

    def _precision(self) -> torch.autocast:
        base = self.pair.base
        fast = self.fast and base.dtype == torch.float32 and fast_dtype(base.device) == torch.bfloat16
        return torch.autocast(base.device.type, torch.bfloat16, enabled=fast)

    def _twin(self) -> tuple[BlockwiseModel, MergedBatches]:
        """The base model rounded otherwise, on batches with other texts beside each other."""
        first = self.batches[: self.twin_batches]
        read = MergedBatches.of(first).halved(first)
        return DitheredBlocks(self.pair.base, _tokens(read.batches)), read

    def _random(self) -> tuple[BlockwiseModel, MergedBatches]:
        read = MergedBatches.of(self.batches[: self.random_batches])
        dtype = fast_dtype(self.pair.base.device)
        return RandomBlocks(self.pair.base, dtype, self.seed, _tokens(read.batches)), read


class _NullPass:
    """The pass of a model that is compared with the base model: where it does not run, the walk goes on without it."""

    def __init__(self, reader: StateReader, model: Callable[[], tuple[BlockwiseModel, MergedBatches]] | None) -> None:
        self._reader = reader
        self._model = model
        self._blocks: BlockwiseModel | None = None
        self._pass: Pass | None = None
        self._layout: Layout | None = None
        self._reason = "" if model is not None else "it was not asked for"

    @property
    def states(self) -> Sequence[Tensor] | str:
        """By batch as they came; or why there are none."""
        if self._pass is None or self._layout is None:
            return self._reason
        return Regrouped(self._pass.states, self._layout)

    def start(self) -> None:
        model = self._model
        if model is None:
            return

        def begin() -> None:
            self._blocks, read = model()
            self._layout = read.layout
            self._pass = Pass(self._blocks, read.batches, self._reader, checked=False)
            self._pass.start()

        self._tried(begin)

    def advance(self) -> None:
        def go_on() -> None:
            if self._pass is not None and self._blocks is not None:
                with self._blocks.block(self._pass.layer):
                    self._pass.advance()

        self._tried(go_on)

    def close(self) -> None:
        if self._pass is not None:
            self._pass.close()
        self._pass = None

    def _tried(self, step: Callable[[], None]) -> None:
        try:
            step()
        except FATAL:
            raise
        except (RuntimeError, NotBlockwise) as error:
            self.close()
            self._reason = (str(error) or type(error).__name__).splitlines()[0]


def _tokens(batches: Sequence[Batch]) -> set[int]:
    return {token for batch in batches for token in batch.input_ids.unique().tolist()}
