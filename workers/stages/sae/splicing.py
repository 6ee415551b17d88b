"""What a model's answers lose when its states are put through an autoencoder, or lack some of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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


class SplicedLoss:
    """The loss of one model's predictions on the same texts, each time with other states in it.

    Cross-entropy in nats of a right class or a token. Of a classifier without known classes, the Kullback-Leibler
    divergence of its answers from those that it gives by itself.
    """

    def __init__(self, eval_set: EvalSet, model: PreTrainedModel, targets: Tensor | None) -> None:
        self._eval_set = eval_set
        self._model = model
        self._targets = targets
        self._known = KnownStates.of(model, eval_set)
        self.by_divergence = eval_set.kind == "classifier" and targets is None
        own = (eval_set.predict(model, batch) for batch in eval_set.batches())
        self._own = list(own) if self.by_divergence else None  # of a language model they would fill the memory
        self.unspliced = self._scores(iter(self._own) if self._own is not None else own)

    def at(self, layer: int, edit: Edit) -> Scores:
        """By text, with the states at a layer edited."""
        return self._scores(self._answers(layer, edit))

    def grouped(self, scores: Scores) -> Scores:
        """By group of texts."""
        return self._eval_set.grouped(scores)

    def divergences(self, layer: int, edits: list[Edit]) -> list[Scores]:
        """How far each edit of the states at a layer moves the answers to the first ABLATION_TEXTS texts: KL, nats."""
        asked = above(self._known, layer, self._model, self._eval_set).first(ABLATION_TEXTS, ABLATION_TOKENS)
        texts = len(asked.rows)
        zeros = torch.zeros(texts, dtype=torch.float64)
        found = [Scores(zeros, zeros)] * len(edits)
        for batch in asked.batches():
            own = asked.predict(self._model, batch).log_probs
            for number, edit in enumerate(edits):
                with asked.tokenization.states.edited(
                    body_of(self._model), layer, edit, asked.tokenization.known(batch).real
                ):
                    moved = asked.predict(self._model, batch)
                part = by_text(kl_bits(own, moved.log_probs) * math.log(2), moved.texts, texts)
                found[number] = Scores(found[number].sums + part.sums, found[number].counts + part.counts)
        return found

    def mean_of(self, scores: Scores) -> Measured:
        """A mean over examples with its interval over texts."""
        return ratio(*self._eval_set.grouped(scores), bounds=(0.0, math.inf))

    def _answers(self, layer: int, edit: Edit) -> Iterator[Predicted]:
        asked = above(self._known, layer, self._model, self._eval_set)
        for batch in asked.batches():
            tokenization = asked.tokenization
            with tokenization.states.edited(body_of(self._model), layer, edit, tokenization.known(batch).real):
                found = asked.predict(self._model, batch)
            yield found

    def _scores(self, answers: Iterator[Predicted]) -> Scores:
        texts = len(self._eval_set.rows)
        whole = Scores(torch.zeros(texts, dtype=torch.float64), torch.zeros(texts, dtype=torch.float64))
        for number, found in enumerate(answers):
            part = self._of_batch(found, self._own[number] if self._own is not None else None, texts)
            whole = Scores(whole.sums + part.sums, whole.counts + part.counts)
        return whole

    def _of_batch(self, found: Predicted, own: Predicted | None, texts: int) -> Scores:
        if own is not None:
            return by_text(kl_bits(own.log_probs, found.log_probs) * math.log(2), found.texts, texts)
        if self._targets is None:
            return quality(found, self._eval_set.kind, texts)
        targets = self._targets[found.texts]
        known = targets >= 0
        losses = -found.log_probs[known].gather(1, targets[known][:, None])[:, 0]
        return by_text(losses, found.texts[known], texts)


def loss_recovered(loss: SplicedLoss, dictionaries: Dictionaries, layer: int, site: int) -> Measured:
    """1 - (loss with the reconstruction - loss) / (loss with the mean - loss); 1: nothing is lost."""
    stack = dictionaries.stack
    own = loss.unspliced
    rebuilt = loss.at(layer, _inliers_only(stack, site, lambda rows: stack.decode(site, stack.encode(site, rows))))
    mean = dictionaries.means[site].float()
    flat = loss.at(layer, _inliers_only(stack, site, lambda rows: mean.expand_as(rows)))
    count = float(own.counts.sum())
    if not count or float((flat.sums - own.sums).sum()) / count < LEAST_LOSS:
        reason = "replacing the states with their mean barely raises the loss: there is nothing to recover"
        return Measured(value=None, undefined=reason)
    # the loss that the mean causes stands in for a count: recovered = sum (mean's - rebuilt's) / sum (mean's - own)
    return ratio(*loss.grouped(Scores(flat.sums - rebuilt.sums, flat.sums - own.sums)))


def ablation(loss: SplicedLoss, dictionaries: Dictionaries, place: int, seed: int) -> LatentAblation | None:
    """How far the answers move without a layer's changed latents; None where none changed.

    Beside it the same without other sets that fire about as often and as strongly, where there are as many others.
    """
    changed, others = dictionaries.changed[place], dictionaries.others[place]
    if not changed or dictionaries.warmed is None:
        return None
    stack, site = dictionaries.warmed, dictionaries.layout.tuned(place)
    draws = matched_draws(
        torch.tensor(changed),
        torch.tensor(others),
        dictionaries.firing[place],
        DRAWS,
        ALIKE,
        torch.Generator().manual_seed(seed),
    )
    edits = [_without(stack, site, latents) for latents in (changed, *draws)]
    found = [loss.mean_of(scores) for scores in loss.divergences(dictionaries.layers[place], edits)]
    cost, by_chance = found[0], torch.tensor([one.value for one in found[1:]], dtype=torch.float64)
    return LatentAblation(
        latents=len(changed),
        cost=replace(cost, noise_floor=float(by_chance.mean()) if draws else None),
        draws=len(draws),
        p=p_value(cost.value or 0.0, by_chance) if draws else None,
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
    base: Callable[[], SplicedLoss] | None,
    tuned: Callable[[], SplicedLoss],
    texts: int,
) -> Spliced:
    """All layers of the models that can be asked, one model after the other: each keeps its states at all layers."""
    layers, layout = dictionaries.layers, dictionaries.layout
    count = len(layers) * (1 if base is None else 2)

    def recovered(loss: SplicedLoss, sites: list[int], done: int) -> Iterator[Measured]:
        for place, layer in enumerate(layers):
            yield loss_recovered(loss, dictionaries, layer, sites[place])
            context.on_progress((done + place + 1) / count, f"autoencoders of layer {layer} in the models")

    of_base = list(recovered(base(), layout.base_sites, 0)) if base is not None else None
    loss = tuned()
    of_tuned, ablations = list[Measured](), list[LatentAblation | None]()
    for place, found in enumerate(recovered(loss, layout.tuned_sites, count - len(layers))):
        of_tuned.append(found)
        heard = found.value is not None
        ablations.append(ablation(loss, dictionaries, place, context.request.seed) if heard else None)
    info = SpliceInfo(loss="kl" if loss.by_divergence else "cross_entropy", examples=texts)
    return Spliced(of_base, of_tuned, ablations, info)
