"""The measures of a pair in layer order: nothing but small results is kept of a layer when the next one comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from layerdrift.contract.names import PartName, ViewName
from workers.analysis.geometry import Geometry, PairDistances
from workers.analysis.moments import Frame, NotFinite
from workers.analysis.similarity import SiteSimilarity, row_drift
from workers.analysis.streams import Rows
from workers.models.device import give_memory_back
from workers.models.inliers import Inliers
from workers.models.texts import Batch
from workers.results.models import WeightDrift
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.common.moment_accumulator import (
    TEXT_SAMPLE,
    TEXT_SAMPLE_BYTES,
    VIEWS,
    GroupPlan,
    TextSample,
    is_of_texts,
    token_sample,
)
from workers.stages.common.progress import OnProgress, Spans
from workers.stages.common.view_similarity import ViewSimilarity
from workers.stages.extract.heldout_rows import HeldoutRows
from workers.stages.extract.last_states import LastStates
from workers.stages.extract.late_outliers import LateOutliers
from workers.stages.extract.layer_files import LayerFiles
from workers.stages.extract.layer_walk import LayerStates, LayerWalk
from workers.stages.extract.nulls import NULL_TOKENS
from workers.stages.extract.rows_aside import RowsAside
from workers.stages.extract.view_rows import ViewFound, ViewRows

BLOCKS, LAYERS = "block", "layer"
"""Spans of the progress: the models' blocks, then what is measured of the layers that wait."""

NULL_TEXTS = 40
"""Texts that a null reads, up to NULL_TOKENS: views of a vector for each text have as many rows."""

INLIER_TOKENS = 2048
"""Tokens whose norms settle which later ones are outliers."""


BothLast = tuple[LastStates, LastStates]
"""The last layer of both models."""

_Ends = tuple[BothLast, BothLast | None]
"""Of the compared texts, and of the reference texts where there are some."""


@dataclass(frozen=True)
class TextSet:
    """Texts that are read together, in batches of one group after another. tokens: about how many they have."""

    texts: int
    tokens: int
    groups: list[int] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)


@dataclass(frozen=True)
class NullFound:
    """A null at one layer: its similarities by view, and its geometry where it was asked for."""

    rows: int
    views: dict[ViewName, SiteSimilarity]
    geometry: Geometry | None


@dataclass(frozen=True)
class LayerFound:
    """What is kept of a layer.

    tokens, means: of both models, the sampled tokens and the means of sampled texts, [1, N, D] each. first, outliers:
    tokens that were left out. shown: by batch of the shown texts, the drift of every token, [B, T].
    """

    views: dict[ViewName, ViewFound]
    tokens: Rows
    means: Rows
    texts: list[int]
    first: int
    outliers: int
    twin: NullFound | str
    random: NullFound | str
    reference: ViewFound | None
    shown: list[Tensor]


@dataclass(frozen=True)
class ByLayer:
    """All layers. inliers: the rule, which knows the outliers of all these texts. redone: layers measured twice."""

    layers: list[LayerFound]
    inliers: Inliers
    last_states: BothLast
    reference_states: BothLast | None
    weights: list[dict[PartName, WeightDrift]]
    redone: int

    def view(self, name: ViewName) -> ViewSimilarity:
        """One view of all layers."""
        return ViewSimilarity.joined([layer.views[name].similarity for layer in self.layers])

    def frame(self) -> Frame:
        """Of the token view."""
        frames = [layer.views["token"].frame for layer in self.layers]
        return Frame(*(torch.cat([getattr(one, name) for one in frames]) for name in vars(frames[0])))

    def with_others(self) -> list[SiteSimilarity] | None:
        """The token view with the tokens that do not count; None where all do."""
        found = [layer.views["token"].with_others for layer in self.layers]
        return None if any(one is None for one in found) else [one for one in found if one is not None]

    def token_sample(self) -> tuple[Tensor, Tensor]:
        """Of both models, [L + 1, N, D] each."""
        return tuple(torch.cat([layer.tokens[side] for layer in self.layers]) for side in (0, 1))  # type: ignore[return-value]

    def text_sample(self) -> TextSample:
        """The means of the sampled texts."""
        base, tuned = (torch.cat([layer.means[side] for layer in self.layers]) for side in (0, 1))
        return TextSample(Rows(base, tuned), self.layers[0].texts)


@dataclass(frozen=True)
class LayerPlan:
    """How layers are measured.

    groups, reference_groups: as for `ViewRows`. null_tokens: about how many of the compared tokens the twin and the
    random model read. seed: of the samples and of random weights. waiting_bytes: disk that states of all layers may
    take. heldout: where rows for autoencoders go; None: there are none.
    """

    groups: GroupPlan | None
    reference_groups: GroupPlan | None
    null_tokens: tuple[int, int]
    seed: int
    waiting_bytes: float
    heldout: HeldoutRows | None = None


