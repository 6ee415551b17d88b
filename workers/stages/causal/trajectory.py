"""Drift over the steps of a fine-tune, from the snapshots that it kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from workers.analysis.similarity import drift_of, similarities
from workers.models.device import best_device
from workers.models.loading import load_body
from workers.models.texts import Batch
from workers.results.training import Trajectory
from workers.stages.common.context import PairContext
from workers.stages.common.model_pair import StateMemory
from workers.stages.common.moment_accumulator import States, StatesOf
from workers.stages.common.progress import Spans
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.nulls import accumulate_pair, states_of
from workers.stages.finetune.stage import FineTuned, Snapshot


def trajectory_of(context: PairContext, tuned: FineTuned, extracted: Extracted) -> Trajectory | None:
    """Drift of every snapshot from the base; None where there are none."""
    if not tuned.snapshots:
        return None
    resolved = context.resolved
    spans = Spans(context.on_progress, {_span(snapshot): 1.0 for snapshot in tuned.snapshots})
    tokenization = replace(extracted.tokenization, roles={})
    device, memory = best_device(), StateMemory()
    base = load_body(resolved.base.folder, "/base/uri", device)
    texts = [row.content for row in resolved.split.analysed[: extracted.analysed]]

    def base_states(batch: Batch) -> States:
        known = memory.get(batch)
        if known is None:
            known = (tokenization.states.states(base, batch),)
            memory.put(batch, *known)
        return known[0]

    steps, drift, relative_l2, tokens = [], [], [], 0
    for snapshot in tuned.snapshots:
        of_snapshot = states_of(tokenization.states, load_body(snapshot.folder, "/finetune", device))
        found = accumulate_pair(tokenization, texts, _both(base_states, of_snapshot), spans.span(_span(snapshot)))
        tokens = found.tokens
        sites = similarities(found.moments()["token"])
        steps.append(snapshot.step)
        drift.append([drift_of(site) for site in sites])
        relative_l2.append([site.relative_l2 or 0.0 for site in sites])
    return Trajectory(steps=steps, drift=drift, relative_l2=relative_l2, tokens=tokens)


def _span(snapshot: Snapshot) -> str:
    return f"the snapshot of step {snapshot.step}"


def _both(one: StatesOf, other: StatesOf) -> Callable[[Batch], tuple[States, States]]:
    return lambda batch: (one(batch), other(batch))
