"""Forgetting: both models on a second, general set of texts, which the tuned model was not tuned on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from workers.analysis.moments import NotFinite
from workers.analysis.similarity import MIN_ROWS, drift_of, similarities
from workers.results.measured import Measured
from workers.stages.common.intervals import measured
from workers.stages.common.left_out import LeftOut
from workers.stages.common.model_pair import Pair
from workers.stages.common.moment_accumulator import MomentAccumulator, TokenizationSpec, group_stores

REFERENCE_TOKENS = 50_000


@dataclass(frozen=True)
class ReferenceDrift:
    """1 - CKA of the token view by layer, with its interval, on the rows that were read, and how they were read."""

    drift: list[Measured]
    rows: list[Row]
    tokens: int
    tokenization: TokenizationSpec


def reference_drift(
    pair: Pair, rows: list[Row], folder: Path, limit_bytes: float, on_progress: Callable[[float], None]
) -> ReferenceDrift:
    """Both models on these texts, up to REFERENCE_TOKENS tokens.

    Raises:
        InputError: they have too few tokens, or a model overflows on them.
    """
    require_reference(rows, MIN_ROWS)
    tokenization = replace(pair.tokenization, units=None, roles={})
    texts, tokens = tokenization.within([row.content for row in rows], REFERENCE_TOKENS)
    plan = tokenization.plan(len(texts), tokens, limit_bytes)
    groups = group_stores(folder / "reference-moments", plan) if plan is not None else {}
    groups = {view: store for view, store in groups.items() if view == "token"}
    accumulator = MomentAccumulator(tokenization.causal, 0, groups, plan.merged if plan is not None else 1)
    read = 0
    try:
        for group, batch in tokenization.grouped(texts):
            base, tuned = pair.states(batch)
            judged = tokenization.inliers.mark(batch, base, tuned) if tokenization.inliers is not None else batch
            accumulator.add(group, judged, base, tuned)
            read += len(batch.indices)
            on_progress(read / len(texts))
        require_reference(rows, accumulator.tokens)
        moments = accumulator.moments()["token"]
    except NotFinite as error:
        raise InputError.at(f"/{error.side}/uri", f"{error}, on the texts of the reference") from error
    left_out = LeftOut.of(moments, groups.get("token"), lambda _: None)
    for store in groups.values():
        store.clear()
    drift = [
        measured(drift_of(site), [drift_of(one) for one in left_out.of_layer(layer)], corrected=left_out.whole)
        for layer, site in enumerate(similarities(moments))
    ]
    return ReferenceDrift(drift, rows[: len(texts)], moments.n, tokenization)


def require_reference(rows: list[Row], tokens: int) -> None:
    """Raises InputError where there are no rows, or too few tokens to compare."""
    if not rows:
        raise InputError.at("/dataset/reference", "the two tokenizers read every text of the reference differently")
    if tokens < MIN_ROWS:
        detail = f"the reference has {tokens} tokens to compare; at least {MIN_ROWS} are needed"
        raise InputError.at("/dataset/reference", detail)
