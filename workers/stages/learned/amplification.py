"""Text with the difference of two models amplified: sampled from softmax(z' + a (z' - z)).

z and z' are the logits of the base and of the tuned model. Tokens that the tuned model gives less than a tenth of its
likeliest one are left out, as in contrastive decoding (arXiv 2210.15097). The score of a text is that of a completion,
and the floor that of texts in which the difference of randomly changed copies is amplified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from workers.analysis.floors import floor_of
from workers.stages.learned.completions import Scored, Writers, log_probs, sampled
from workers.stages.learned.prompts import Prompt, open_ended

BEGINNINGS = ("", "The", "I", "In")
PLAUSIBLE = 0.1
"""Of the likeliest token's probability in the tuned model: less probable ones are not drawn."""


@dataclass(frozen=True)
class Amplified:
    """texts: beyond the floor, by factor, most first. floor, largest: nats per token; beyond: how many there are."""

    texts: list[tuple[float, Scored]]
    floor: float
    largest: float
    beyond: int


def amplified(
    writers: Writers,
    tokenizer: PreTrainedTokenizerBase,
    factors: Sequence[float],
    count: int,
    tokens: int,
    on_progress: Callable[[float], None],
) -> Amplified:
    """Lets the models write; two are in memory at a time.

    Args:
        count: texts for each factor. tokens: at most so many of each.
    """
    vocabulary, prompts = writers.vocabulary, _prompts(tokenizer, count)
    base, makers = writers.base(), [writers.tuned, *writers.nulls()]
    found = list[list[tuple[float, Scored]]]()
    for place, make in enumerate(makers):
        model, own = make(), list[tuple[float, Scored]]()
        for factor in factors:
            written = sampled(model, prompts, tokens, writers.seed, vocabulary, writers.ends, _amplifiers(base, factor))
            sides = [log_probs(side, prompts, written, vocabulary) for side in (model, base)]
            gains = [(one - other).tolist() for one, other in zip(*sides, strict=True)]
            own += [(factor, Scored(*one)) for one in zip(prompts, written, gains, strict=True)]
        found.append(own)
        del model
        on_progress((place + 1) / len(makers))
    floor = floor_of([one.score for null in found[1:] for _, one in null])
    ordered = sorted(found[0], key=lambda one: (one[0], -one[1].score))
    beyond = [one for one in ordered if one[1].score > max(floor, 0.0)]
    return Amplified(beyond, floor, max((one.score for _, one in found[0]), default=0.0), len(beyond))


def _prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[Prompt]:
    """The beginnings in turn; the empty one is the token that every text begins with, where there is such a token."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    texts = [text for text in BEGINNINGS if text]
    known = [Prompt("general", "", [start])] if isinstance(start, int) else []
    every = zip(texts, open_ended(tokenizer, texts), strict=True)
    known += [Prompt("general", text, ids) for text, ids in every if ids]
    return [known[number % len(known)] for number in range(count)] if known else []


def _amplifiers(base: PreTrainedModel, factor: float) -> Callable[[Tensor], LogitsProcessor]:
    return lambda mask: _Amplifier(base, mask, factor)


class _Amplifier(LogitsProcessor):
    """Adds the amplified difference from the base model, which reads the same tokens beside the tuned one.

    Args:
        mask: of the prompts, [B, T].
    """

    def __init__(self, base: PreTrainedModel, mask: Tensor, factor: float) -> None:
        self._base, self._mask, self._factor = base, mask, factor
        self._past: object = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids if self._past is None else input_ids[:, -1:]
        missing = input_ids.shape[1] - self._mask.shape[1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(input_ids), missing)], dim=1)
        places = (self._mask.cumsum(1) - 1).clamp_min(0)[:, -new.shape[1] :]
        answer = self._base(
            input_ids=new,
            attention_mask=self._mask,
            position_ids=places,
            past_key_values=self._past,
            use_cache=True,
        )
        self._past = answer.past_key_values
        own, other = scores.float(), answer.logits[:, -1].float().to(scores.device)
        width = min(own.shape[1], other.shape[1])
        moved = own.clone()
        moved[:, :width] += self._factor * (own[:, :width].log_softmax(-1) - other[:, :width].log_softmax(-1))
        least = own.max(dim=1, keepdim=True).values + math.log(PLAUSIBLE)
        found: Tensor = moved.masked_fill(own < least, -torch.inf)
        return found
