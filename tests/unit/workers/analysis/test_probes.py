from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workers.analysis.probes import WEIGHT_PENALTY, fit_logistic, held_out_hits, stratified_folds
from workers.analysis.streams import Rows
from workers.stages.compare.probes import probe


def labelled(texts: int = 200, width: int = 20, signal: float = 3.0) -> tuple[Tensor, Tensor]:
    """Rows whose class moves them along one direction."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 2, (texts,), generator=generator)
    rows = torch.randn(texts, width, generator=generator)
    rows[:, 0] += signal * (2 * classes - 1)
    return rows, classes


def test_the_fit_is_the_minimum_of_the_penalised_loss() -> None:
    """Convex: no gradient is left, whichever way it was found; every site as if it were alone."""
    rows, classes = labelled(60, 8, 0.5)
    features = torch.stack([rows, -rows, rows.flip(1)]).double()
    weights, biases = fit_logistic(features, classes.expand(3, -1), 2)
    weights.requires_grad_()
    loss = nn.functional.cross_entropy(
        torch.baddbmm(biases[:, None], features, weights).flatten(0, 1), classes.repeat(3)
    )
    (3 * loss + WEIGHT_PENALTY / 2 * weights.square().sum()).backward()
    assert weights.grad is not None
    assert float(weights.grad.abs().max()) < 1e-3
    alone = fit_logistic(features[1:2], classes.expand(1, -1), 2)
    torch.testing.assert_close(weights[1:2].detach(), alone[0], atol=0.05, rtol=0.05)


def test_a_label_that_stands_in_the_rows_is_read_and_a_shuffled_one_is_not() -> None:
    rows, classes = labelled()
    generator = torch.Generator().manual_seed(1)
    folds = stratified_folds(classes, 5, generator)
    shuffled = classes[torch.randperm(len(classes), generator=generator)]
    hits = held_out_hits(rows.expand(2, -1, -1), torch.stack([classes, shuffled]), folds).double().mean(1)
    assert hits[0] > 0.95
    assert abs(float(hits[1]) - 0.5) < 0.12


def test_nothing_of_the_held_out_texts_reaches_the_fit() -> None:
    """Random rows, as many features as texts: a probe that saw its texts would be right on all of them."""
    rows, classes = torch.randn(100, 100, generator=torch.Generator().manual_seed(3)), labelled(100)[1]
    hits = held_out_hits(rows[None], classes, stratified_folds(classes, 5, torch.Generator().manual_seed(0)))
    assert abs(float(hits.double().mean()) - 0.5) < 0.15


def test_a_feature_that_never_varies_does_no_harm() -> None:
    rows, classes = labelled()
    rows[:, 1] = 7.0
    hits = held_out_hits(rows[None], classes, stratified_folds(classes, 5, torch.Generator().manual_seed(0)))
    assert float(hits.double().mean()) > 0.95


def test_folds_hold_every_class_evenly() -> None:
    classes = torch.tensor([0] * 50 + [1] * 10)
    folds = stratified_folds(classes, 5, torch.Generator().manual_seed(0))
    for fold in range(5):
        assert (classes[folds == fold] == 0).sum() == 10
        assert (classes[folds == fold] == 1).sum() == 2


def test_probes_say_in_which_model_the_labels_can_be_read() -> None:
    rows, classes = labelled()
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(5))
    labels: list[str | None] = [str(one) for one in classes.tolist()]
    labels[0] = None
    found = probe(
        Rows(torch.stack([noise, noise]), torch.stack([noise, rows])), labels, torch.arange(200) % 20, 0, _tick
    )
    assert found is not None
    assert (found.info.examples, found.info.classes) == (199, 2)
    first, last = found.layers
    assert last.tuned.value is not None
    assert last.tuned.value > 0.95
    for chance in (first.base, first.tuned, last.base):
        assert chance.value is not None
        assert chance.low is not None
        assert chance.high is not None
        assert chance.low < chance.value < chance.high
        assert abs(chance.value - 0.5) < 0.15
    assert abs(last.tuned_control - 0.5) < 0.15


@pytest.mark.parametrize("labels", [[None] * 60, ["same"] * 60, ["a"] * 55 + ["b"] * 5])
def test_labels_that_cannot_be_probed_give_no_probe(labels: list[str | None]) -> None:
    rows = torch.randn(1, 60, 4)
    assert probe(Rows(rows, rows), labels, torch.arange(60) % 20, 0, _tick) is None


def _tick(_share: float) -> None:
    """Nobody watches."""
