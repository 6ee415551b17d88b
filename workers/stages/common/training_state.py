"""The state of an unfinished training: what a later worker needs to go on from the same step, to the same weights.

Parts are dictionaries of tensors, so that a bucket can hold them one by one. Knows no bucket, and no files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from workers.results.training import Evaluation
from workers.stages.common.checkpointing import NO_CHECKPOINTING, Checkpointing

_STATES = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Keeping:
    """Where a training keeps its state.

    run: its name among those of the job. more: further parts that belong to it, such as weights of earlier steps.
    take: is given these again.
    """

    checkpointing: Checkpointing = NO_CHECKPOINTING
    run: str = ""
    more: Callable[[], Iterator[dict[str, Tensor]]] = lambda: iter(())
    take: Callable[[dict[str, Tensor]], None] = lambda _: None


@dataclass
class Curves:
    """What a training has told so far, by step. held_out: its evaluations."""

    losses: list[float]
    gradient_norms: list[float]
    step_seconds: list[float]
    held_out: list[Evaluation]


class StateKeeper:
    """Saves the state of one training from time to time, and gives back the last one.

    Args:
        trainable: the parameters that the optimiser moves, in its order.
    """

    def __init__(
        self, keeping: Keeping, trainable: Sequence[nn.Parameter], optimiser: torch.optim.AdamW, schedule: LambdaLR
    ) -> None:
        self._keeping, self._trainable = keeping, list(trainable)
        self._optimiser, self._schedule = optimiser, schedule
        self._saved, self._pause = time.monotonic(), keeping.checkpointing.pause(0.0)

    def resume(self, curves: Curves) -> int:
        """Takes up the last state that was saved whole; how many steps it has, 0 where there is none."""
        kept = self._keeping.checkpointing.checkpoints.load(self._keeping.run)
        if kept is None:
            return 0
        told, places = dict[str, Tensor](), iter(self._trainable)
        for part in kept:
            if "told/losses" in part:
                told = part
            elif "trained/value" in part:
                self._restore(next(places), part)
            else:
                self._keeping.take(part)
        made = len(told["told/losses"])
        for name in ("losses", "gradient_norms", "step_seconds"):
            getattr(curves, name).extend(told[f"told/{name}"].tolist())
        for step, loss, accuracy in told["told/held_out"].tolist():
            curves.held_out.append(Evaluation(step=int(step), loss=loss, accuracy=accuracy))
        for parameter in self._trainable:
            # fused AdamW keeps the number of steps beside the parameter
            self._optimiser.state[parameter]["step"] = torch.tensor(float(made), device=parameter.device)
        self._go_to(made)
        _set_random_states({name: one for name, one in told.items() if name.startswith("random/")})
        return made

    def keep(self, curves: Curves) -> None:
        """Saves the state after a step, where the last one is long enough ago."""
        began = time.monotonic()
        if began - self._saved < self._pause:
            return
        checkpoints = self._keeping.checkpointing.checkpoints
        checkpoints.save(self._keeping.run, len(curves.losses), self._parts(curves))
        self._saved = time.monotonic()
        self._pause = self._keeping.checkpointing.pause(self._saved - began)

    def _parts(self, curves: Curves) -> Iterator[dict[str, Tensor]]:
        held_out = [(one.step, one.loss, one.accuracy) for one in curves.held_out]
        yield {
            **{
                f"told/{name}": torch.tensor(getattr(curves, name), dtype=torch.float64)
                for name in ("losses", "gradient_norms", "step_seconds")
            },
            "told/held_out": torch.tensor(held_out, dtype=torch.float64).reshape(-1, 3),
            **_random_states(),
        }
        for parameter in self._trainable:
            state = self._optimiser.state[parameter]
            yield {
                "trained/value": parameter.detach().cpu(),
                **{f"trained/{name}": state[name].cpu() for name in _STATES},
            }
        yield from self._keeping.more()

    @torch.no_grad()
    def _restore(self, parameter: nn.Parameter, part: dict[str, Tensor]) -> None:
        parameter.copy_(part["trained/value"])
        self._optimiser.state[parameter] = {name: part[f"trained/{name}"].to(parameter.device) for name in _STATES}

    def _go_to(self, made: int) -> None:
        """Puts the schedule where it stood after so many steps."""
        self._schedule.last_epoch = made
        rates = zip(self._optimiser.param_groups, self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True)
        for group, base, factor in rates:
            group["lr"] = base * factor(made)


def _random_states() -> dict[str, Tensor]:
    found = {"random/cpu": torch.get_rng_state()}
    return found | ({"random/cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_states(kept: dict[str, Tensor]) -> None:
    torch.set_rng_state(kept["random/cpu"])
    if "random/cuda" in kept and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept["random/cuda"])
