"""Stage `learned`: what a fine-tune taught a language model, each finding beyond what random changes bring about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedModel

from workers.analysis.token_gains import TokenGains, beyond
from workers.models.device import FATAL
from workers.models.layer_order import Pass
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch, batches, special_ids
from workers.results.learned import (
    DivergentPlace,
    Learned,
    LearnedDirection,
    LearnedMethod,
    LearnedToken,
    MethodName,
    TokenExample,
)
from workers.results.warnings import ReportWarning
from workers.stages.common.context import PairContext
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.layered_pair import LayeredPair, layered_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS
from workers.stages.common.progress import Spans
from workers.stages.compare.head_outputs import heads_of_pair
from workers.stages.extract.extracted import Extracted
from workers.stages.learned.answers import Answers, Examples, answers, examples
from workers.stages.learned.lens import Lens, Read
from workers.stages.learned.walk import RANDOM_CHANGES, Differences, Walked, walk

SHOWN = 20
"""Tokens and places that are shown of a list."""

CONTEXT_TOKENS = 12
"""Tokens before a place that are shown."""

LENS_LAYERS = 6
"""Layers whose directions are read, evenly spaced up to the last one."""

BLOCKS, HEADS = "what it learned: blocks", "what it learned: answers"
"""Spans of the progress."""


class Taught(NamedTuple):
    """What was found; None where nothing could be looked for, and why."""

    learned: Learned | None
    warnings: list[ReportWarning]


def learn(context: PairContext, extracted: Extracted) -> Taught:
    """Looks for it in a language model and its base.

    Raises:
        InputError: a checkpoint cannot be read.
    """
    settings, resolved = context.request.analysis.learned, context.resolved
    if settings is None:
        return Taught(None, [])
    heads = heads_of_pair(context, extracted)
    if heads is None:
        return Taught(None, [])
    try:
        pair = layered_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
        pair = replace(pair, tokenization=extracted.tokenization)
        return Taught(_Search(context, pair, heads, extracted).found(settings.tokens), [])
    except FATAL:
        raise
    except (NotBlockwise, RuntimeError) as error:  # of a model that cannot do without its other blocks
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = f"what the fine-tune taught was not looked for: {reason}"
        return Taught(None, [ReportWarning(code="learned_not_computed", message=message)])


@dataclass(frozen=True)
class _Directions:
    """What the lens reads of the tuned model's differences, and the largest score under random changes."""

    read: list[Read]
    floor: float


