"""Many forward passes side by side, block by block: all batches through block 1, then all through block 2.

Each pass is the model's own forward in a coroutine that stops before every block. So one block is needed at a time, and
nothing about masks, positions or what blocks hand on has to be known. The states are those of `workers.models.states`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from workers.models.blockwise import BlockwiseModel
from workers.models.device import FATAL
from workers.models.prefix import UNLIKE
from workers.models.states import StateReader
from workers.models.structure import NotBlockwise, first_tensor
from workers.models.texts import Batch, known_tokens, padded_for

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Relative difference of states that should be the same, as for cached prefixes; on the CPU there is none."""

CHECKED_TEXTS = 3

Patched = dict[Hashable, Tensor]
"""States [B, T, D] that go through the blocks in place of a batch's own, by what they are."""


class Pass:
    """The forward passes of one model on some batches; all stand before the same block.

    Passes of several models go side by side: `start` each, then `advance` each, block by block. Activation patching:
    `patched` states go through the blocks beside a batch's own, with the same masks and positions.

    Args:
        reader: how the states of a block are laid out.
        checked: a few texts of the shortest batch run twice, first and last of all: states that depend on what ran
            between are no model's. The first of them is held against what the model lists itself, and must see no
            missing weight.

    Attributes:
        batches: that run.
        states: of each batch at the layer where the passes stand, [B, T, D] on the model's device.
        layer: 0 before block 1, up to the depth.
        patched: by batch; what is put in here goes on from the next block. After the last one, as it left that: see
            `ending`.
    """

    def __init__(
        self, blockwise: BlockwiseModel, batches: Sequence[Batch], reader: StateReader, checked: bool = True
    ) -> None:
        self.layer = 0
        self.states: list[Tensor] = []
        self.patched: list[Patched] = [{} for _ in batches]
        self._blockwise = blockwise
        self.batches = list(batches)
        self._reader = reader
        self._checked = checked and bool(batches)
        self._runs: list[_Run] = []
        self._running: _Run | None = None

    def start(self) -> None:
        """Runs every batch to the first block.

        Raises:
            InputError: the tokenizer knows more tokens than the model.
            NotBlockwise: as in `advance`.
        """
        for batch in self.batches:
            known_tokens(self._blockwise.model, batch)
        batches = self.batches
        if self._checked:
            shortest = min(batches, key=lambda batch: batch.input_ids.numel())
            few = min(CHECKED_TEXTS, len(shortest.indices))
            checked = shortest.rows(torch.arange(few), int(shortest.attention_mask[:few].sum(1).max()))
            batches = [checked, *batches, checked]
        self._runs = [_Run(self._blockwise.model, batch) for batch in batches]
        if self._checked:
            self._runs[0].listing = True
        for run, patched in zip(self._own_runs, self.patched, strict=True):
            run.patched = patched
        self._step()

    def advance(self, on_batch: Callable[[int], None] | None = None) -> None:
        """Runs all batches through the next block, whose weights are in memory.

        Args:
            on_batch: is told how many passes have gone through.

        Raises:
            NotBlockwise: the passes do not stand at one block, or the check failed.
        """
        self.layer += 1
        self._step(on_batch)

    def ending(self, number: int, state: Tensor) -> Tensor:
        """What the model makes of a state that its last block left, [B, T, D], on a batch: a final norm as a rule."""
        run = _Run(self._blockwise.model, self.batches[number])
        try:
            with torch.inference_mode(), self._passing(state):
                run.resume()
        except FATAL:
            raise
        except UNLIKE as error:
            raise NotBlockwise(f"{type(self._blockwise.model).__name__} needs its blocks to run: {error}") from error
        return self._laid_out(run)

    def require_patchable(self, number: int, key: Hashable) -> None:
        """Holds patched states that are the batch's own against these, at the end of the blocks.

        Raises:
            NotBlockwise: they went another way, so that a block hands on more than its states.
        """
        self._require_same(self.states[number], self.ending(number, self.patched[number][key]))

    def close(self) -> None:
        """Ends the passes where they are."""
        for run in self._runs:
            run.end()
        self._runs, self.states = [], []
        self.patched = [{} for _ in self.batches]

    @property
    def _own_runs(self) -> list[_Run]:
        return self._runs[1:-1] if self._checked else self._runs

    def _step(self, on_batch: Callable[[int], None] | None = None) -> None:
        """Lets every pass run to the block of `layer`, or to its end."""
        due = None if self.layer == self._blockwise.depth else self.layer
        with torch.inference_mode(), self._stopping():
            for number, run in enumerate(self._runs, start=1):
                self._running = run
                with _NoMissingWeights() if run.listing else nullcontext():  # type: ignore[no-untyped-call]
                    at = run.resume()
                if at != due:
                    name = type(self._blockwise.model).__name__
                    raise NotBlockwise(f"the blocks of {name} do not run once each, one after another")
                if on_batch is not None:
                    on_batch(number)
            found = [self._laid_out(run) for run in self._runs]
        if self._checked:
            self._require_same(found[0], found[-1])
            if due is None:
                self._runs[0].require_listed()
            found = found[1:-1]
        self.states = found

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Inside, a block that is called waits for its turn, and notes what it takes and passes on."""
        blocks = self._blockwise.blocks
        try:
            for number, block in enumerate(blocks):
                block.forward = self._stopped(number, block.forward)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    def _stopped(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*args: Any, **kwargs: Any) -> Any:
            run = self._running
            if run is None:
                raise RuntimeError("a block runs outside its pass")
            if number == 0:
                run.note(args or (kwargs.get("hidden_states"), *kwargs.values()), self._reader.copies)
            run.wait(number)
            answer = forward(*args, **kwargs)
            run.note(answer, self._reader.copies)
            for key, state in run.patched.items():
                run.patched[key] = self._patched(forward, state, args, kwargs)
            return answer

        return stopped

    def _patched(self, forward: Callable[..., Any], state: Tensor, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """A block on another state, with all else that it was given."""
        if self._reader.order != (0, 1, 2):
            raise NotBlockwise(f"the states of {type(self._blockwise.model).__name__} are laid out in a way of its own")
        given = state.clone() if self._reader.copies else state
        answer = forward(given, *args[1:], **kwargs) if args else forward(**{**kwargs, "hidden_states": given})
        found = first_tensor(answer)
        if found is None or found.shape != state.shape:
            raise NotBlockwise(f"a block of {type(self._blockwise.model).__name__} passes no state on")
        return found.clone() if self._reader.copies else found

    @contextmanager
    def _passing(self, state: Tensor) -> Iterator[None]:
        """Inside, no block runs: all pass on what they take, and the last one this state."""
        blocks = self._blockwise.blocks
        in_tuple = any(run.in_tuple for run in self._runs)

        def passed(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                found = state if number == len(blocks) - 1 else args[0] if args else kwargs["hidden_states"]
                return (found,) if in_tuple else found

            return forward

        try:
            for number, block in enumerate(blocks):
                block.forward = passed(number)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)

    def _laid_out(self, run: _Run) -> Tensor:
        if run.state is None:
            raise NotBlockwise(f"a block of {type(self._blockwise.model).__name__} passes no state on")
        tokens = run.batch.input_ids.shape[1]
        return run.state[:, :tokens] if run.ended else self._reader.standard(run.state, tokens)

    def _require_same(self, one: Tensor, other: Tensor) -> None:
        if torch.equal(one, other):
            return
        tolerance = 0.0 if one.device.type == "cpu" else TOLERANCE.get(one.dtype, 0.0)
        if not float((one - other).float().norm()) <= tolerance * float(one.float().norm()):
            name = type(self._blockwise.model).__name__
            raise NotBlockwise(f"the states of {name} on a text depend on the texts that run beside it")


class _Run:
    """One batch's forward pass, in a coroutine that answers with the number of the block that it waits at, then None.

    state: what the last block passed on. listing: the model is asked to list its states, and all are kept. patched:
    other states that go through the blocks too. in_tuple: blocks answer with a tuple.
    """

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        self.batch = batch
        self.listing = False
        self.state: Tensor | None = None
        self.ended = False
        self.in_tuple = False
        self.patched: Patched = {}
        self.coroutine = greenlet(self._forward)
        self._model = model
        self._seen: list[Tensor | None] = []
        self._listed: Sequence[Tensor] = ()

    def resume(self) -> int | None:
        """Runs on to the next block, whose number comes back; None at the end."""
        self.coroutine.parent = getcurrent()
        stopped_at: int | None = self.coroutine.switch()
        return stopped_at

    def wait(self, block: int) -> None:
        """Stops until it is resumed."""
        parent = self.coroutine.parent
        if parent is None:
            raise RuntimeError("a pass needs somebody to go on for")
        parent.switch(block)

    def note(self, value: Any, copies: bool) -> None:
        """The state in what a block takes or answers."""
        state = first_tensor(value)
        self.in_tuple = isinstance(value, tuple)
        self.state = state.clone() if copies and state is not None else state
        if self.listing:
            self._seen.append(self.state)

    def end(self) -> None:
        """Leaves it where it stands, and comes back here, whichever pass is running when its memory is taken back."""
        if self.coroutine and not self.coroutine.dead:
            self.coroutine.parent = getcurrent()
            self.coroutine.throw(GreenletExit)

    def require_listed(self) -> None:
        """Raises NotBlockwise where the model lists a state that was not seen: then it is not made by the blocks."""
        seen = [state for state in self._seen if state is not None]
        for layer, wanted in enumerate(self._listed):
            if not any(_same(state, wanted) for state in seen):
                raise NotBlockwise(
                    f"the states that {type(self._model).__name__} lists at layer {layer} are not those of its blocks"
                )

    def _forward(self) -> None:
        with padded_for(self._model, self.batch) as inputs:
            pass  # the padding token is needed before the first block alone
        options = {"output_hidden_states": True} if self.listing else {}
        output = self._model(**inputs, **options)
        self.state, self.ended = output.last_hidden_state, True
        if self.listing:
            self._seen.append(self.state)
            self._listed = output.get("hidden_states") or ()


class _NoMissingWeights(TorchDispatchMode):
    """Inside, no operation takes a tensor without memory: some would answer with garbage."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for one in tree_leaves((args, kwargs or {})):
            if isinstance(one, Tensor) and one.is_meta:
                raise NotBlockwise(f"{func} needs a weight that belongs to no block, or to another one")
        return func(*args, **(kwargs or {}))


def _same(state: Tensor, wanted: Tensor) -> bool:
    """Whether they are one state: as it is, with texts and tokens exchanged, or cut to the tokens of the texts."""
    if state.dim() != wanted.dim():
        return False
    views = [state]
    if state.dim() == 3:
        views += [state.transpose(0, 1), state[:, : wanted.shape[1]]]
    return any(view.shape == wanted.shape and torch.equal(view, wanted) for view in views)
