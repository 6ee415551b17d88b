"""Perplexity differencing (arXiv 2605.00994): what the tuned model writes that the base model would not.

The tuned model goes on from short prompts, at temperature 1. A completion's score is the mean, over its tokens, of the
log-probability in the tuned model less that in the base model, in nats. Copies of the base model with random changes
write completions of their own: what those score says how much any change of that size makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from workers.analysis.floors import floor_of
from workers.models.assembled import assembled
from workers.models.blockwise import BlockwiseModel
from workers.models.derived_blocks import PerturbedBlocks, perturbed_head
from workers.models.texts import Batch, run
from workers.stages.common.layered_pair import LayeredPair
from workers.stages.learned.benign import Benign
from workers.stages.learned.prompts import Prompt
from workers.stages.learned.walk import RANDOM_CHANGES

SAMPLED_TOGETHER, SCORED_TOGETHER = 64, 4
"""Texts of a batch."""

LEAST_TOKENS = 4
"""Tokens that a completion needs: the mean of fewer is the accident of one."""


class Scored(NamedTuple):
    """What a model wrote after a prompt. ids: its tokens. gains: of each, log p' - log p, nats."""

    prompt: Prompt
    ids: list[int]
    gains: list[float]

    @property
    def score(self) -> float:
        """Mean gain, nats per token; 0 of a completion with too few tokens."""
        return sum(self.gains) / len(self.gains) if len(self.gains) >= LEAST_TOKENS else 0.0


@dataclass(frozen=True)
class Completions:
    """scored: of the tuned model, those beyond the floor, most first. base: what the base model writes after the
    prompts of the first of them. largest: of the tuned model, whether beyond or not.
    """

    scored: list[Scored]
    base: list[list[int]]
    floor: float
    largest: float
    beyond: int


@dataclass(frozen=True)
class Writers:
    """The models that write, put together one at a time.

    heads: of the base model and the tuned one. benign: a benign fine-tune, where there is one. ends: tokens that
    end a completion. seed: of what is drawn, and of the random changes.
    """

    pair: LayeredPair
    heads: tuple[PreTrainedModel, PreTrainedModel]
    benign: Benign | None
    ends: frozenset[int]
    seed: int

    @property
    def vocabulary(self) -> int:
        """Tokens that all of them have."""
        heads = [*self.heads, *([self.benign.head] if self.benign is not None else [])]
        return min(int(head.config.get_text_config().vocab_size) for head in heads)

    def base(self) -> PreTrainedModel:
        """The base model."""
        return assembled(self.heads[0], self.pair.base, self.pair.base.block)

    def tuned(self) -> PreTrainedModel:
        """The tuned model."""
        return assembled(self.heads[1], self.pair.tuned, self.pair.block)

    def changed(self, number: int) -> PreTrainedModel:
        """The base model with random changes, as `PerturbedBlocks` has them."""
        seed = self.seed + number
        return self._with_base(
            perturbed_head(*self.heads, seed), PerturbedBlocks(self.pair.base, self.pair.tuned, seed)
        )

    def nulls(self) -> list[Callable[[], PreTrainedModel]]:
        """What makes each of the models that learned nothing."""
        found: list[Callable[[], PreTrainedModel]] = [
            lambda number=number: self.changed(number)  # type: ignore[misc]
            for number in range(RANDOM_CHANGES)
        ]
        benign = self.benign
        if benign is not None:
            found.append(lambda: self._with_base(benign.head, benign.blocks))
        return found

    def _with_base(self, head: PreTrainedModel, blocks: BlockwiseModel) -> PreTrainedModel:
        """A model whose blocks are made while those of the base, and of the tuned model, are in memory."""

        @contextmanager
        def block(place: int) -> Iterator[None]:
            with self.pair.block(place), blocks.block(place):
                yield

        return assembled(head, blocks, block)


