"""Drift over the steps of a fine-tune, from the snapshots that it kept."""

from __future__ import annotations

from collections.abc import Sequence

from layerdrift.contract.report import Trajectory
from workers.analysis.similarity import drift_of, similarities
from workers.models.loading import load_body
from workers.models.texts import Text
from workers.stages.finetune import Tuned
from workers.stages.nulls import against, gathered_pair, states_of
from workers.stages.pair import Pair
from workers.stages.tick import SharedTicks


def trajectory_of(pair: Pair, tuned: Tuned, texts: Sequence[Text], ticks: SharedTicks) -> Trajectory:
    """Drift of every snapshot from the base."""
    steps, drift, relative_l2, tokens = [], [], [], 0
    reader = pair.reading.states
    for snapshot in tuned.snapshots:
        model = load_body(snapshot.folder, "/finetune", pair.base.device)
        states = against(reader, pair.base, states_of(reader, model))
        found = gathered_pair(pair.reading, texts, states, ticks.next(f"the snapshot of step {snapshot.step}"))
        tokens = found.tokens
        sites = similarities(found.moments()["token"])
        steps.append(snapshot.step)
        drift.append([drift_of(site) for site in sites])
        relative_l2.append([site.relative_l2 or 0.0 for site in sites])
    return Trajectory(steps=steps, drift=drift, relative_l2=relative_l2, tokens=tokens)
