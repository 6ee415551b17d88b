"""Linear probes: what a logistic regression reads off representations, on texts that it was not fitted to.

Pure mathematics on features and class numbers; all sites are fitted as one convex problem.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workers.analysis.permutation import first_of

WEIGHT_PENALTY = 1e-3
"""Of half the squared weights, beside the mean cross-entropy; features are scaled to rows of unit mean square."""

MAX_ITERATIONS = 200


def stratified_folds(classes: Tensor, folds: int, generator: torch.Generator, units: Tensor | None = None) -> Tensor:
    """A fold for each of N texts, so that every class is spread evenly over them; [N] -> [N].

    Args:
        units: [N]; texts of one unit are in one fold, where the class of the first of them belongs.
    """
    of_unit = torch.arange(len(classes)) if units is None else units.unique(return_inverse=True)[1]
    class_of_unit = classes[first_of(of_unit)]
    count = len(class_of_unit)
    assigned = torch.zeros(count, dtype=torch.int64)
    order = torch.randperm(count, generator=generator)
    for one in classes.unique():
        members = order[class_of_unit[order] == one]
        assigned[members] = torch.arange(len(members)) % folds
    return assigned[of_unit]


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
    """The direction that tells each class from the mean of all, by ridge regression on the classes' indicators.

    Args:
        features: [N, D]. classes: [..., N], 0 to C - 1; several labellings of the same texts are fitted at once.

    Returns:
        [..., C, D] of unit norm; zero where no feature varies.
    """
    mean, scale = _standardising(features[None])
    scaled = ((features - mean[0]) * scale[0]).double()
    penalty = WEIGHT_PENALTY * len(features) * torch.eye(scaled.shape[1], dtype=torch.float64)
    solve = torch.linalg.solve(scaled.T @ scaled + penalty, scaled.T)
    indicators = nn.functional.one_hot(classes, int(classes.max()) + 1).double()
    rows = (solve @ indicators).mT * scale[0].double()
    return nn.functional.normalize(rows - rows.mean(-2, keepdim=True), dim=-1).float()


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
