"""Linear probes: what a logistic regression reads off representations, on texts that it was not fitted to.

Pure mathematics on features and class numbers; all sites are fitted as one convex problem.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WEIGHT_PENALTY = 1e-3
"""Of half the squared weights, beside the mean cross-entropy; features are scaled to rows of unit mean square."""

MAX_ITERATIONS = 200


def stratified_folds(classes: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """A fold for each of N texts, so that every class is spread evenly over them; [N] -> [N]."""
    assigned = torch.zeros_like(classes)
    order = torch.randperm(len(classes), generator=generator)
    for one in classes.unique():
        members = order[classes[order] == one]
        assigned[members] = torch.arange(len(members)) % folds
    return assigned


def held_out_hits(features: Tensor, classes: Tensor, folds: Tensor) -> Tensor:
    """Whether each text's class is found by a probe that was fitted to the other folds alone.

    Args:
        features: [S, N, D]; standardised with the means and deviations of the texts that are fitted to.
        classes: [N] int64, or [S, N] where sites have labels of their own (a control), 0 to C - 1.
        folds: [N] int64.

    Returns:
        [S, N] bool.
    """
    targets = classes.expand(len(features), -1)
    count = int(classes.max()) + 1
    hits = torch.zeros(features.shape[:2], dtype=torch.bool)
    for fold in folds.unique():
        fitted, held_out = folds != fold, folds == fold
        mean, scale = _standardising(features[:, fitted])
        scaled = (features - mean) * scale
        weights, biases = fit_logistic(scaled[:, fitted], targets[:, fitted], count)
        logits = torch.baddbmm(biases[:, None], scaled[:, held_out], weights)
        hits[:, held_out] = logits.argmax(2) == targets[:, held_out]
    return hits


def class_directions(features: Tensor, classes: Tensor) -> Tensor:
    """The direction in which a probe's logit of each class rises above the mean one; [N, D], [N] -> [C, D], unit norm.

    Zero where no feature varies.
    """
    mean, scale = _standardising(features[None])
    weights, _ = fit_logistic((features[None] - mean) * scale, classes[None], int(classes.max()) + 1)
    rows = (weights[0] * scale[0].T).T
    return nn.functional.normalize(rows - rows.mean(0), dim=1)


def _standardising(features: Tensor) -> tuple[Tensor, Tensor]:
    """Means, and what features are multiplied by so that rows have unit mean square; 0 for one that does not vary."""
    mean = features.mean(1, keepdim=True)
    deviation = features.std(1, keepdim=True)
    scale = 1 / deviation.clamp_min(torch.finfo(features.dtype).tiny) / features.shape[2] ** 0.5
    return mean, torch.where(deviation > 1e-6 * mean.abs(), scale, 0.0)


def fit_logistic(features: Tensor, targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights [S, D, C] and biases [S, C] of S penalised logistic regressions; features [S, N, D], targets [S, N]."""
    sites, _, width = features.shape
    weights = torch.zeros(sites, width, classes, dtype=features.dtype, requires_grad=True)
    biases = torch.zeros(sites, classes, dtype=features.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights, biases], max_iter=MAX_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = torch.baddbmm(biases[:, None], features, weights)
        fit = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) * sites
        value = fit + WEIGHT_PENALTY / 2 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return weights.detach(), biases.detach()
