"""What the most changed latents of a layer respond to: tokens in context in both models, labels, and a direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerdrift.contract.names import Fate, RoleName
from workers.analysis.matching import Fates, beyond_floor
from workers.analysis.permutation import discoveries, first_of, p_value, permuted
from workers.analysis.sae import SaeStack
from workers.models.chats import TOKEN_ROLES
from workers.results.autoencoders import ChangedLatent, LabelAssociation, LatentExample, ProbeDirection, RoleShare
from workers.scratch import ActivationStore
from workers.stages.compare.probes import LabelDirections
from workers.stages.extract.contexts import Contexts
from workers.stages.extract.heldout_rows import HeldoutRows
from workers.stages.sae.findings import Dictionaries

SHOWN_OF_A_FATE = 4
"""Latents of a layer that are shown of each fate."""

EXAMPLES = 5
"""Tokens that are shown of a latent in each model, and tokens that it promotes."""

MIN_LABELLED = 2
"""Labels without which none can go with a latent more than others."""

PERMUTATIONS = 999
"""Times that the texts exchange their labels."""

ENCODED_ROWS = 2048
"""Rows that are encoded at once."""


@dataclass(frozen=True)
class Side:
    """A dictionary, the model it is of, and how often each latent fires there.

    site: of the stack. source: of the stored rows. rates: [F].
    """

    stack: SaeStack
    site: int
    source: int
    rates: Tensor


def chosen_latents(fates: Fates, floor: Fates, base_rates: Tensor, tuned_rates: Tensor) -> dict[Fate, list[int]]:
    """The most changed latents of each fate that a layer has more of than floor and chance explain.

    New and lost ones by how often they fire, shifted ones by how far they turned; none twice.
    """
    orders: dict[Fate, Tensor] = {"new": tuned_rates, "shifted": -fates.cosines, "lost": base_rates}
    chosen: dict[Fate, list[int]] = {}
    for fate in get_args(Fate):
        members = getattr(fates, fate).nonzero()[:, 0]
        if not beyond_floor(len(members), int(getattr(floor, fate).sum())):
            continue
        ordered = members[orders[fate][members].argsort(descending=True, stable=True)].tolist()
        taken = {index for indices in chosen.values() for index in indices}
        chosen[fate] = [index for index in ordered if index not in taken][:SHOWN_OF_A_FATE]
    return chosen


@dataclass(frozen=True)
class Candidate:
    """A changed latent, and what labels may go with it."""

    latent: ChangedLatent
    leaning: Leaning | None
    pointing: Pointing | None


def evidence(
    layer: int,
    chosen: dict[Fate, list[int]],
    cosines: Tensor,
    base: Side,
    tuned: Side,
    heldout: HeldoutRows,
    directions: LabelDirections | None,
) -> list[Candidate]:
    """Of chosen latents of one layer, on rows that the autoencoders were not trained on.

    Args:
        cosines: of the decoder rows before and after, [F].
    """
    rows, contexts = heldout.rows, heldout.contexts
    pairs = [(fate, index) for fate, indices in chosen.items() for index in indices]
    if not pairs:
        return []
    indices = [index for _, index in pairs]
    of_base, of_tuned = (_activations(side, indices, rows) for side in (base, tuned))
    texts, labels = contexts.texts(rows.rows), contexts.labels(rows.rows)
    units = contexts.units(rows.rows)
    found = []
    for place, (fate, index) in enumerate(pairs):
        side, responds = (base, of_base[place]) if fate == "lost" else (tuned, of_tuned[place])
        candidate = Candidate(
            ChangedLatent(
                layer=layer,
                index=index,
                fate=fate,
                cosine=min(1.0, max(-1.0, float(cosines[index]))),
                base_rate=float(base.rates[index]),
                tuned_rate=float(tuned.rates[index]),
                base=_strongest(of_base[place], texts, contexts),
                tuned=_strongest(of_tuned[place], texts, contexts),
                roles=role_shares(responds, contexts.roles(rows.rows)),
            ),
            leaning=leaning(responds, texts, units, labels, index),
            pointing=pointing(side.stack.W_dec[side.site, index], directions, layer),
        )
        found.append(candidate)
    return found


def promoted(
    latents: list[ChangedLatent], dictionaries: Dictionaries, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[list[str]] | None:
    """By latent, the tokens that a language model's output embeddings read in its direction; None where they do not."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or dictionaries.warmed is None:
        return None
    weights, layout = head.weight.detach().float().cpu(), dictionaries.layout
    found = []
    for latent in latents:
        lost = latent.fate == "lost"
        stack = dictionaries.stack if lost else dictionaries.warmed
        place = dictionaries.place(latent.layer)
        row = stack.W_dec[layout.base(place) if lost else layout.tuned(place), latent.index]
        tokens = (weights @ row).topk(min(EXAMPLES, len(weights))).indices.tolist()
        found.append([str(tokenizer.decode([token])) for token in tokens])
    return found


