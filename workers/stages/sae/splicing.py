"""What a model's answers lose when its states are put through an autoencoder, or lack some of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.analysis.permutation import matched_draws, p_value
from workers.analysis.sae import SaeStack
from workers.models.loading import body_of
from workers.models.states import Edit
from workers.results.autoencoders import LatentAblation
from workers.results.effects import SpliceInfo
from workers.results.measured import Measured
from workers.stages.common.context import StageContext
from workers.stages.common.evaluation import EvalSet, Predicted, Scores, by_text, kl_bits, quality
from workers.stages.common.intervals import ratio
from workers.stages.common.known_states import KnownStates, above
from workers.stages.sae.findings import Dictionaries

SPLICE_TEXTS, SPLICE_TOKENS = 200, 2_500
"""Texts that every splice is judged on, two evaluations of each layer; and their tokens, as `EvalSet.first`."""

ABLATION_TEXTS, ABLATION_TOKENS = 50, 600
"""Of these, what a layer's changed latents are taken out on."""

DRAWS, ALIKE = 20, 10
"""Sets that are taken out instead, and the least number of latents that count as firing alike."""

LEAST_LOSS = 1e-3
"""Nats by which the mean in the states' place must raise the loss: of less there is nothing to recover."""


@dataclass(frozen=True)
class Spliced:
    """By layer that has autoencoders: the loss recovered in each model that could be asked, and the ablation of the
    tuned one's latents.
    """

    base: list[Measured] | None
    tuned: list[Measured]
    ablations: list[LatentAblation | None]
    info: SpliceInfo


class LayerEdits(NamedTuple):
    """What is done to the states at a layer.

    rebuilt: they are what the autoencoder makes of them. flat: their mean. without: they lack the changed latents, then
    each of the sets that are drawn instead; empty where none changed.
    """

    layer: int
    rebuilt: Edit
    flat: Edit
    without: list[Edit]


class LayerScores(NamedTuple):
    """The loss of a model by text as it is, and under the edits of a layer. moved: how far each edit of `without` moves
    the answers to the first ABLATION_TEXTS texts: Kullback-Leibler divergence, nats.
    """

    own: Scores
    rebuilt: Scores
    flat: Scores
    moved: list[Scores]


class Loss(Protocol):
    """The loss of one model's predictions on texts, each time with other states in it."""

    by_divergence: bool

    def edited(self, layers: list[LayerEdits], on_progress: Callable[[float], None]) -> Iterator[LayerScores]:
        """One layer after another."""
        ...


@dataclass(frozen=True)
class Judge:
    """The loss of a model's answers by text: cross-entropy in nats of a right class or a token.

    Of a classifier without known classes, the Kullback-Leibler divergence of its answers from those that it gives by
    itself.
    """

    asked: EvalSet
    targets: Tensor | None

    @property
    def by_divergence(self) -> bool:
        """Whether answers are held against the model's own."""
        return self.asked.kind == "classifier" and self.targets is None

    def loss(self, found: Predicted, own: Predicted | None) -> Scores:
        """Of some answers; `own`: the model's own to the same texts, where they count."""
        texts = len(self.asked.rows)
        if self.by_divergence and own is not None:
            return by_text(kl_bits(own.log_probs, found.log_probs) * math.log(2), found.texts, texts)
        if self.targets is None:
            return quality(found, self.asked.kind, texts)
        targets = self.targets[found.texts]
        known = targets >= 0
        losses = -found.log_probs[known].gather(1, targets[known][:, None])[:, 0]
        return by_text(losses, found.texts[known], texts)


class SplicedLoss:
    """Of a model in memory."""

    def __init__(self, eval_set: EvalSet, model: PreTrainedModel, targets: Tensor | None) -> None:
        self._eval_set = eval_set
        self._model = model
        self._judge = Judge(eval_set, targets)
        self._known = KnownStates.of(model, eval_set)
        self.by_divergence = self._judge.by_divergence
        own = (eval_set.predict(model, batch) for batch in eval_set.batches())
        self._own = list(own) if self.by_divergence else None  # of a language model they would fill the memory
        self._unspliced = self._scores(iter(self._own) if self._own is not None else own)

    def edited(self, layers: list[LayerEdits], on_progress: Callable[[float], None]) -> Iterator[LayerScores]:
        """As `Loss.edited`."""
        for number, one in enumerate(layers, start=1):
            rebuilt, flat = (self._scores(self._answers(one.layer, edit)) for edit in (one.rebuilt, one.flat))
            yield LayerScores(self._unspliced, rebuilt, flat, self._divergences(one.layer, one.without))
            on_progress(number / len(layers))

    def _divergences(self, layer: int, edits: list[Edit]) -> list[Scores]:
        asked = above(self._known, layer, self._model, self._eval_set).first(ABLATION_TEXTS, ABLATION_TOKENS)
        texts = len(asked.rows)
        found = [Scores.none(texts)] * len(edits)
        for batch in asked.batches() if edits else ():
            own = asked.predict(self._model, batch).log_probs
            for number, edit in enumerate(edits):
                with asked.tokenization.states.edited(
                    body_of(self._model), layer, edit, asked.tokenization.known(batch).real
                ):
                    moved = asked.predict(self._model, batch)
                part = by_text(kl_bits(own, moved.log_probs) * math.log(2), moved.texts, texts)
                found[number] = found[number].plus(part)
        return found

    def _answers(self, layer: int, edit: Edit) -> Iterator[Predicted]:
        asked = above(self._known, layer, self._model, self._eval_set)
        for batch in asked.batches():
            tokenization = asked.tokenization
            with tokenization.states.edited(body_of(self._model), layer, edit, tokenization.known(batch).real):
                found = asked.predict(self._model, batch)
            yield found

    def _scores(self, answers: Iterator[Predicted]) -> Scores:
        texts = len(self._eval_set.rows)
        whole = Scores.none(texts)
        for number, found in enumerate(answers):
            whole = whole.plus(self._judge.loss(found, self._own[number] if self._own is not None else None))
        return whole


