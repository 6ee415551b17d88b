"""Which tokens count: the first of a causal model's texts, and outliers of either model, at every layer alike."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.models.inliers import Inliers
from workers.models.texts import Batch

LAYERS, TEXTS, TOKENS, WIDTH = 3, 2, 6, 4


def batch(seed: int = 0) -> Batch:
    ids = torch.randint(5, 50, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return Batch(ids, mask, mask.bool(), [0, 1])


def states(*longer: tuple[int, int, int]) -> list[Tensor]:
    """States of norm 1 at every layer, but for some (layer, text, token) of norm 100."""
    found = [torch.full((TEXTS, TOKENS, WIDTH), 0.5) for _ in range(LAYERS)]
    for layer, text, token in longer:
        found[layer][text, token] *= 100
    return found


def rule(causal: bool) -> Inliers:
    return Inliers.of(causal, [(batch(), states(), states())])


def test_the_first_token_counts_unless_the_model_is_causal() -> None:
    for causal in (False, True):
        judged = rule(causal).mark(batch(), states(), states())
        assert judged.real[:, 0].tolist() == [not causal] * TEXTS
        assert bool(judged.real[0, 1:].all())


def test_an_outlier_of_either_model_at_one_layer_counts_nowhere() -> None:
    judged = rule(causal=False).mark(batch(), states((1, 0, 2)), states((2, 1, 3)))
    left = (batch().real & ~judged.real).nonzero().tolist()
    assert left == [[0, 2], [1, 3]]
    assert judged.outlying is not None
    assert judged.outlying.nonzero().tolist() == left


def test_padding_is_no_outlier() -> None:
    judged = rule(causal=False).mark(batch(), states((0, 1, 5)), states())
    assert judged.outlying is not None
    assert not bool(judged.outlying.any())


def test_other_models_leave_out_the_same_tokens_of_the_same_texts() -> None:
    inliers = rule(causal=True)
    judged = inliers.mark(batch(), states((1, 0, 2)), states())
    assert torch.equal(inliers.known(batch()).real, judged.real)
    swapped = batch().rows(torch.tensor([1, 0]), TOKENS)
    assert torch.equal(inliers.known(swapped).real, judged.real[[1, 0]])
    other = inliers.known(batch(seed=1))
    assert bool(other.real[0, 1:].all())


def test_a_sink_in_every_text_does_not_raise_its_own_limit() -> None:
    """The median is that of the tokens that may count: a causal model's first ones are not among them."""
    sinks = states((1, 0, 0), (1, 1, 0))
    inliers = Inliers.of(True, [(batch(), sinks, sinks)])
    assert inliers.base_limits.tolist() == [10.0] * LAYERS
