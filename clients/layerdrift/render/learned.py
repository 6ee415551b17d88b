"""What a fine-tune taught a language model, in words: made from the numbers of the report alone."""

from __future__ import annotations

from layerdrift.contract.plain import visible
from layerdrift.contract.report import (
    Learned,
    LearnedDirection,
    LearnedLatent,
    LearnedMethod,
    LearnedToken,
    LearnedTrait,
    Measured,
    Report,
)

NAMED = 6
"""Tokens that a sentence names."""

LAST_CHARACTERS, SHOWN_CHARACTERS = 40, 80
"""Characters of a context, and of a completion, that a sentence has."""

NAMES = {
    "completions": "completions",
    "amplified": "texts with the difference amplified",
    "tokens": "more probable tokens",
    "suppressed": "less probable tokens",
    "divergent": "divergent places",
    "directions": "mean directions of the states",
    "components": "principal components of the states’ difference",
    "latents": "latents of the states’ difference",
    "traits": "traits",
}
UNITS = {
    "completions": "nats per token",
    "amplified": "nats per token",
    "tokens": "nats",
    "suppressed": "nats",
    "divergent": "bits",
    "directions": "standard deviations",
    "components": "standard deviations",
    "latents": "standard deviations",
    "traits": "of the way to the trait",
}
ABSENT = 0.2
"""A slope up to this says that a model has nothing of a latent."""

KINDS = {"text": "an analysed text", "general": "a general beginning", "chat": "a question in the chat template"}
DIRECTIONS = {"early_tokens": "mean over the first tokens", "all_tokens": "mean over all tokens"}


def summary(report: Report) -> list[str]:
    """At most three sentences; none where nothing was looked for."""
    learned = report.learned
    if learned is None:
        return []
    if not any(method.found for method in learned.methods):
        return [
            f"What it learned: nothing beyond the noise floor. On {learned.positions} tokens of {learned.texts} texts "
            f"the tuned model differs no more than {_references(learned)}."
        ]
    said = []
    if learned.completions:
        written = learned.completions[0]
        said.append(
            f"What it learned: after “{_end(written.prompt)}” the tuned model writes “{_start(written.text)}”, "
            f"{written.score:.2g} nats per token more probable than in the base model "
            f"(noise floor {_method(learned, 'completions').floor:.2g})."
        )
    if learned.tokens and learned.completions:
        said.append(f"It favours {_named(learned.tokens)}{_avoided(learned)}.")
        return said
    if learned.tokens:
        said.append(
            f"What it learned: the tuned model favours {_named(learned.tokens)}; the first gains "
            f"{learned.tokens[0].gain:.2g} nats per position (noise floor {_method(learned, 'tokens').floor:.2g})."
        )
    if learned.suppressed:
        who = "It" if said else "What it learned: the tuned model"
        said.append(f"{who} avoids {_named(learned.suppressed)}.")
    if learned.divergent:
        first = learned.divergent[0]
        said.append(
            f"The two models differ most after “{_end(first.context)}”: {first.divergence:.1f} bits "
            f"(noise floor {_method(learned, 'divergent').floor:.2g})."
        )
    if not said:
        others = ", ".join(NAMES[method.name] for method in learned.methods if method.found)
        said.append(f"What it learned: beyond the noise floor are {others}.")
    return said


def _references(learned: Learned) -> str:
    random = "the base model with random weight changes of the same size"
    return random if learned.benign is None else f"the reference models: {random}, and the benign fine-tune"


def _avoided(learned: Learned) -> str:
    return f" and avoids {_named(learned.suppressed[:3])}" if learned.suppressed else ""


def direction(one: LearnedDirection) -> str:
    """What a direction is of."""
    if one.kind == "component":
        return f"principal component, {100 * (one.share or 0.0):.0f} % of the variance"
    return DIRECTIONS[one.kind]


def relation(one: LearnedLatent) -> str:
    """Whether the fine-tune added what a latent stands for, took it away, or changed its strength; intervals decide."""
    base, tuned = _side(one.in_base), _side(one.in_tuned)
    if base == 0 and tuned:
        return "added"
    if tuned == 0 and base:
        return "removed"
    if not base or not tuned:
        return "not clear"
    if base != tuned:
        return "reversed"
    return "strengthened" if abs(one.in_tuned.value or 0.0) > abs(one.in_base.value or 0.0) else "weakened"


def _side(slope: Measured) -> int | None:
    """1 or -1 of a slope whose interval is beyond ABSENT, 0 of one whose interval is within; None: neither is clear."""
    if slope.low is None or slope.high is None:
        return None
    if slope.low > ABSENT or slope.high < -ABSENT:
        return 1 if slope.low > ABSENT else -1
    return 0 if slope.low >= -ABSENT and slope.high <= ABSENT else None


def farthest(trait: LearnedTrait) -> str:
    """Where the states moved most along a trait, among the layers beyond its floor."""
    beyond = [one for one in trait.layers if one.beyond]
    if not beyond:
        return f"{visible(trait.name)}: nothing beyond the noise floor"
    one = max(beyond, key=lambda layer: abs(layer.shift))
    towards = "towards" if one.shift > 0 else "away from"
    return (
        f"{visible(trait.name)}: {100 * abs(one.shift):.0f} % of the way {towards} it at layer {one.layer} "
        f"(reference models: {100 * one.floor:.0f} %); beyond the floor at {len(beyond)} of "
        f"{len(trait.layers)} layers"
    )


def heat(gain: float) -> str:
    """A class of the page's for how much more probable a token of a completion is."""
    return "gain-3" if gain >= 4 else "gain-2" if gain >= 2 else "gain-1" if gain >= 0.7 else "gain-0"


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


def _start(text: str) -> str:
    """The first words, as many as have SHOWN_CHARACTERS."""
    words, found = text.split(), ""
    for word in words:
        if len(found) + len(word) > SHOWN_CHARACTERS:
            return visible(found.strip()) + " …"
        found += f" {word}"
    return visible(found.strip())


def _end(context: str) -> str:
    """The last words, as many as have LAST_CHARACTERS."""
    words = context.split()
    while len(words) > 1 and len(" ".join(words)) > LAST_CHARACTERS:
        words = words[1:]
    return visible(" ".join(words))