def layer_edits(dictionaries: Dictionaries, place: int, site: int, ablates: bool, seed: int) -> LayerEdits:
    """Those of a layer that has autoencoders.

    Args:
        place: of the layer among these. site: the model's autoencoder there. ablates: whether the changed latents are
        taken out, and sets of others that fire about as often and as strongly, where there are as many others.
    """
    stack, mean = dictionaries.stack, dictionaries.means[site].float()
    without = list[Edit]()
    changed, others = dictionaries.changed[place], dictionaries.others[place]
    if ablates and changed and dictionaries.warmed is not None:
        generator = torch.Generator().manual_seed(seed)
        chosen, left = torch.tensor(changed), torch.tensor(others)
        draws = matched_draws(chosen, left, dictionaries.firing[place], DRAWS, ALIKE, generator)
        warmed, of_tuned = dictionaries.warmed, dictionaries.layout.tuned(place)
        without = [_without(warmed, of_tuned, latents) for latents in (changed, *draws)]
    return LayerEdits(
        dictionaries.layers[place],
        _inliers_only(stack, site, lambda rows: stack.decode(site, stack.encode(site, rows))),
        _inliers_only(stack, site, lambda rows: mean.expand_as(rows)),
        without,
    )


def loss_recovered(asked: EvalSet, found: LayerScores) -> Measured:
    """1 - (loss with the reconstruction - loss) / (loss with the mean - loss); 1: nothing is lost."""
    own, rebuilt, flat = found.own, found.rebuilt, found.flat
    count = float(own.counts.sum())
    if not count or float((flat.sums - own.sums).sum()) / count < LEAST_LOSS:
        reason = "replacing the states with their mean barely raises the loss: there is nothing to recover"
        return Measured(value=None, undefined=reason)
    # the loss that the mean causes stands in for a count: recovered = sum (mean's - rebuilt's) / sum (mean's - own)
    return ratio(*asked.grouped(Scores(flat.sums - rebuilt.sums, flat.sums - own.sums)))


def ablation(asked: EvalSet, found: LayerScores, changed: int) -> LatentAblation | None:
    """How far the answers move without a layer's changed latents, beside the sets drawn instead; None where none
    changed.
    """
    if not found.moved:
        return None
    cost, *drawn = (ratio(*asked.grouped(scores), bounds=(0.0, math.inf)) for scores in found.moved)
    by_chance = torch.tensor([one.value for one in drawn], dtype=torch.float64)
    return LatentAblation(
        latents=changed,
        cost=replace(cost, noise_floor=float(by_chance.mean()) if drawn else None),
        draws=len(drawn),
        p=p_value(cost.value or 0.0, by_chance) if drawn else None,
    )


def _without(stack: SaeStack, site: int, latents: list[int]) -> Edit:
    def edit(rows: Tensor) -> Tensor:
        return rows - stack.encode(site, rows, latents) @ stack.W_dec[site][latents] * stack.scale[site]

    return _inliers_only(stack, site, edit)


def _inliers_only(stack: SaeStack, site: int, edit: Edit) -> Edit:
    """Leaves rows of outlying norm as they are: autoencoders are not made for them."""

    def edit_inliers(rows: Tensor) -> Tensor:
        return torch.where(stack.inliers(site, rows)[:, None], edit(rows), rows)

    return edit_inliers


def splices(
    context: StageContext,
    dictionaries: Dictionaries,
    asked: EvalSet,
    base: Callable[[], Loss] | None,
    tuned: Callable[[], Loss],
) -> Spliced:
    """All layers of the models that can be asked, one model after the other: each keeps its states at all layers."""
    layout, layers, seed = dictionaries.layout, dictionaries.layers, context.request.seed
    sides = 1 if base is None else 2

    def edited(loss: Loss, sites: list[int], side: int) -> Iterator[LayerScores]:
        edits = [
            layer_edits(dictionaries, place, site, ablates=sites == layout.tuned_sites, seed=seed)
            for place, site in enumerate(sites)
        ]

        def on_progress(share: float) -> None:
            place = min(len(layers) - 1, int(share * len(layers)))
            context.on_progress((side + share) / sides, f"autoencoders of layer {layers[place]} in the models")

        yield from loss.edited(edits, on_progress)

    of_base = None
    if base is not None:
        of_base = [loss_recovered(asked, found) for found in edited(base(), layout.base_sites, 0)]
    loss = tuned()
    of_tuned, ablations = list[Measured](), list[LatentAblation | None]()
    for place, found in enumerate(edited(loss, layout.tuned_sites, sides - 1)):
        recovered = loss_recovered(asked, found)
        of_tuned.append(recovered)
        heard = recovered.value is not None
        ablations.append(ablation(asked, found, len(dictionaries.changed[place])) if heard else None)
    info = SpliceInfo(loss="kl" if loss.by_divergence else "cross_entropy", examples=len(asked.rows))
    return Spliced(of_base, of_tuned, ablations, info)