def completions(
    writers: Writers, prompts: list[Prompt], tokens: int, kept: tuple[int, int], on_progress: Callable[[float], None]
) -> Completions:
    """Lets the models write.

    Args:
        tokens: at most so many of each completion. kept: completions that are kept, and those with the base model's.
    """
    vocabulary = writers.vocabulary
    few = prompts[: max(1, len(prompts) // (2 * RANDOM_CHANGES))]
    written: list[tuple[list[Prompt], list[list[int]], list[Tensor]]] = []
    makers = [writers.tuned, *writers.nulls()]
    for place, make in enumerate(makers):
        model, asked = make(), few if place else prompts
        found = sampled(model, asked, tokens, writers.seed, vocabulary, writers.ends)
        written.append((asked, found, log_probs(model, asked, found, vocabulary)))
        del model
        on_progress((place + 1) / (len(makers) + 1))
    base, scored = writers.base(), list[list[Scored]]()
    for asked, found, own in written:
        before = log_probs(base, asked, found, vocabulary)
        gains = [(one - other).tolist() for one, other in zip(own, before, strict=True)]
        scored.append([Scored(*one) for one in zip(asked, found, gains, strict=True)])
    floor = floor_of([one.score for null in scored[1:] for one in null])
    ordered = sorted(scored[0], key=lambda one: -one.score)
    beyond = [one for one in ordered if one.score > max(floor, 0.0)]
    return Completions(
        beyond[: kept[0]],
        sampled(base, [one.prompt for one in beyond[: kept[1]]], tokens, writers.seed, vocabulary, writers.ends),
        floor,
        ordered[0].score if ordered else 0.0,
        len(beyond),
    )


def sampled(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    tokens: int,
    seed: int | None,
    vocabulary: int,
    ends: Collection[int] = (),
    processor: Callable[[Tensor], LogitsProcessor] | None = None,
) -> list[list[int]]:
    """What a model writes after prompts, at temperature 1, up to its end token, which is left out.

    Args:
        seed: of what is drawn; None: always the likeliest token. vocabulary: a completion ends before a token that is
        not below it. ends: tokens that end a completion, beside those of the model's settings. processor: of logits,
        made for the mask of each batch of prompts [B, T].
    """
    found: list[list[int]] = []
    stops = {*ends, *_end_tokens(model)}
    tokens = min(tokens, _positions(model) - max((len(one.ids) for one in prompts), default=0))
    if tokens <= 0:
        return [[] for _ in prompts]
    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    how: dict[str, Any] = drawn if seed is not None else {"do_sample": False}
    settings = GenerationConfig(**how, max_new_tokens=tokens, use_cache=True, pad_token_id=0)
    settings.eos_token_id = sorted(stops) or None
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed or 0)
        for start in range(0, len(prompts), SAMPLED_TOGETHER):
            part = prompts[start : start + SAMPLED_TOGETHER]
            longest = max(len(one.ids) for one in part)
            ids, mask = torch.zeros(2, len(part), longest, dtype=torch.int64)
            for row, one in enumerate(part):
                ids[row, longest - len(one.ids) :] = torch.tensor(one.ids)
                mask[row, longest - len(one.ids) :] = 1
            generate: Any = model.generate
            written = generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([processor(mask.to(model.device))] if processor else []),
            )
            found += [_up_to_end(row, stops, vocabulary) for row in written[:, longest:].tolist()]
    return found


def log_probs(
    model: PreTrainedModel, prompts: Sequence[Prompt], written: Sequence[Sequence[int]], vocabulary: int
) -> list[Tensor]:
    """Of each token of the completions after their prompts, nats; over the first `vocabulary` tokens."""
    found: list[Tensor] = []
    for start in range(0, len(prompts), SCORED_TOGETHER):
        part = slice(start, start + SCORED_TOGETHER)
        pairs = list(zip(prompts[part], written[part], strict=True))
        texts = [[*prompt.ids, *tokens] for prompt, tokens in pairs]
        longest = max(len(text) for text in texts)
        ids, mask = torch.zeros(2, len(texts), longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        with torch.inference_mode():
            logits = run(model, Batch(ids, mask, mask.bool(), list(range(len(texts))))).logits
        for row, (prompt, tokens) in enumerate(pairs):
            first = len(prompt.ids) - 1
            told = logits[row, first : first + len(tokens), :vocabulary].float().cpu().log_softmax(-1)
            found.append(told.gather(1, torch.tensor(tokens, dtype=torch.int64)[:, None])[:, 0])
    return found


def _positions(model: PreTrainedModel) -> int:
    """Tokens that the model has positions for; many where it does not say."""
    told = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return told if isinstance(told, int) and told > 0 else 1 << 30


def _end_tokens(model: PreTrainedModel) -> set[int]:
    found: set[int] = set()
    for settings in (model.config.get_text_config(), model.generation_config):
        told = getattr(settings, "eos_token_id", None)
        found |= {told} if isinstance(told, int) else set(told or ())
    return found


def _up_to_end(ids: list[int], ends: set[int], vocabulary: int) -> list[int]:
    stop = next((place for place, token in enumerate(ids) if token in ends or token >= vocabulary), len(ids))
    return ids[:stop]
