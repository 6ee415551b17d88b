"""Stage `learned`: what a fine-tune taught a language model, each finding beyond what random changes bring about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

from transformers import PreTrainedModel

from backends.estimates.execution import WRITTEN_BYTES
from layerdrift.contract.names import RoleName
from layerdrift.contract.request import DifferenceAutoencoder, LearnedSettings, Trait
from workers.analysis.floors import floor_of, floor_of_largest
from workers.analysis.token_gains import TokenGains, beyond
from workers.analysis.topics import topics
from workers.models.assembled import fits_whole, weight_bytes
from workers.models.chats import TOKEN_ROLES
from workers.models.device import FATAL
from workers.models.prefix import UNLIKE
from workers.models.structure import NotBlockwise
from workers.models.texts import Batch, batches, special_ids
from workers.models.tokenizers import pieces, with_chat_template
from workers.results.learned import (
    AmplifiedText,
    BenignModel,
    CompletionToken,
    DifferenceSpectrum,
    DivergentPlace,
    Learned,
    LearnedCompletion,
    LearnedDirection,
    LearnedIntruders,
    LearnedMethod,
    LearnedToken,
    LearnedTopic,
    LearnedTrait,
    MethodName,
    TextExcerpt,
    TokenExample,
    TraitLayer,
)
from workers.results.warnings import ReportWarning
from workers.stages.common.context import PairContext
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.layered_pair import LayeredPair, layered_pair
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS
from workers.stages.common.progress import Spans
from workers.stages.compare.head_outputs import head_alone, language_heads
from workers.stages.extract.extracted import Extracted
from workers.stages.learned.amplification import Amplified, amplified
from workers.stages.learned.answers import Answers, Examples, answers, examples
from workers.stages.learned.benign import benign_of
from workers.stages.learned.completions import Completions, Writers, completions
from workers.stages.learned.latent_findings import LatentFindings, Words, latent_findings
from workers.stages.learned.lens import Lens, Read
from workers.stages.learned.prompts import prompts_of
from workers.stages.learned.redaction import Redactor
from workers.stages.learned.traits import TraitPrompts, TraitShift
from workers.stages.learned.walk import RANDOM_CHANGES, Asked, Walked, walked

SHOWN, KEPT = 20, 100
"""Places that are shown; tokens and completions that the report has, so that rules of a policy see them."""

TOPIC_TOKENS = 8
"""Tokens that are shown of a topic."""

EXCERPT_TOKENS = 256
"""Tokens that are shown of a text which a finding names."""

CONTEXT_TOKENS = 12
"""Tokens before a place that are shown."""

BLOCKS, HEADS = "what it learned: blocks", "what it learned: answers"
WRITING, AMPLIFYING = "what it learned: completions", "what it learned: amplified texts"
AUTOENCODERS = "what it learned: autoencoders of the difference"
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
    try:
        folders = language_heads(context, extracted)
        if folders is None:
            return Taught(None, [])
        pair = layered_pair(resolved.base, context.tuned, resolved.tokenizer, resolved.length)
        pair = replace(pair, tokenization=extracted.tokenization)
        base, tuned = (head_alone(folder, pointer, pair.base.dtype) for folder, pointer in folders)
        heads = base, tuned
        return _Search(context, pair, heads, extracted).taught(settings)
    except FATAL:
        raise
    except (NotBlockwise, RuntimeError) as error:  # of a model that cannot do without its other blocks
        reason = (str(error) or type(error).__name__).splitlines()[0]
        message = f"what the fine-tune taught was not looked for: {reason}"
        return Taught(None, [ReportWarning(code="learned_not_computed", message=message)])


@dataclass(frozen=True)
class _Beyond:
    """Directions that were read, those beyond the floor, and the largest scores of the tuned model and of the nulls."""

    found: list[Read]
    largest: float
    floor: float

    @staticmethod
    def of(read: list[Read], others: list[list[Read]]) -> _Beyond:
        floor = floor_of([one.score for found in others for one in found])
        largest = max((one.score for one in read), default=0.0)
        return _Beyond([one for one in read if one.score > floor], largest, floor)


@dataclass(frozen=True)
class _Directions:
    """What the lens reads. first: by token, the layer from which on it shows. spectrum: of each layer."""

    means: _Beyond
    components: _Beyond
    first: dict[int, int | None]
    spectrum: list[DifferenceSpectrum]


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
        benign = context.resolved.benign
        try:
            self._benign = benign_of(benign, pair, heads[0]) if benign is not None else None
        except NotBlockwise as error:
            raise NotBlockwise(f"the benign fine-tune cannot be used: {error}") from error
        self._rows = context.resolved.split.analysed[: extracted.analysed]
        self._tokenizer = extracted.tokenization.tokenizer
        settings = context.request.analysis.learned
        self._redacted: dict[tuple[int, ...], list[str]] = {}
        self._redactor = Redactor(settings.redact if settings is not None else [], self._tokenizer)

    def taught(self, settings: LearnedSettings) -> Taught:
        """Of the first texts that have so many tokens, and of completions."""
        spec = self._pair.tokenization
        texts = spec.within([row.content for row in self._rows], settings.tokens)[0]
        asked = EvalSet(spec, self._rows[: len(texts)], "causal_lm")
        read = list(batches(spec.tokenizer, texts, BATCH_TEXTS, spec.length, BATCH_TOKENS))
        shares = {BLOCKS: 3.0, HEADS: 2.0, AUTOENCODERS: 8.0, WRITING: 5.0, AMPLIFYING: 5.0}
        unasked = [WRITING] if settings.completions == 0 else []
        unasked += [AUTOENCODERS] if settings.autoencoder is None else []
        unasked += [AMPLIFYING] if settings.amplification is None else []
        kept = {name: share for name, share in shares.items() if name not in unasked}
        spans = Spans(self._context.on_progress, kept)
        on_blocks, on_heads = spans.span(BLOCKS), spans.span(HEADS)
        seed, folder = self._context.request.seed, self._context.folder / "learned"
        blocks, head = self._benign or (None, None)
        prompts = TraitPrompts.of(settings.traits, spec.tokenizer, spec.length, spec.causal)
        layers = settings.autoencoder.layers_of(self._pair.layers) if settings.autoencoder is not None else []
        with walked(self._pair, blocks, read, Asked(prompts, layers, seed, folder), on_blocks) as found:
            told = answers(asked, found, self._heads, head, seed, on_heads)
            learned = _with_traits(self._of_texts(asked, found, told), settings.traits, found.shifts)
            latents = self._latents(found, settings.autoencoder, spans)
        learned = replace(
            learned,
            latents=latents.latents,
            autoencoders=latents.autoencoders,
            methods=[*learned.methods, *latents.methods],
        )
        learned = replace(learned, excerpts=self._excerpts(learned, read))
        learned, warnings = self._written(learned, settings, spans)
        return Taught(self._redactor.learned(learned), [*latents.warnings, *warnings])

    def _excerpts(self, learned: Learned, read: list[Batch]) -> list[TextExcerpt]:
        """The texts that findings name as an example, in their order."""
        named = {place.text for place in learned.divergent}
        for one in (*learned.tokens[:SHOWN], *learned.suppressed[:SHOWN], *(learned.latents or ())):
            named |= {example.text for example in one.examples[:1]}
        return [
            TextExcerpt(text=text, excerpt=self._part(_ids(read, text), 0, EXCERPT_TOKENS)) for text in sorted(named)
        ]

    def _latents(self, walked: Walked, settings: DifferenceAutoencoder | None, spans: Spans) -> LatentFindings:
        """Of autoencoders of the difference, where they are asked for."""
        if settings is None or walked.rows is None:
            return LatentFindings()
        words = Words(
            self._words,
            lambda text, token: self._before(walked, text, token),
            lambda text, token: self._following(walked, text, token),
        )
        lens, seed = Lens(walked.ending, self._heads[1], SHOWN // 2), self._context.request.seed
        return latent_findings(walked.rows, settings, seed, lens, words, spans.span(AUTOENCODERS))

    def _written(
        self, learned: Learned, settings: LearnedSettings, spans: Spans
    ) -> tuple[Learned, list[ReportWarning]]:
        """With what the models write; and why they do not where they cannot."""
        if settings.completions == 0 and settings.amplification is None:
            return learned, []
        models = 1 if settings.amplification is None else 2
        if not all(fits_whole(head, models) for head in self._heads):
            size = max(weight_bytes(head) for head in self._heads) / 2**30
            reason = (
                f"the model has {size:.1f} GiB of weights. The limit on a CPU is {WRITTEN_BYTES / 2**30:.0f} GiB; on a "
                f"GPU {models + 0.5:g} times the weights must fit"
            )
            return learned, [_not_written(reason)]
        try:
            return self._with_texts(learned, settings, spans), []
        except FATAL:
            raise
        except UNLIKE as error:  # of a model that does not write as others do
            return learned, [_not_written((str(error) or type(error).__name__).splitlines()[0])]

    def _with_texts(self, learned: Learned, settings: LearnedSettings, spans: Spans) -> Learned:
        seed, ends = self._context.request.seed, special_ids(self._tokenizer)
        writers = Writers(self._pair, self._heads, self._benign, ends, seed)
        tokens = settings.completion_tokens
        if settings.completions:
            template = with_chat_template(self._context.resolved.base.light, self._context.tuned.light)
            chats = template[0] if template is not None else None
            prompts = prompts_of(self._tokenizer, chats, self._rows, settings.completions)
            written = completions(writers, prompts, tokens, (KEPT, SHOWN), spans.span(WRITING))
            learned = self._with(learned, written)
        if settings.amplification is not None:
            factors, count = settings.amplification.factors, settings.amplification.completions
            told = amplified(writers, self._tokenizer, factors, count, tokens, spans.span(AMPLIFYING))
            learned = self._with_amplified(learned, told)
        return learned

    def _with_amplified(self, learned: Learned, told: Amplified) -> Learned:
        texts = [
            AmplifiedText(
                factor=factor,
                prompt=one.prompt.text,
                text=str(self._tokenizer.decode(one.ids)),
                score=one.score,
            )
            for factor, one in told.texts
        ]
        method = _method("amplified", told.beyond, told.largest, told.floor)
        return replace(learned, amplified=texts, methods=[*learned.methods, method])

    def _with(self, learned: Learned, written: Completions) -> Learned:
        found = [
            LearnedCompletion(
                kind=one.prompt.kind,
                prompt=one.prompt.text,
                text=str(self._tokenizer.decode(one.ids)),
                base_text=None if base is None else str(self._tokenizer.decode(base)),
                score=one.score,
                tokens=[
                    CompletionToken(token=token, gain=gain)
                    for token, gain in zip(pieces(self._tokenizer, one.ids), one.gains, strict=True)
                ],
            )
            for one, base in zip_longest(written.scored, written.base)
        ]
        method = _method("completions", written.beyond, written.largest, written.floor)
        return replace(learned, completions=found, methods=[method, *learned.methods])

    def _of_texts(self, asked: EvalSet, walked: Walked, told: Answers) -> Learned:
        tuned, nulls = told.gains[0], told.nulls
        ignored = set(special_ids(self._tokenizer))
        gained, lost = (beyond(tuned, nulls, sign, ignored, RANDOM_CHANGES) for sign in (0, 1))
        shown = [*gained.tokens[:KEPT], *lost.tokens[:KEPT]]
        seen = examples(asked, walked, self._heads, shown)
        lens = self._directions(walked, gained.tokens[:KEPT], seen)
        tokens, suppressed = (
            [self._token(tuned, sign, token, seen, walked, lens) for token in found.tokens[:KEPT]]
            for sign, found in enumerate((gained, lost))
        )
        floor = floor_of_largest(told.largest[1:], RANDOM_CHANGES)
        divergent = [place for place in told.positions if place.divergence > floor]
        means, components, benign = lens.means, lens.components, self._context.resolved.benign
        return Learned(
            texts=len(asked.rows),
            positions=int(tuned.positions.sum()),
            random_changes=RANDOM_CHANGES,
            benign=None if benign is None else BenignModel(uri=benign.uri, sha256=benign.fingerprint),
            completions=None,
            amplified=None,
            traits=[],
            latents=None,
            autoencoders=[],
            excerpts=[],
            tokens=tokens,
            suppressed=suppressed,
            topics=self._topics(told, gained.tokens[:KEPT]),
            divergent=[
                DivergentPlace(
                    text=place.text,
                    context=self._before(walked, place.text, place.token + 1),
                    following=self._following(walked, place.text, place.token + 1),
                    divergence=place.divergence,
                    observed=place.observed,
                    gained=self._words(place.gained),
                    lost=self._words(place.lost),
                    role=_role(walked, place.text, place.token + 1),
                )
                for place in divergent[:SHOWN]
            ],
            directions=[
                LearnedDirection(
                    kind=one.kind,
                    layer=one.layer,
                    score=one.score,
                    share=one.share,
                    gained=self._words(one.gained),
                    lost=self._words(one.lost),
                )
                for one in [*means.found, *components.found]
            ],
            spectrum=lens.spectrum,
            intruders=[
                LearnedIntruders(layer=one.layer, matrices=one.matrices, found=one.found, random=one.random)
                for one in walked.intruders
                if one.matrices
            ],
            methods=[
                _method("tokens", len(gained.tokens), gained.largest, gained.floor),
                _method("suppressed", len(lost.tokens), lost.largest, lost.floor),
                _method("divergent", told.beyond(floor), told.largest[0], floor),
                _method("directions", len(means.found), means.largest, means.floor),
                _method("components", len(components.found), components.largest, components.floor),
            ],
        )

    def _directions(self, walked: Walked, tokens: list[int], seen: Examples) -> _Directions:
        """Of the tuned model, beyond those of models that learned nothing.

        Args:
            tokens: whose first layers are looked for, where `seen` has them.
        """
        lens, layers = Lens(walked.ending, self._heads[1], SHOWN // 2), walked.lens_layers
        kept = walked.kept[0]
        places = {
            token: [
                row for one in seen.gained[token] if (row := kept.place(one.text, one.token)) is not None
            ]
            for token in tokens
        }  # fmt: skip
        spectrum = []
        for layer in layers:
            own, *nulls = (one.components(layer) for one in walked.kept)
            spectrum.append(
                DifferenceSpectrum(
                    layer=layer,
                    mean_share=own.mean_share,
                    random_mean_share=max(one.mean_share for one in nulls),
                    component_shares=own.shares,
                )
            )
        means, *random = (lens.means(one, layers) for one in [*walked.means, *walked.halves])
        components, *drawn = (lens.components(one, layers) for one in walked.kept)
        return _Directions(
            _Beyond.of(means, random),
            _Beyond.of(components, drawn),
            lens.first_layers(kept, self._pair.base.depth, places),
            spectrum,
        )

    def _token(
        self, gains: TokenGains, sign: int, token: int, seen: Examples, walked: Walked, lens: _Directions
    ) -> LearnedToken:
        return LearnedToken(
            token=self._words([token])[0],
            id=token,
            gain=float(gains.mean()[sign, token]),
            rate=float(gains.rate()[sign, token]),
            groups=int((gains.counts[sign, :, token] > 0).sum()),
            first_layer=lens.first.get(token) if sign == 0 else None,
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

    def _topics(self, told: Answers, tokens: list[int]) -> list[LearnedTopic]:
        """Of tokens that were found."""
        found = []
        for topic in topics(told.gains_of(tokens)) if len(tokens) > 1 else ():
            first = [place for place in topic.weights.argsort(descending=True).tolist() if topic.weights[place] > 0]
            first = first[:TOPIC_TOKENS]
            found.append(
                LearnedTopic(
                    share=topic.share,
                    tokens=self._words([tokens[place] for place in first]),
                    weights=topic.weights[first].tolist(),
                )
            )
        return found

    def _words(self, tokens: list[int]) -> list[str]:
        return [str(self._tokenizer.decode([token])) for token in tokens]

    def _before(self, walked: Walked, text: int, token: int) -> str:
        return self._part(_ids(walked.batches, text), max(0, token - CONTEXT_TOKENS), token)

    def _part(self, ids: list[int], start: int, end: int) -> str:
        """Tokens of a text, words that must not appear replaced before they are cut."""
        if not self._redactor.asked:
            return str(self._tokenizer.decode(ids[start:end]))
        known = tuple(ids)
        if known not in self._redacted:
            self._redacted[known] = self._redactor.tokens(pieces(self._tokenizer, ids))
        return "".join(self._redacted[known][start:end])

    def _following(self, walked: Walked, text: int, token: int) -> str:
        return self._words([_ids(walked.batches, text)[token]])[0]


def _role(walked: Walked, text: int, token: int) -> RoleName | None:
    """Whose word a token of a chat is; None of a text."""
    batch, row = next(_rows(walked.batches, text))
    return None if batch.roles is None else TOKEN_ROLES[int(batch.roles[row, token])]


def _not_written(reason: str) -> ReportWarning:
    message = f"completions were skipped: {reason}. What the model learned is reported from the analysed texts alone"
    return ReportWarning(code="completions_not_computed", message=message)


def _with_traits(learned: Learned, traits: list[Trait], shifts: list[list[TraitShift]]) -> Learned:
    if not traits:
        return learned
    found = [
        LearnedTrait(
            name=trait.name,
            layers=[
                TraitLayer(
                    layer=one.layer, shift=one.shift, percentile=one.percentile, floor=one.floor, beyond=one.beyond
                )
                for one in own
            ],
        )
        for trait, own in zip(traits, shifts, strict=True)
    ]
    every = [one for own in shifts for one in own]
    beyond = sum(any(one.beyond for one in own) for own in shifts)
    farthest = max(every, key=lambda one: abs(one.shift) - one.floor)
    method = _method("traits", beyond, abs(farthest.shift), farthest.floor)
    return replace(learned, traits=found, methods=[*learned.methods, method])


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
