"""What a fine-tune taught a language model, in words: made from the numbers of the report alone."""

from __future__ import annotations

from layerdrift.contract.plain import visible
from layerdrift.contract.report import Learned, LearnedMethod, LearnedToken, Report

NAMED = 6
"""Tokens that a sentence names."""

LAST_CHARACTERS = 40

NAMES = {
    "tokens": "more probable tokens",
    "suppressed": "less probable tokens",
    "divergent": "divergent places",
    "directions": "directions of the states",
}
UNITS = {"tokens": "nats", "suppressed": "nats", "divergent": "bits", "directions": "standard deviations"}


def summary(report: Report) -> list[str]:
    """At most three sentences; none where nothing was looked for."""
    learned = report.learned
    if learned is None:
        return []
    if not any(method.found for method in learned.methods):
        return [
            f"What it learned: nothing beyond the noise floor. On {learned.positions} tokens of {learned.texts} texts "
            "the tuned model differs no more than the base model with random weight changes of the same size."
        ]
    said = []
    if learned.tokens:
        said.append(
            f"What it learned: the tuned model favours {_named(learned.tokens)}; the first gains "
            f"{learned.tokens[0].gain:.2g} nats per position, random weight changes of the same size at most "
            f"{_method(learned, 'tokens').floor:.2g}."
        )
    if learned.suppressed:
        said.append(f"It avoids {_named(learned.suppressed)}.")
    if learned.divergent:
        first = learned.divergent[0]
        said.append(
            f"The two models differ most after “{_end(first.context)}”: {first.divergence:.1f} bits, where random "
            f"changes reach {_method(learned, 'divergent').floor:.2g}."
        )
    return said


def status(method: LearnedMethod) -> str:
    """What a method found, beside its floor."""
    unit = UNITS[method.name]
    beyond = f"{method.found} beyond the noise floor" if method.found else "nothing beyond the noise floor"
    return f"{NAMES[method.name]}: {beyond} (largest {method.largest:.3g} {unit}, floor {method.floor:.3g})"


def shown(token: str) -> str:
    """A token between quotes, its spaces and line ends visible."""
    return "“" + visible(token.replace("\n", "⏎").replace(" ", "␣")) + "”"


def probability(value: float) -> str:
    """A probability in percent; of a small one its first digit."""
    return f"{100 * value:.1f} %" if value >= 0.001 else f"{100 * value:.1g} %"


def _named(tokens: list[LearnedToken]) -> str:
    words = [shown(one.token) for one in tokens[:NAMED]]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _method(learned: Learned, name: str) -> LearnedMethod:
    return next(method for method in learned.methods if method.name == name)


def _end(context: str) -> str:
    """The last words, as many as have LAST_CHARACTERS."""
    words = context.split()
    while len(words) > 1 and len(" ".join(words)) > LAST_CHARACTERS:
        words = words[1:]
    return visible(" ".join(words))