class LayerMeasures:
    """Measures layer after layer.

    Args:
        compared, shown, reference: texts, walked in this order; shown ones are only told token by token.
        folder: for what waits on disk.
    """

    def __init__(
        self,
        pair: LayeredPair,
        compared: TextSet,
        shown: TextSet,
        reference: TextSet | None,
        plan: LayerPlan,
        folder: Path,
    ) -> None:
        self._pair = pair
        self._compared, self._shown, self._reference = compared, shown, reference
        self._plan, self._folder = plan, folder
        batches = [*compared.batches, *shown.batches, *(reference.batches if reference is not None else ())]
        twin, random = (reaching(compared.batches, least, NULL_TEXTS) for least in plan.null_tokens)
        self._walk = LayerWalk(pair, batches, twin, random, plan.seed)
        settled_by = reaching(compared.batches, INLIER_TOKENS)
        self._outliers = LateOutliers(batches, pair.tokenization.causal, settled_by)
        self._aside = RowsAside(plan.heldout, pair.width) if plan.heldout is not None else None

    def measured(self, on_progress: OnProgress, weights_of: Callable[[int], dict[PartName, WeightDrift]]) -> ByLayer:
        """All layers, without the tokens that are outliers in any of them.

        Which these are is known after the last layer. Until then the states wait on disk. Where they have no room
        there, each layer is measured as it comes, and again where a later one shows further outliers.

        Args:
            weights_of: the weight drift of a layer; its block is in memory.

        Raises:
            InputError: a model overflows, or a block cannot be read.
            NotBlockwise: as in `LayerWalk.layers`.
        """
        spans = Spans(on_progress, {BLOCKS: 3.0, LAYERS: 2.0})
        weights, depth = [weights_of(0)], self._pair.layers - 1
        waiting = LayerFiles(self._folder / "layers", self._plan.waiting_bytes, depth + 1)
        found, ends = list[LayerFound](), list[_Ends]()

        def take(standing: LayerStates) -> None:
            self._outliers.look(standing)
            if not waiting.put(standing):
                found.append(self._layer(standing))
            if standing.layer == depth:
                ends.append(self._ends(standing))

        on_layer = spans.span(LAYERS)
        try:
            self._walked(depth, spans.span(BLOCKS), take, lambda block: weights.append(weights_of(block + 1)))
            redone = self._outliers.latest if found else 0
            give_memory_back()  # what the passes held
            for standing in waiting.each():
                found.append(self._layer(standing))
                give_memory_back(garbage=False)
                on_layer(len(found) / (depth + 1), f"{LAYERS} {len(found)} of {depth + 1}")
        finally:
            waiting.clear()
        if redone:
            again = list[LayerFound]()
            self._walked(redone - 1, on_layer, lambda standing: again.append(self._layer(standing)), lambda _: None)
            found[:redone] = again
        if self._aside is not None:
            self._aside.finish(self._outliers.judged(number) for number in range(len(self._compared.batches)))
        return ByLayer(found, self._outliers.rule(), *ends[0], weights, redone)

    def _walked(
        self, last: int, on_progress: OnProgress, take: Callable[[LayerStates], None], on_block: Callable[[int], None]
    ) -> None:
        """Lets `take` have the layers up to the last one."""

        def progress(share: float) -> None:
            on_progress(share, f"{BLOCKS} {min(last, 1 + int(share * last))} of {last}")

        with closing(self._walk.layers(last, progress, on_block)) as walk:
            for standing in walk:
                take(standing)
                give_memory_back(garbage=False)  # what a layer took lies between what is kept of it

    def _ends(self, standing: LayerStates) -> _Ends:
        compared = self._last_states(standing, self._compared, 0)
        if self._reference is None:
            return compared, None
        start = len(self._compared.batches) + len(self._shown.batches)
        return compared, self._last_states(standing, self._reference, start)

    def _last_states(self, standing: LayerStates, texts: TextSet, start: int) -> BothLast:
        """Of both models at texts whose batches begin with number `start`."""
        names = (f"last-{start}-base", f"last-{start}-tuned")
        found = tuple(LastStates(texts.texts, self._folder / name) for name in names)
        for number, batch in enumerate(texts.batches):
            for kept, side in zip(found, (standing.base, standing.tuned), strict=True):
                kept.add(batch, side[start + number].cpu())
        return found[0], found[1]

    def _layer(self, standing: LayerStates) -> LayerFound:
        pair, compared = self._pair, self._compared
        counts = pair.tokenization.rows(compared.texts, compared.tokens)
        causal = pair.tokenization.causal
        views = ViewRows(counts, pair.width, causal, self._folder / "moments", self._plan.groups)
        sample, means, others = token_sample(pair.layers, pair.width, self._plan.seed), _TextMeans(pair), list[Rows]()
        first = outliers = 0
        for number, group in enumerate(compared.groups):
            whole, batch = compared.batches[number], self._outliers.judged(number)
            base, tuned = _float(standing.base[number]), _float(standing.tuned[number])
            left_out = whole.real & ~batch.real
            at_start = int(left_out[:, 0].sum()) if causal else 0
            first, outliers = first + at_start, outliers + int(left_out.sum()) - at_start
            rows = views.add(group, batch, base, tuned)
            sample.add(*rows["token"])
            if self._aside is not None:
                self._aside.add(standing.layer, number, rows["token"])
            means.add(batch, rows["mean"])
            if bool(left_out.any()):
                others.append(Rows(base[left_out][None], tuned[left_out][None]))
        found = views.found(Rows.joined(others) if others else None)
        views.clear()
        return LayerFound(
            views=found,
            tokens=Rows(*sample.rows()),
            means=means.rows(),
            texts=means.texts,
            first=first,
            outliers=outliers,
            twin=self._null(standing, standing.twin, (*VIEWS, *pair.tokenization.roles)),
            random=self._null(standing, standing.random, ("token",)),
            reference=self._of_reference(standing),
            shown=self._of_shown(standing, found["token"].frame),
        )

    def _null(
        self, standing: LayerStates, states: Sequence[Tensor] | str, views: tuple[ViewName, ...]
    ) -> NullFound | str:
        """The base model beside a null on the null's batches; the reason where there is none, or where it overflows."""
        if isinstance(states, str):
            return states
        batches = [self._outliers.judged(number) for number in range(len(states))]
        texts = sum(len(batch.indices) for batch in batches)
        tokens = sum(int(batch.real.sum()) for batch in batches)
        counts: dict[ViewName, int] = {view: texts if is_of_texts(view) else tokens for view in views}
        rows = ViewRows(counts, self._pair.width, self._pair.tokenization.causal, self._folder / "null")
        means = _TextMeans(self._pair)
        try:
            for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
                found = rows.add(0, batch, _float(standing.base[number]), _float(state))
                means.add(batch, found["mean"])
            similar = rows.found()
        except NotFinite as error:
            return str(NotFinite(error.side, standing.layer))
        sites = {view: one.similarity.sites[0] for view, one in similar.items()}
        geometry = PairDistances(*(side[0] for side in means.rows())).geometry() if "mean" in views else None
        return NullFound(similar["token"].similarity.rows, sites, geometry)

    def _of_reference(self, standing: LayerStates) -> ViewFound | None:
        reference = self._reference
        if reference is None:
            return None
        start = len(self._compared.batches) + len(self._shown.batches)
        causal = self._pair.tokenization.causal
        counts: dict[ViewName, int] = {"token": reference.tokens}
        folder, groups = self._folder / "reference-moments", self._plan.reference_groups
        rows = ViewRows(counts, self._pair.width, causal, folder, groups)
        for number, group in enumerate(reference.groups, start=start):
            batch = self._outliers.judged(number)
            rows.add(group, batch, _float(standing.base[number]), _float(standing.tuned[number]))
        found = rows.found()["token"]
        rows.clear()
        return found

    def _of_shown(self, standing: LayerStates, frame: Frame) -> list[Tensor]:
        start, found = len(self._compared.batches), []
        for number in range(start, start + len(self._shown.batches)):
            base, tuned = (_float(side[number])[None].double() for side in (standing.base, standing.tuned))
            centred = base - frame.base[:, None, None], tuned - frame.tuned[:, None, None]
            found.append(row_drift(*centred, frame.spreads())[0])
        return found