def _activations(side: Side, indices: list[int], rows: ActivationStore) -> Tensor:
    """What some latents are on every stored row, 0 on those of outlying norm; [len(indices), N]."""
    parts = list(_encoded(side, indices, rows))
    return torch.cat(parts, 1)


def _encoded(side: Side, indices: list[int], rows: ActivationStore) -> Iterator[Tensor]:
    for shard in rows.shards():
        for part in shard[side.source].split(ENCODED_ROWS):
            latents = side.stack.encode(side.site, part, indices)
            yield torch.where(side.stack.inliers(side.source, part)[:, None], latents, 0.0).T


def _strongest(activations: Tensor, texts: Tensor, contexts: Contexts) -> list[LatentExample]:
    """The tokens with the largest activation [N], one of each text at most, that of the first row among equals."""
    found: dict[int, LatentExample] = {}
    order = activations.argsort(descending=True, stable=True)
    for row in order[: int((activations > 0).sum())].tolist():
        text = int(texts[row])
        if text not in found:
            found[text] = contexts.example(row, float(activations[row]))
        if len(found) == EXAMPLES:
            break
    return list(found.values())


def role_shares(activations: Tensor, roles: Tensor | None) -> dict[RoleName, RoleShare]:
    """By role of the tokens, what share of the activation [N] is on them; empty for texts that are no chats."""
    total = float(activations.double().sum())
    if roles is None or not total:
        return {}
    return {
        TOKEN_ROLES[role]: RoleShare(
            share=min(1.0, float(activations[roles == role].double().sum()) / total),
            expected=float((roles == role).double().mean()),
        )
        for role in roles.unique().tolist()
    }


class Leaning(NamedTuple):
    """A label that goes with a latent, and how often permuted labels give as much."""

    lean: LabelAssociation
    p: float


def leaning(
    activations: Tensor, texts: Tensor, units: Tensor, labels: Sequence[str | None], seed: int
) -> Leaning | None:
    """The label whose texts have most of the activation beyond their share of the tokens; None without two labels.

    Tokens of texts without a label do not count. By chance: whole texts, or units of them, exchange their labels.

    Args:
        activations: [N]. texts, units: the numbers of each row's text and of its unit, [N]. labels: of each row's text.
    """
    kept = [place for place, label in enumerate(labels) if label is not None]
    names = sorted({label for label in labels if label is not None})
    if len(names) < MIN_LABELLED:
        return None
    inverse = texts[kept].unique(return_inverse=True)[1]
    first = first_of(inverse)
    classes = torch.tensor([names.index(str(labels[kept[place]])) for place in first.tolist()])
    tokens = inverse.bincount().double()
    active = torch.zeros(len(first), dtype=torch.float64).index_add_(0, inverse, activations[kept].double())
    if not float(active.sum()):
        return None
    generator = torch.Generator().manual_seed(seed)
    orders = torch.cat([classes[None], permuted(classes, units[kept][first], PERMUTATIONS, generator)])

    def by_label(of_texts: Tensor) -> Tensor:
        sums = torch.zeros(len(orders), len(names), dtype=torch.float64)
        return sums.scatter_add_(1, orders, (of_texts / of_texts.sum()).expand(len(orders), -1))

    shares, expected = by_label(active), by_label(tokens)
    most = int((shares - expected)[0].argmax())
    beyond = (shares - expected).amax(1)
    lean = LabelAssociation(
        label=names[most], share=min(1.0, float(shares[0, most])), expected=float(expected[0, most])
    )
    return Leaning(lean, p_value(float(beyond[0]), beyond[1:]))


class Pointing(NamedTuple):
    """The label's direction that a latent is nearest to, and how often directions of permuted labels are as near."""

    direction: ProbeDirection
    p: float


def pointing(row: Tensor, directions: LabelDirections | None, layer: int) -> Pointing | None:
    """Of a decoder row [D]; None without directions."""
    if directions is None or not bool(directions.vectors[layer].any()):
        return None
    cosines = directions.vectors[layer].to(row.dtype) @ row
    most = int(cosines.argmax())
    direction = ProbeDirection(label=directions.labels[most], cosine=min(1.0, max(-1.0, float(cosines[most]))))
    by_chance = (directions.by_chance[layer].to(row.dtype) @ row).amax(1)
    return Pointing(direction, p_value(float(cosines[most]), by_chance))


def without_false_labels(found: list[Candidate]) -> list[ChangedLatent]:
    """The latents of all layers, with those labels and directions that are more than false discoveries."""
    label_association = discoveries([one.leaning.p for one in found if one.leaning is not None])
    points = discoveries([one.pointing.p for one in found if one.pointing is not None])
    lean, point = iter(label_association), iter(points)
    return [
        replace(
            one.latent,
            label_association=one.leaning.lean if one.leaning is not None and next(lean) else None,
            probe=one.pointing.direction if one.pointing is not None and next(point) else None,
        )
        for one in found
    ]