class _Search:
    """The texts, both models' heads, and what comes of them."""

    def __init__(
        self,
        context: PairContext,
        pair: LayeredPair,
        heads: tuple[PreTrainedModel, PreTrainedModel],
        extracted: Extracted,
    ) -> None:
        self._context = context
        self._pair = pair
        self._heads = heads
        self._rows = context.resolved.split.analysed[: extracted.analysed]
        self._tokenizer = extracted.tokenization.tokenizer

    def found(self, tokens: int) -> Learned:
        """Of the first texts that have so many tokens."""
        spec = self._pair.tokenization
        texts = spec.within([row.content for row in self._rows], tokens)[0]
        asked = EvalSet(spec, self._rows[: len(texts)], "causal_lm")
        read = list(batches(spec.tokenizer, texts, BATCH_TEXTS, spec.length, BATCH_TOKENS))
        spans = Spans(self._context.on_progress, {BLOCKS: 3.0, HEADS: 2.0})
        on_blocks, on_heads = spans.span(BLOCKS), spans.span(HEADS)
        lens = list[_Directions]()

        def ask(going: Pass, differences: list[Differences]) -> None:
            lens.append(self._directions(going, differences))

        seed = self._context.request.seed
        walked = walk(self._pair, read, seed, lambda share: on_blocks(share, BLOCKS), ask)
        told = answers(asked, walked, self._heads, seed, lambda share: on_heads(share, HEADS))
        return self._as_learned(asked, walked, told, lens[0])

    def _as_learned(self, asked: EvalSet, walked: Walked, told: Answers, lens: _Directions) -> Learned:
        tuned, nulls = told.gains[0], told.nulls
        ignored = set(special_ids(self._tokenizer))
        gained, lost = (beyond(tuned, nulls, sign, ignored) for sign in (0, 1))
        shown = [*gained.tokens[:SHOWN], *lost.tokens[:SHOWN]]
        seen = examples(asked, walked, self._heads, shown)
        tokens, suppressed = (
            [self._token(tuned, sign, token, seen, walked) for token in found.tokens[:SHOWN]]
            for sign, found in enumerate((gained, lost))
        )
        floor = max(told.largest[1:], default=0.0)
        divergent = [place for place in told.positions if place.divergence > floor]
        directions = [one for one in lens.read if one.score > lens.floor]
        return Learned(
            texts=len(asked.rows),
            positions=int(tuned.positions.sum()),
            random_changes=RANDOM_CHANGES,
            tokens=tokens,
            suppressed=suppressed,
            divergent=[
                DivergentPlace(
                    text=place.text,
                    context=self._before(walked, place.text, place.token + 1),
                    following=self._following(walked, place.text, place.token + 1),
                    divergence=place.divergence,
                    observed=place.observed,
                    gained=self._words(place.gained),
                    lost=self._words(place.lost),
                )
                for place in divergent[:SHOWN]
            ],
            directions=[
                LearnedDirection(
                    kind="early_tokens" if one.early else "all_tokens",
                    layer=one.layer,
                    score=one.score,
                    gained=self._words(one.gained),
                    lost=self._words(one.lost),
                )
                for one in directions
            ],
            methods=[
                _method("tokens", len(gained.tokens), gained.largest, gained.floor),
                _method("suppressed", len(lost.tokens), lost.largest, lost.floor),
                _method("divergent", told.beyond(floor), told.largest[0], floor),
                _method("directions", len(directions), max((one.score for one in lens.read), default=0.0), lens.floor),
            ],
        )

    def _directions(self, going: Pass, differences: list[Differences]) -> _Directions:
        """Of the tuned model, and the floor of those that learned nothing."""
        lens = Lens(going, self._heads[1], SHOWN // 2)
        depth = self._pair.base.depth
        layers = sorted({round(depth * (place + 1) / LENS_LAYERS) for place in range(LENS_LAYERS)} - {0})
        read, *others = (lens.read(one, layers) for one in differences)
        return _Directions(read, max((one.score for found in others for one in found), default=0.0))

    def _token(self, gains: TokenGains, sign: int, token: int, seen: Examples, walked: Walked) -> LearnedToken:
        return LearnedToken(
            token=self._words([token])[0],
            id=token,
            gain=float(gains.mean()[sign, token]),
            rate=float(gains.rate()[sign, token]),
            groups=int((gains.counts[sign, :, token] > 0).sum()),
            examples=[
                TokenExample(
                    text=one.text,
                    context=self._before(walked, one.text, one.token + 1),
                    base=one.base,
                    tuned=one.tuned,
                )
                for one in seen.of(token, lost=bool(sign))
            ],
        )

    def _words(self, tokens: list[int]) -> list[str]:
        return [str(self._tokenizer.decode([token])) for token in tokens]

    def _before(self, walked: Walked, text: int, token: int) -> str:
        ids = _ids(walked.batches, text)
        return str(self._tokenizer.decode(ids[max(0, token - CONTEXT_TOKENS) : token]))

    def _following(self, walked: Walked, text: int, token: int) -> str:
        return self._words([_ids(walked.batches, text)[token]])[0]


def _method(name: MethodName, found: int, largest: float, floor: float) -> LearnedMethod:
    return LearnedMethod(name=name, found=found, largest=largest, floor=floor)


def _ids(read: list[Batch], text: int) -> list[int]:
    """The tokens of a text."""
    batch, row = next(_rows(read, text))
    length = int(batch.attention_mask[row].sum())
    found: list[int] = batch.input_ids[row, :length].tolist()
    return found


def _rows(read: list[Batch], text: int) -> Iterator[tuple[Batch, int]]:
    for batch in read:
        if text in batch.indices:
            yield batch, batch.indices.index(text)
