"""Probes of the labels at every layer of both models, with shuffled labels as their control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.analysis.permutation import permuted
from workers.analysis.probes import class_directions, held_out_hits, stratified_folds
from workers.analysis.streams import Rows
from workers.results.measured import Measured
from workers.results.outputs import LayerProbe, ProbeInfo
from workers.stages.common.intervals import share

FOLDS = 5
MIN_CLASS_TEXTS = 10
MAX_CLASSES = 200
PERMUTATIONS, MIN_PERMUTATIONS, DIRECTIONS_BYTES = 199, 19, 128 << 20


@dataclass(frozen=True)
class Probed:
    """By layer, what they were fitted to, and where the tuned model's point."""

    layers: list[LayerProbe]
    info: ProbeInfo
    directions: LabelDirections


@dataclass(frozen=True)
class LabelDirections:
    """In the tuned model's mean-view rows of all probed texts: what tells each label from the mean of all.

    vectors: [L + 1, C, D], of unit norm, or zero where a layer's rows do not vary. by_chance: [L + 1, P, C, D], the
    same after the labels were permuted.
    """

    labels: list[str]
    vectors: Tensor
    by_chance: Tensor


def probe(
    rows: Rows, labels: list[str | None], units: Tensor, seed: int, on_progress: Callable[[float], None]
) -> Probed | None:
    """Fits probes to the mean-view rows of labelled texts; None where fewer than two labels have texts enough.

    Args:
        rows: [L + 1, N, D] of both models.
        labels: of the N texts.
        units: [N], numbers of units of texts that are alike: one is held out whole.
    """
    counts = Counter(label for label in labels if label is not None)
    names = sorted(label for label, count in counts.items() if count >= MIN_CLASS_TEXTS)
    if not 2 <= len(names) <= MAX_CLASSES:
        return None
    kept = [place for place, label in enumerate(labels) if label in names]
    classes = torch.tensor([names.index(str(labels[place])) for place in kept])
    generator = torch.Generator().manual_seed(seed)
    folds = stratified_folds(classes, FOLDS, generator, units[kept])
    shuffled = classes[torch.randperm(len(classes), generator=generator)]
    layers, directions, by_chance = [], [], []
    permutations = _permutations(rows.tuned.shape, len(names))
    orders = permuted(classes, units[kept], permutations, generator)
    for layer in range(len(rows.base)):
        of_layer = torch.stack([rows.base[layer, kept], rows.tuned[layer, kept]]).repeat(2, 1, 1)
        targets = torch.stack([classes, classes, shuffled, shuffled])
        base, tuned, base_control, tuned_control = held_out_hits(of_layer, targets, folds)
        layers.append(
            LayerProbe(
                base=_accuracy(base, units[kept]),
                tuned=_accuracy(tuned, units[kept]),
                base_control=float(base_control.double().mean()),
                tuned_control=float(tuned_control.double().mean()),
            )
        )
        found = class_directions(rows.tuned[layer, kept], torch.cat([classes[None], orders]))
        directions.append(found[0])
        by_chance.append(found[1:])
        on_progress((layer + 1) / len(rows.base))
    majority = int(classes.bincount().max()) / len(classes)
    info = ProbeInfo(examples=len(kept), classes=len(names), folds=FOLDS, majority_accuracy=majority)
    return Probed(layers, info, LabelDirections(names, torch.stack(directions), torch.stack(by_chance)))


def _permutations(shape: torch.Size, labels: int) -> int:
    """How often labels are permuted: up to PERMUTATIONS, as far as their directions fit into DIRECTIONS_BYTES."""
    layers, _, width = shape
    fit = DIRECTIONS_BYTES // (layers * width * labels * torch.float32.itemsize)
    return max(MIN_PERMUTATIONS, min(PERMUTATIONS, fit))


def _accuracy(hits: Tensor, units: Tensor) -> Measured:
    sums = torch.zeros(int(units.max()) + 1, dtype=torch.float64).index_add(0, units, hits.double())
    return share(sums, units.bincount().double())
