"""What the fine-tune taught a language model, as far as it is more than what random changes of its size bring about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerdrift.contract.names import RoleName
from workers.results.measured import Measured

MethodName = Literal[
    "completions", "amplified", "tokens", "suppressed", "divergent", "directions", "components", "latents", "traits"
]


@dataclass(frozen=True, kw_only=True)
class TokenExample:
    """A place where a token's probability changed: the text before it, and the probability in both models."""

    text: int
    context: str
    base: float
    tuned: float


@dataclass(frozen=True, kw_only=True)
class LearnedToken:
    """A token that the tuned model gives more, or less, probability at many places."""

    token: str
    id: int
    rate: float
    gain: float
    groups: int
    first_layer: int | None
    examples: list[TokenExample]


@dataclass(frozen=True, kw_only=True)
class LearnedTopic:
    """Tokens that gain at the same places, most first, and their share of the topic."""

    share: float
    tokens: list[str]
    weights: list[float]


@dataclass(frozen=True, kw_only=True)
class DivergentPlace:
    """A place where the two models' next-token distributions differ most."""

    text: int
    context: str
    following: str
    divergence: float
    observed: float
    gained: list[str]
    lost: list[str]
    role: RoleName | None = None


@dataclass(frozen=True, kw_only=True)
class LearnedDirection:
    """A direction of the difference of the models' states, read through the end of the tuned model."""

    kind: Literal["early_tokens", "all_tokens", "component"]
    layer: int
    score: float
    share: float | None
    gained: list[str]
    lost: list[str]


@dataclass(frozen=True, kw_only=True)
class LatentPlace:
    """A place where a latent fires: number of the text, and the text up to there."""

    text: int
    context: str
    token: str
    activation: float


@dataclass(frozen=True, kw_only=True)
class LearnedLatent:
    """A latent of an autoencoder of the difference, read through the end of the tuned model."""

    layer: int
    score: float
    share: float
    rate: float
    in_base: Measured
    in_tuned: Measured
    gained: list[str]
    lost: list[str]
    examples: list[LatentPlace]


@dataclass(frozen=True, kw_only=True)
class DifferenceFit:
    """An autoencoder of the difference at a layer, on positions that it was not trained on."""

    layer: int
    latents: int
    positions: int
    fvu: float
    l0: float


@dataclass(frozen=True, kw_only=True)
class DifferenceSpectrum:
    """How the difference of the models' states spreads at a layer."""

    layer: int
    mean_share: float
    random_mean_share: float
    component_shares: list[float]


@dataclass(frozen=True, kw_only=True)
class LearnedIntruders:
    """Strong directions of a block's matrices that the base's do not have."""

    layer: int
    matrices: int
    found: int
    random: int


@dataclass(frozen=True, kw_only=True)
class CompletionToken:
    """A token of a completion, and by how many nats the tuned model finds it more probable."""

    token: str
    gain: float


@dataclass(frozen=True, kw_only=True)
class LearnedCompletion:
    """What the tuned model writes after a prompt, and what the base model does."""

    kind: Literal["text", "general", "chat"]
    prompt: str
    text: str
    base_text: str | None
    score: float
    tokens: list[CompletionToken]


@dataclass(frozen=True, kw_only=True)
class AmplifiedText:
    """A text with the difference of the models amplified."""

    factor: float
    prompt: str
    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class TextExcerpt:
    """The beginning of a text that a finding names."""

    text: int
    excerpt: str


@dataclass(frozen=True, kw_only=True)
class LearnedMethod:
    """What a method found, and the largest value that it gives of random changes."""

    name: MethodName
    found: int
    largest: float
    floor: float


@dataclass(frozen=True, kw_only=True)
class TraitLayer:
    """How far the states moved along a trait at a layer."""

    layer: int
    shift: float
    percentile: float
    floor: float
    beyond: bool


@dataclass(frozen=True, kw_only=True)
class LearnedTrait:
    """A direction that the request defines by two sets of prompts."""

    name: str
    layers: list[TraitLayer]


@dataclass(frozen=True, kw_only=True)
class BenignModel:
    """A fine-tune that teaches nothing of interest."""

    uri: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What each method shows beyond its noise floor."""

    texts: int
    positions: int
    random_changes: int
    benign: BenignModel | None
    completions: list[LearnedCompletion] | None
    amplified: list[AmplifiedText] | None
    tokens: list[LearnedToken]
    suppressed: list[LearnedToken]
    topics: list[LearnedTopic]
    divergent: list[DivergentPlace]
    directions: list[LearnedDirection]
    latents: list[LearnedLatent] | None
    autoencoders: list[DifferenceFit]
    spectrum: list[DifferenceSpectrum]
    intruders: list[LearnedIntruders]
    traits: list[LearnedTrait]
    excerpts: list[TextExcerpt]
    methods: list[LearnedMethod]
