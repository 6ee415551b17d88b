"""Words that must not appear in what is told of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from workers.results.learned import CompletionToken, Learned, LearnedCompletion, LearnedToken

REDACTED = "[redacted]"


class Redactor:
    """Replaces words and phrases, whole ones, whatever their capitals; spaces in a phrase stand for any white space."""

    def __init__(self, words: Sequence[str]) -> None:
        parts = (r"\s+".join(re.escape(part) for part in word.split()) for word in words if word.strip())
        found = "|".join(sorted(parts, key=len, reverse=True))
        self._words = re.compile(rf"(?<!\w)(?:{found})(?!\w)", re.IGNORECASE) if found else None

    def text(self, text: str) -> str:
        """A text without them."""
        return text if self._words is None else self._words.sub(REDACTED, text)

    def tokens(self, tokens: Sequence[str]) -> list[str]:
        """The tokens of a text; all that a word or phrase reaches into are replaced, each by itself."""
        if self._words is None:
            return list(tokens)
        ends = list(accumulate(len(token) for token in tokens))
        spans = [found.span() for found in self._words.finditer("".join(tokens))]
        return [
            REDACTED if any(start < end and first < stop for start, stop in spans) else token
            for token, first, end in zip(tokens, [0, *ends], ends, strict=False)
        ]

    def learned(self, found: Learned) -> Learned:
        """All texts and tokens of what was found."""
        if self._words is None:
            return found
        return replace(
            found,
            completions=None if found.completions is None else [self._completion(one) for one in found.completions],
            amplified=None
            if found.amplified is None
            else [replace(one, prompt=self.text(one.prompt), text=self.text(one.text)) for one in found.amplified],
            tokens=[self._token(one) for one in found.tokens],
            suppressed=[self._token(one) for one in found.suppressed],
            topics=[replace(one, tokens=[self.text(token) for token in one.tokens]) for one in found.topics],
            divergent=[
                replace(
                    one,
                    context=self.text(one.context),
                    following=self.text(one.following),
                    gained=[self.text(token) for token in one.gained],
                    lost=[self.text(token) for token in one.lost],
                )
                for one in found.divergent
            ],
            directions=[
                replace(
                    one,
                    gained=[self.text(token) for token in one.gained],
                    lost=[self.text(token) for token in one.lost],
                )
                for one in found.directions
            ],
        )

    def _completion(self, one: LearnedCompletion) -> LearnedCompletion:
        names = self.tokens([token.token for token in one.tokens])
        return replace(
            one,
            prompt=self.text(one.prompt),
            text=self.text(one.text),
            base_text=None if one.base_text is None else self.text(one.base_text),
            tokens=[
                CompletionToken(token=name, gain=token.gain) for name, token in zip(names, one.tokens, strict=True)
            ],
        )

    def _token(self, one: LearnedToken) -> LearnedToken:
        examples = [replace(example, context=self.text(example.context)) for example in one.examples]
        token = self.text(one.token)
        return replace(one, token=token, id=-1 if token != one.token else one.id, examples=examples)