class _TextMeans:
    """Means of the first texts, as many as the sample of all layers holds."""

    def __init__(self, pair: LayeredPair) -> None:
        self.texts: list[int] = []
        self._kept: list[Rows] = []
        row_bytes = 2 * pair.layers * pair.width * torch.float32.itemsize
        self._limit = min(TEXT_SAMPLE, TEXT_SAMPLE_BYTES // row_bytes)

    def add(self, batch: Batch, means: Rows) -> None:
        """Takes the means [1, B, D] of the batch's texts that have a token that counts."""
        texts = [index for index, real in zip(batch.indices, batch.real.any(1).tolist(), strict=True) if real]
        kept = [place for place, text in enumerate(texts) if text < self._limit]
        if kept:
            self.texts += [texts[place] for place in kept]
            self._kept.append(Rows(means.base[:, kept], means.tuned[:, kept]))

    def rows(self) -> Rows:
        """Of both models, [1, N, D] each."""
        return Rows.joined(self._kept)


def _float(state: Tensor) -> Tensor:
    return state.float().cpu()


def reaching(batches: Sequence[Batch], tokens: int, texts: int = 0) -> int:
    """How many of the first batches have so many tokens and texts, or NULL_TOKENS; all, where they have fewer."""
    seen = read = 0
    for number, batch in enumerate(batches, start=1):
        seen, read = seen + int(batch.real.sum()), read + len(batch.indices)
        if seen >= tokens and (read >= texts or seen >= NULL_TOKENS):
            return number
    return len(batches)
