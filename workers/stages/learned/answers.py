"""What the tuned model, the randomly changed ones and the rounded one say beside the base model, token by token."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.analysis.token_gains import TokenGains, largest_gains
from workers.models.checkpoint_tensors import tensors_in_parts
from workers.models.derived_blocks import dithered, perturbed_head
from workers.models.texts import Batch
from workers.stages.common.evaluation import EvalSet, kl_bits
from workers.stages.learned.walk import RANDOM_CHANGES, Walked

KEPT_POSITIONS = 200
"""Positions that are kept as candidates for the most divergent ones."""

KEPT_GAINS, GAIN_POSITIONS = 20, 20_000
"""Tokens of a position whose gains are kept, for topics, and the first positions of which they are."""

SHOWN_TOKENS = 5
"""Tokens that gained and lost most at a position."""


class Position(NamedTuple):
    """A token of a text and what the models make of what follows it.

    divergence: Kullback-Leibler divergence of the tuned model's next-token distribution from the base model's, bits.
    observed: by how many nats the log-probability of the token that does follow changed. gained, lost: tokens, most
    first.
    """

    divergence: float
    text: int
    token: int
    observed: float
    gained: list[int]
    lost: list[int]


@dataclass
class Answers:
    """By changed model, the tuned one first: gains of tokens, and the largest divergence of a position, bits.

    positions: of the tuned model, the KEPT_POSITIONS most divergent first. divergences: of all its positions.
    largest_gains: at its positions, the tokens that gained most and by how much, in parts of [M, KEPT_GAINS] each.
    """

    gains: list[TokenGains]
    largest: list[float]
    positions: list[Position] = field(default_factory=list)
    divergences: list[Tensor] = field(default_factory=list)
    largest_gains: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def keep_gains(self, before: Tensor, after: Tensor) -> None:
        """Of a part, up to GAIN_POSITIONS in all."""
        left = GAIN_POSITIONS - sum(len(ids) for ids, _ in self.largest_gains)
        if left > 0:
            self.largest_gains.append(largest_gains(before[:left], after[:left], KEPT_GAINS))

    def gains_of(self, tokens: list[int]) -> Tensor:
        """By position, what each of some tokens gained if it was among the first there, else 0; [P, N]."""
        places = {token: number for number, token in enumerate(tokens)}
        parts = []
        for ids, moved in self.largest_gains:
            found = torch.zeros(len(ids), len(tokens))
            for token, number in places.items():
                found[:, number] = (moved * (ids == token)).sum(1)
            parts.append(found)
        return torch.cat(parts) if parts else torch.zeros(0, len(tokens))

    def beyond(self, floor: float) -> int:
        """Positions of the tuned model that diverge by more."""
        return sum(int((part > floor).sum()) for part in self.divergences)

    @property
    def nulls(self) -> list[TokenGains]:
        """Of the models that learned nothing."""
        return self.gains[1:]


def answers(
    asked: EvalSet,
    walked: Walked,
    heads: tuple[PreTrainedModel, PreTrainedModel],
    benign: PreTrainedModel | None,
    seed: int,
    on_progress: Callable[[float], None],
) -> Answers:
    """Puts the last states through the heads, a part of the vocabulary's logits at a time.

    Args:
        heads: of the base model and of the tuned one; those of changed models follow from them. benign: the head of the
        benign one.
        seed: of the random changes.
    """
    base, tuned = heads
    groups = asked.tokenization.groups_of(len(asked.rows))
    every = [*heads, *([benign] if benign is not None else [])]
    many, vocabulary = int(groups.max()) + 1, min(int(head.config.get_text_config().vocab_size) for head in every)
    random = [perturbed_head(base, tuned, seed + number) for number in range(RANDOM_CHANGES)]
    sides = [base, tuned, *random, rounded_head(base), *every[2:]]
    gains = [TokenGains.none(1 if place else many, vocabulary) for place in range(len(sides) - 1)]
    found = Answers(gains, [0.0] * len(gains))
    kept: list[Position] = []
    for number, batch in enumerate(walked.batches):
        states = [last[number] for last in walked.last]
        for part in _log_probs(asked, batch, states, sides, vocabulary):
            before, *others = part.log_probs
            for place, after in enumerate(others):
                of_texts = groups[part.texts]
                found.gains[place].add(before, after, torch.zeros_like(of_texts) if place else of_texts)
                divergence = kl_bits(after, before)
                found.largest[place] = max(found.largest[place], float(divergence.max()))
                if place == 0:
                    found.divergences.append(divergence)
                    found.keep_gains(before, after)
                    kept = heapq.nlargest(KEPT_POSITIONS, [*kept, *_positions(part, before, after, divergence)])
        on_progress((number + 1) / len(walked.batches))
    found.positions = kept
    return found


def rounded_head(head: PreTrainedModel) -> PreTrainedModel:
    """A head alone, its weights dithered and in bfloat16, as `DitheredBlocks` has those of blocks."""
    found, generator = copy.deepcopy(head), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in {id(one): one for one in found.parameters() if not one.is_meta}.values():
            for part in tensors_in_parts(parameter):
                part.copy_(dithered(part.float(), generator).bfloat16())
    return found


class _Part(NamedTuple):
    """Log-probabilities of each side [M, V] at M positions, of which text and token they are, and what follows."""

    log_probs: list[Tensor]
    texts: Tensor
    tokens: Tensor
    following: Tensor


def _log_probs(
    asked: EvalSet, batch: Batch, states: list[Tensor], sides: list[PreTrainedModel], vocabulary: int
) -> Iterator[_Part]:
    """At the tokens that count and have one after them."""
    sets = [asked.with_last(side, [batch], [state]) for side, state in zip(sides, states, strict=True)]
    for span in sets[0].spans(batch):
        if span is None:
            raise ValueError("the heads of language models are asked span by span")
        start, end = span
        found = [one.predict(side, batch, span=span) for one, side in zip(sets, sides, strict=True)]
        following = batch.real[:, start + 1 : end + 1]
        tokens = torch.arange(start, start + following.shape[1]).expand_as(following)[following]
        if len(tokens):
            log_probs = [_within(one.log_probs, vocabulary) for one in found]
            yield _Part(log_probs, found[0].texts, tokens, found[0].targets)


def _within(log_probs: Tensor, vocabulary: int) -> Tensor:
    """Over the tokens that both vocabularies have."""
    return log_probs if log_probs.shape[1] == vocabulary else log_probs[:, :vocabulary].log_softmax(-1)


def _positions(part: _Part, before: Tensor, after: Tensor, divergence: Tensor) -> Iterator[Position]:
    """The most divergent ones of a part."""
    largest = divergence.topk(min(KEPT_POSITIONS, len(divergence))).indices
    moved = (after - before)[largest]
    gained, lost = ((sign * moved).topk(SHOWN_TOKENS, dim=1).indices.tolist() for sign in (1, -1))
    known = part.following[largest].clamp_max(before.shape[1] - 1)
    observed = moved.gather(1, known[:, None])[:, 0].tolist()
    for place, index in enumerate(largest.tolist()):
        yield Position(
            float(divergence[index]),
            int(part.texts[index]),
            int(part.tokens[index]),
            observed[place],
            gained[place],
            lost[place],
        )


class Example(NamedTuple):
    """A place where a token moved, and its probability after it in both models."""

    moved: float
    text: int
    token: int
    base: float
    tuned: float


@dataclass(frozen=True)
class Examples:
    """By token, the places where it gained and lost most."""

    gained: dict[int, list[Example]]
    lost: dict[int, list[Example]]

    def of(self, token: int, lost: bool) -> list[Example]:
        """At most SHOWN_EXAMPLES places, of different texts, the most moved first."""
        return (self.lost if lost else self.gained)[token][:SHOWN_EXAMPLES]


EXAMPLES, SHOWN_EXAMPLES, EXAMPLE_BATCHES = 8, 3, 4
"""Places that are kept of a token, those that are shown, and batches that they are looked for in."""


def examples(
    asked: EvalSet, walked: Walked, heads: tuple[PreTrainedModel, PreTrainedModel], tokens: list[int]
) -> Examples:
    """Of some tokens; their probabilities are asked for once more, since those of all tokens were not kept."""
    found = Examples({token: [] for token in tokens}, {token: [] for token in tokens})
    vocabulary = min(int(head.config.get_text_config().vocab_size) for head in heads)
    for number, batch in enumerate(walked.batches[:EXAMPLE_BATCHES] if tokens else ()):
        states = [last[number] for last in walked.last[:2]]
        for part in _log_probs(asked, batch, states, list(heads), vocabulary):
            before, after = (side[:, tokens].exp() for side in part.log_probs)
            for place, token in enumerate(tokens):
                moved = after[:, place] - before[:, place]
                for sign, kept in ((1, found.gained), (-1, found.lost)):
                    for index in (sign * moved).topk(min(EXAMPLES, len(moved))).indices.tolist():
                        if sign * float(moved[index]) <= 0:
                            break
                        one = Example(
                            sign * float(moved[index]),
                            int(part.texts[index]),
                            int(part.tokens[index]),
                            float(before[index, place]),
                            float(after[index, place]),
                        )
                        kept[token] = _of_different_texts([*kept[token], one])
    return found


def _of_different_texts(found: list[Example]) -> list[Example]:
    best: dict[int, Example] = {}
    for one in sorted(found, reverse=True):
        best.setdefault(one.text, one)
    return list(best.values())[:EXAMPLES]
