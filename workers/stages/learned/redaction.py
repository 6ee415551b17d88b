"""Words that must not appear in what is reported of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from layerdrift.contract.words import REDACTED, Words
from workers.results.learned import (
    CompletionToken,
    DivergentPlace,
    Learned,
    LearnedCompletion,
    LearnedLatent,
    LearnedToken,
)

LEAST_LETTERS = 3
"""Letters of a piece of a word that is replaced where a token stands alone: shorter ones are in too many words."""


class Redactor:
    """Replaces words and phrases, as `layerdrift.contract.words` finds them.

    Args:
        tokenizer: whose pieces of these words are replaced too where a token stands alone.
    """

    def __init__(self, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._asked = bool(words)
        self._words = Words(words)
        self._whole_words = {part.casefold() for word in words for part in word.split()}
        spelled = [variant for word in words for variant in (word, f" {word}", word.casefold(), f" {word.casefold()}")]
        ids = {token for text in spelled for token in tokenizer(text, add_special_tokens=False)["input_ids"]}
        pieces = (str(tokenizer.decode([token])) for token in ids)
        self._pieces = {piece for piece in pieces if len(piece.strip().lstrip("#")) >= LEAST_LETTERS}

    def text(self, text: str) -> str:
        """A text without them."""
        return self.parts([text])[0]

    def parts(self, parts: Sequence[str]) -> list[str]:
        """Texts that stand one after another: a word may begin in one and end in the next."""
        found = []
        for part, spans in zip(parts, self._within(parts), strict=True):
            said, place = "", 0
            for start, stop in spans:
                if stop > place:
                    said += part[place : max(start, place)] + (REDACTED if start >= place else "")
                    place = stop
            found.append(said + part[place:])
        return found

    def tokens(self, tokens: Sequence[str], before: str = "") -> list[str]:
        """The tokens of a text; all that a word or phrase reaches into are replaced, each by itself."""
        ends = list(accumulate((len(token) for token in tokens), initial=0))
        spans = self._within([before, "".join(tokens)])[1]
        return [
            REDACTED if any(start < end and first < stop for start, stop in spans) else token
            for token, first, end in zip(tokens, ends, ends[1:], strict=False)
        ]

    def _within(self, parts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where the words stand in each of some texts, whether or not there is a space between the texts."""
        found: list[set[tuple[int, int]]] = [set() for _ in parts]
        for between in ("", " "):
            starts = accumulate((len(part) + len(between) for part in parts), initial=0)
            whole = self._words.spans(between.join(parts))
            for spans, part, first in zip(found, parts, starts, strict=False):
                inside = ((max(start - first, 0), min(stop - first, len(part))) for start, stop in whole)
                spans |= {(start, stop) for start, stop in inside if start < stop}
        return [sorted(spans) for spans in found]

    def alone(self, tokens: Sequence[str]) -> list[str]:
        """Tokens of a list: words, and pieces of them."""
        return [
            REDACTED if token in self._pieces or self._words.within(token) else token for token in tokens
        ]  # fmt: skip

    @property
    def asked(self) -> bool:
        """Whether there is anything to replace."""
        return self._asked

    def cut(self, text: str) -> str:
        """A text that may end within a word: also without the beginning of one that would be replaced."""
        start = max(text.rfind(space) for space in " \n\t") + 1
        begun = text[start:].strip().casefold()
        if len(begun) < LEAST_LETTERS or not any(
            word.startswith(begun) and word != begun for word in self._whole_words
        ):
            return text
        return text[:start] + REDACTED

    def learned(self, found: Learned) -> Learned:
        """All texts and tokens of what was found."""
        if not self._asked:
            return found
        return replace(
            found,
            completions=None if found.completions is None else [self._completion(one) for one in found.completions],
            amplified=None
            if found.amplified is None
            else [
                replace(one, prompt=prompt, text=text)
                for one in found.amplified
                for prompt, text in [self.parts([one.prompt, self.cut(one.text)])]
            ],
            tokens=[self._token(one) for one in found.tokens],
            suppressed=[self._token(one) for one in found.suppressed],
            topics=[replace(one, tokens=self.alone(one.tokens)) for one in found.topics],
            divergent=[self._place(one) for one in found.divergent],
            directions=[
                replace(one, gained=self.alone(one.gained), lost=self.alone(one.lost)) for one in found.directions
            ],
            excerpts=[replace(one, excerpt=self.parts([one.excerpt])[0]) for one in found.excerpts],
            latents=None if found.latents is None else [self._latent(one) for one in found.latents],
        )

    def _completion(self, one: LearnedCompletion) -> LearnedCompletion:
        pieces = [token.token for token in one.tokens]
        prompt, text = self.parts([one.prompt, self.cut(one.text)])
        names = self.tokens(pieces, one.prompt)
        if self.cut(one.text) != one.text:
            names = [*names[:-1], REDACTED]
        return replace(
            one,
            prompt=prompt,
            text=text,
            base_text=None if one.base_text is None else self.parts([one.prompt, self.cut(one.base_text)])[1],
            tokens=[
                CompletionToken(token=name, gain=token.gain) for name, token in zip(names, one.tokens, strict=True)
            ],
        )

    def _latent(self, one: LearnedLatent) -> LearnedLatent:
        return replace(
            one,
            gained=self.alone(one.gained),
            lost=self.alone(one.lost),
            examples=[
                replace(place, context=context, token=self.alone([token])[0])
                for place in one.examples
                for context, token in [self.parts([place.context, place.token])]
            ],
        )

    def _place(self, one: DivergentPlace) -> DivergentPlace:
        context, following = self.parts([one.context, one.following])
        return replace(
            one,
            context=context,
            following=self.alone([following])[0],
            gained=self.alone(one.gained),
            lost=self.alone(one.lost),
        )

    def _token(self, one: LearnedToken) -> LearnedToken:
        (token,) = self.alone([one.token])
        examples = [replace(example, context=self.parts([example.context, one.token])[0]) for example in one.examples]
        return replace(one, token=token, id=-1 if token != one.token else one.id, examples=examples)
