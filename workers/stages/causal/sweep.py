"""The freeze sweep: retrains with more and more frozen, and says what that costs and saves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import mean, median

import torch
from torch import Tensor

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.names import StrategyName
from layerdrift.contract.request import FineTune, FreezeSweep
from workers.analysis.noninferiority import Loss, loss_bound
from workers.results.effects import Recommendation, Strategy, Sweep, SweepPoint
from workers.stages.common.context import PairContext
from workers.stages.common.inputs import Resolved
from workers.stages.common.progress import NO_NUMBERS, Numbers, OnProgress
from workers.stages.common.training import Recipe, Training, TrainingData, evaluate, gradient_norms, train
from workers.stages.finetune.stage import fresh_classifier, training_data
from workers.stages.resolve.splitting import units_of

NOT_RETRAINED = "Nothing was retrained to confirm it."
"""Ends the evidence of advice that rests on grafts alone."""

GRADIENT_BATCHES = 8


@dataclass(frozen=True)
class _Runs:
    """The trainings of one recipe, one for each seed. hits: [seeds, N] bool, on rows that were not trained on."""

    frozen: frozenset[int]
    hits: Tensor
    trainings: list[Training]

    @property
    def accuracies(self) -> list[float]:
        return [float(one) for one in self.hits.double().mean(1)]

    @property
    def accuracy(self) -> float:
        return mean(self.accuracies)


def freeze_sweep(context: PairContext, predicted: Recommendation) -> tuple[Sweep, Recommendation]:
    """Retrains at every depth and seed, and draws the advice from it. Trainings that a lost worker ended are kept.

    Raises:
        InputError: a depth is more than the model has blocks, or a training diverged.
    """
    request, resolved = context.request, context.resolved
    sweep, settings = request.analysis.freeze_sweep, request.finetune
    if sweep is None or settings is None:
        raise ValueError("this request has no freeze sweep")
    data = training_data(request, resolved)
    rows = [*resolved.split.analysed, *resolved.split.spare][: sweep.examples]
    seeds = [request.seed + number for number in range(sweep.seeds)]
    norms = _gradient_norms(resolved, data, settings, request.seed)
    depths = _depths(sweep, len(norms))
    recipes = [frozenset(range(1, depth + 1)) for depth in depths]
    wanted = _strategies(predicted.freeze_first, norms)
    recipes += [frozen for frozen in wanted.values() if frozen not in recipes]
    total, done = len(recipes) * len(seeds), 0
    runs: dict[frozenset[int], _Runs] = {}
    for frozen in recipes:
        trained = []
        for seed in seeds:
            what = f"{len(frozen)} blocks frozen, seed {seed}"
            training = context.part(_part(context.on_progress, done, total, what))
            trained.append(_kept_or_made(training, data, Recipe(settings, seed, frozen), rows))
            done += 1
        runs[frozen] = _Runs(frozen, torch.stack([hits for hits, _ in trained]), [one for _, one in trained])
    numbers = units_of(rows)
    units = None if numbers is None else torch.tensor(numbers)
    points = [
        _point(runs[recipes[place]], runs[frozenset()], depth, sweep, units) for place, depth in enumerate(depths)
    ]
    found = Sweep(
        epsilon_points=sweep.epsilon,
        seeds=seeds,
        examples=len(rows),
        points=points,
        strategies=_regrets(wanted, runs, max(point.accuracy for point in points)),
    )
    return found, advice_of(found, predicted)


def _part(on_progress: OnProgress, done: int, total: int, what: str) -> OnProgress:
    """One training of the sweep."""

    def part(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        on_progress((done + fraction) / total, f"{what}: {detail}")

    return part


def _depths(sweep: FreezeSweep, blocks: int) -> list[int]:
    wanted = sweep.depths if sweep.depths is not None else list(range(1, blocks + 1))
    if max(wanted) > blocks:
        raise InputError.at(
            "/analysis/freeze_sweep/depths", f"the model has {blocks} blocks; {max(wanted)} of them cannot be frozen"
        )
    return [0, *sorted(set(wanted))]


def _gradient_norms(resolved: Resolved, data: TrainingData, settings: FineTune, seed: int) -> list[float]:
    """Before training; of all weights, whatever the method trains."""
    recipe = Recipe(settings.model_copy(update={"method": "full"}), seed)
    with fresh_classifier(resolved, data, recipe) as (model, data):
        return gradient_norms(model, data, settings, seed, GRADIENT_BATCHES)


def _strategies(recommended: int, norms: list[float]) -> dict[StrategyName, frozenset[int]]:
    """What each rule would freeze; by gradient norm, as many blocks as the recommendation, the weakest first."""
    weakest = sorted(range(1, len(norms) + 1), key=lambda number: norms[number - 1])
    return {
        "recommended": frozenset(range(1, recommended + 1)),
        "nothing": frozenset(),
        "half": frozenset(range(1, len(norms) // 2 + 1)),
        "gradient_norm": frozenset(weakest[:recommended]),
    }


def _kept_or_made(context: PairContext, data: TrainingData, recipe: Recipe, rows: list[Row]) -> tuple[Tensor, Training]:
    """The training that an earlier worker on this job came to the end of; else it is made, and kept."""
    name, checkpoints = _name(recipe), context.checkpointing.checkpoints
    kept = checkpoints.load(name)
    if kept is not None:
        (part,) = kept
        context.on_progress(1.0, "already trained")
        return part["hits"], Training(
            losses=part["losses"].tolist(),
            step_seconds=part["step_seconds"].tolist(),
            training_bytes=int(part["training_bytes"]),
            cached=bool(part["cached"]),
        )
    hits, training = _one(context.resolved, data, recipe, rows, context.on_progress)
    part = {
        "hits": hits,
        "losses": torch.tensor(training.losses, dtype=torch.float64),
        "step_seconds": torch.tensor(training.step_seconds, dtype=torch.float64),
        "training_bytes": torch.tensor(training.training_bytes),
        "cached": torch.tensor(training.cached),
    }
    checkpoints.save(name, training.steps, [part])
    return hits, training


def _name(recipe: Recipe) -> str:
    """Of a training within its job, whose rows and base model are always the same."""
    frozen = {"settings": recipe.settings.model_dump(mode="json"), "frozen": sorted(recipe.frozen)}
    digest = hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()[:16]
    return f"sweep-seed-{recipe.seed}-{digest}"


def _one(
    resolved: Resolved, data: TrainingData, recipe: Recipe, rows: list[Row], on_progress: OnProgress
) -> tuple[Tensor, Training]:
    """Trains to the end of the schedule: which rows are predicted correctly, and how the training went."""
    with fresh_classifier(resolved, data, recipe) as (model, data):
        training = train(model, data.without_held_out(), recipe, on_progress)
        return evaluate(model, data, rows)[0], training


def _point(runs: _Runs, nothing: _Runs, depth: int, sweep: FreezeSweep, units: Tensor | None) -> SweepPoint:
    itself = runs is nothing
    found = Loss(0.0, 0.0) if itself else loss_bound(nothing.hits.double(), runs.hits.double(), units)
    seconds = [second for training in runs.trainings for second in training.step_seconds]
    return SweepPoint(
        freeze_first=depth,
        accuracy=runs.accuracy,
        by_seed=runs.accuracies,
        loss_points=100 * found.loss,
        loss_bound_points=100 * found.bound,
        validated=100 * found.bound < sweep.epsilon,
        step_seconds=median(seconds),
        training_bytes=max(training.training_bytes for training in runs.trainings),
        cached=all(training.cached for training in runs.trainings),
    )


def _regrets(
    wanted: dict[StrategyName, frozenset[int]], runs: dict[frozenset[int], _Runs], best: float
) -> list[Strategy]:
    return [
        Strategy(
            name=name,
            frozen_blocks=sorted(frozen),
            accuracy=runs[frozen].accuracy,
            regret_points=100 * (best - runs[frozen].accuracy),
        )
        for name, frozen in wanted.items()
    ]


def advice_of(sweep: Sweep, predicted: Recommendation) -> Recommendation:
    """The deepest freeze up to which every loss is bounded by epsilon; else the prediction, with what the sweep says.

    Depths are judged from the shallowest on, and the first that fails ends it: so one wrong answer among many depths is
    as rare as one bound says (a fixed sequence of tests; Maurer, Hothorn and Lehmacher 1995).
    """
    plain, *frozen = sweep.points
    held = list(takewhile(lambda point: point.validated, frozen))
    setting = f"{len(sweep.seeds)} seeds, {sweep.examples} rows"
    if held:
        deepest = held[-1]
        evidence = (
            f"Retrained with them frozen, accuracy drops by {deepest.loss_points:.2f} points, at most "
            f"{deepest.loss_bound_points:.2f} (one-sided 95 %), within the margin of {sweep.epsilon_points:g}; a "
            f"step takes {deepest.step_seconds / plain.step_seconds:.0%} of the time and "
            f"{deepest.training_bytes / plain.training_bytes:.0%} of the memory ({setting})."
        )
        return Recommendation(freeze_first=deepest.freeze_first, basis="validated", evidence=evidence)
    first = frozen[0]
    evidence = (
        f"{predicted.evidence.removesuffix(NOT_RETRAINED)}The sweep does not confirm any freezing within "
        f"{sweep.epsilon_points:g} points: with {first.freeze_first} blocks frozen, the smallest number tried, the "
        f"bound is {first.loss_bound_points:.2f} points (measured loss {first.loss_points:.2f}; {setting}). More "
        "rows or seeds narrow the bound."
    )
    return replace(predicted, evidence=evidence)
