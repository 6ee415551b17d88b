"""Stage `extract` in layer order: one block of each model is in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from layerdrift.contract.names import PartName, ViewName
from layerdrift.contract.request import NoiseFloorName
from workers.analysis.similarity import MIN_ROWS, drift_of
from workers.models.mapped_pages import give_pages_back
from workers.models.structure import block_parts
from workers.models.texts import Batch, Text, batches, count_tokens
from workers.results.models import WeightDrift
from workers.results.similarity import NoiseFloor
from workers.results.tokens import TokenDrift, TokenText
from workers.results.warnings import ReportWarning
from workers.stages.common.context import PairContext
from workers.stages.common.intervals import measured
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.common.model_pair import drift_of_weights, model_info
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS, TokenizationSpec
from workers.stages.common.view_similarity import ViewSimilarity
from workers.stages.extract.by_layer import ByLayer, LayerMeasures, LayerPlan, NullFound, TextSet
from workers.stages.extract.extracted import MOMENTS_SHARE, Execution, Extracted, TokenCounts
from workers.stages.extract.heldout_rows import heldout_rows
from workers.stages.extract.nulls import (
    DESCRIPTIONS,
    NOTHING_LEFT,
    RANDOM_SEED,
    MeasuredNull,
    Nulls,
)
from workers.stages.extract.read_texts import (
    about_intervals,
    cut_texts,
    require_tokens,
    shown_roles,
    shown_text,
    shown_texts,
    unread_texts,
    within,
)
from workers.stages.extract.reference import REFERENCE_TOKENS, ReferenceDrift, require_reference

WAITING_SHARE = 0.5
"""Of the scratch, for the states of all layers, which wait there until the outliers are known."""

TWIN_TOKENS_IN_LAYERS, LEFT_TOKENS_IN_LAYERS = 2_500, 2_048
"""Tokens that the rounded copy and the one of random weights read: each one costs as much as one of the pair."""


def extract_layered(context: PairContext, pair: LayeredPair) -> Extracted:
    """Both models and their nulls over the texts, layer after layer.

    Raises:
        InputError: a model is broken or overflows, or there are too few tokens.
        NotBlockwise: the blocks cannot run one at a time; nothing is left behind.
    """
    request, resolved = context.request, context.resolved
    every = [row.content for row in resolved.split.analysed]
    texts, tokens = within(pair.tokenization, every, request.analysis.max_tokens)
    pair = replace(pair, tokenization=pair.tokenization.with_roles(texts))
    spec = pair.tokenization
    room = context.scratch_bytes * MOMENTS_SHARE
    plan = spec.plan(len(texts), tokens, room, layers=1)
    compared = _read(spec, texts, tokens)
    shown = shown_texts(request, texts)
    told = list(batches(spec.tokenizer, shown, BATCH_TEXTS, spec.length, BATCH_TOKENS))
    reference = _Reference.of(context, spec, room)
    labels = [row.label for row in resolved.split.analysed[: len(texts)]]
    heldout = heldout_rows(context, spec, labels)
    measures = LayerMeasures(
        pair,
        compared,
        TextSet(len(shown), 0, batches=told),
        reference.texts if reference is not None else None,
        LayerPlan(
            groups=plan,
            reference_groups=reference.plan if reference is not None else None,
            null_tokens=(TWIN_TOKENS_IN_LAYERS, LEFT_TOKENS_IN_LAYERS),
            seed=RANDOM_SEED + request.seed,
            waiting_bytes=context.scratch_bytes * WAITING_SHARE,
            heldout=heldout,
        ),
        context.folder,
    )
    found = measures.measured(context.on_progress, lambda layer: _weights(pair, layer))
    views: dict[ViewName, ViewSimilarity] = {view: found.view(view) for view in found.layers[0].views}
    first, outliers = found.layers[0].first, found.layers[0].outliers
    require_tokens(views["token"].rows, first + outliers)
    whole = sum(count_tokens(spec.tokenizer, texts, None))
    counts = TokenCounts(first, outliers, views["token"].rows, whole - tokens)
    pair = pair.with_inliers(found.inliers)
    nulls = _nulls(found)
    sides = (("base", pair.base, resolved.base), ("tuned", pair.tuned, context.tuned))
    return Extracted(
        tokenization=pair.tokenization,
        counts=counts,
        views=views,
        frame=found.frame(),
        all_tokens=found.with_others(),
        token_sample=found.token_sample(),
        text_sample=found.text_sample(),
        analysed=len(texts),
        tokens=_token_drift(context, pair, shown, told, found),
        shown=shown,
        last_states=found.last_states,
        heldout=heldout,
        weights=found.weights,
        nulls=nulls,
        reference=reference.drift(found) if reference is not None else None,
        execution=Execution("layers"),
        reference_states=found.reference_states,
        models={name: model_info(side.model, checkpoint) for name, side, checkpoint in sides},
        warnings=[
            *unread_texts(len(every) - len(texts), request.analysis.max_tokens),
            *cut_texts(counts, spec.length, request.analysis.max_length),
            *about_intervals(plan),
            *nulls.warnings,
        ],
    )


def _read(spec: TokenizationSpec, texts: Sequence[Text], tokens: int) -> TextSet:
    read = list(spec.grouped(texts))
    return TextSet(len(texts), tokens, [group for group, _ in read], [batch for _, batch in read])


def _weights(pair: LayeredPair, layer: int) -> dict[PartName, WeightDrift]:
    """Of layer 0, the embeddings; of another one its block, whose weights are in memory."""
    base, tuned = pair.base, pair.tuned
    if layer == 0:
        tables = (dict(side.model.named_parameters()) for side in (base, tuned))
        one, other = tables
        found: dict[PartName, WeightDrift] = {
            "embeddings": drift_of_weights((one[name], other[name]) for name in pair.embeddings)
        }
        give_pages_back(table[name] for table in (one, other) for name in pair.embeddings)  # few rows are read again
        return found
    parts, others = block_parts(base.blocks[layer - 1]), block_parts(tuned.blocks[layer - 1])
    return {
        part: drift_of_weights((one, others[part][name]) for name, one in found.items())
        for part, found in parts.items()
    }


class _Reference:
    """The reference texts, and what is kept of their groups."""

    def __init__(self, context: PairContext, spec: TokenizationSpec, room: float) -> None:
        given = context.resolved.reference
        if given is None:
            raise ValueError("no reference was asked for")
        self._rows = given.rows
        self._spec = replace(spec, units=None, roles={})
        texts, tokens = self._spec.within([row.content for row in given.rows], REFERENCE_TOKENS)
        self.texts = _read(self._spec, texts, tokens)
        self.plan = self._spec.plan(len(texts), tokens, room, layers=1)

    @staticmethod
    def of(context: PairContext, spec: TokenizationSpec, room: float) -> _Reference | None:
        """None where none was asked for."""
        if context.resolved.reference is None:
            return None
        require_reference(context.resolved.reference.rows, MIN_ROWS)
        return _Reference(context, spec, room)

    def drift(self, found: ByLayer) -> ReferenceDrift:
        """By layer, with its interval."""
        view = ViewSimilarity.joined([layer.reference.similarity for layer in found.layers if layer.reference])
        require_reference(self._rows, view.rows)
        drift = [
            measured(
                drift_of(site), [drift_of(one) for one in view.left_out.of_layer(layer)], corrected=view.left_out.whole
            )
            for layer, site in enumerate(view.sites)
        ]
        spec = replace(self._spec, inliers=found.inliers)
        return ReferenceDrift(drift, self._rows[: self.texts.texts], view.rows, spec)


def _nulls(found: ByLayer) -> Nulls:
    """What the nulls say, or why they say nothing."""
    name: NoiseFloorName = "numerical"
    twins = [layer.twin for layer in found.layers]
    random = [layer.random for layer in found.layers]
    measured_nulls, warnings = [], []
    reason = next((one for one in twins if isinstance(one, str)), None)
    if reason is None:
        measured_nulls.append(_measured_null(name, [one for one in twins if isinstance(one, NullFound)]))
    else:
        message = f"{DESCRIPTIONS[name]}: {reason}; drift is not compared with it"
        warnings.append(ReportWarning(code="noise_floor_not_computed", message=message))
    reason = next((one for one in random if isinstance(one, str)), None)
    drift: list[float | None] = [None] * len(random)
    if reason is None:
        ckas = [one.views["token"].cka for one in random if isinstance(one, NullFound)]
        drift = [None if cka is None else 1 - cka for cka in ckas]
    else:
        message = f"{NOTHING_LEFT}: {reason}; drift is not reported on this scale"
        warnings.append(ReportWarning(code="noise_floor_not_computed", message=message))
    return Nulls(measured_nulls, None, drift, warnings)


def _measured_null(name: NoiseFloorName, layers: list[NullFound]) -> MeasuredNull:
    return MeasuredNull(
        null=NoiseFloor(name=name, description=DESCRIPTIONS[name], tokens=layers[0].rows),
        similarity={view: [layer.views[view] for layer in layers] for view in layers[0].views},
        geometry=[layer.geometry for layer in layers if layer.geometry is not None],
    )


def _token_drift(
    context: PairContext, pair: LayeredPair, shown: list[Text], told: list[Batch], found: ByLayer
) -> TokenDrift:
    """How far every token of the shown texts moved, layer by layer."""
    tokenizer, texts = pair.tokenization.tokenizer, dict[int, TokenText]()
    for number, whole in enumerate(told):
        batch = pair.tokenization.rule.known(whole)
        for row, index in enumerate(batch.indices):
            length = int(batch.attention_mask[row].sum())
            layers: list[Tensor] = [layer.shown[number][row, :length] for layer in found.layers]
            texts[index] = TokenText(
                text=shown_text(shown[index]),
                tokens=list(tokenizer.convert_ids_to_tokens(batch.input_ids[row, :length].tolist())),
                special=(~batch.real[row, :length]).tolist(),
                roles=shown_roles(batch, row, length),
                drift=[[round(float(value), 4) for value in layer] for layer in layers],
            )
    in_order = [texts[index] for index in sorted(texts)]
    return TokenDrift(source="request" if context.request.analysis.texts else "dataset", texts=in_order)
