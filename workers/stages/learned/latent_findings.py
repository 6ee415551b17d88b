"""Latents of the difference that are beyond those of models that learned nothing, for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from layerdrift.contract.request import DifferenceAutoencoder
from workers.analysis.floors import floor_of
from workers.results.learned import DifferenceFit, LatentPlace, LearnedLatent, LearnedMethod
from workers.results.warnings import ReportWarning
from workers.stages.learned.latents import DifferenceRows, Latent, TooFewPositions, fitted
from workers.stages.learned.lens import AsTokens, Lens

SHOWN = 20
"""Latents that are shown."""


@dataclass(frozen=True)
class Words:
    """Token numbers as text. tokens: of a list. before: the text before a token of a text. token: that one."""

    tokens: Callable[[list[int]], list[str]]
    before: Callable[[int, int], str]
    token: Callable[[int, int], str]


@dataclass(frozen=True)
class LatentFindings:
    """latents: beyond the floor, most first; None where nothing was trained, and why."""

    latents: list[LearnedLatent] | None = None
    autoencoders: list[DifferenceFit] = field(default_factory=list)
    methods: list[LearnedMethod] = field(default_factory=list)
    warnings: list[ReportWarning] = field(default_factory=list)


def latent_findings(
    rows: DifferenceRows,
    settings: DifferenceAutoencoder,
    seed: int,
    lens: Lens,
    words: Words,
    on_progress: Callable[[float], None],
) -> LatentFindings:
    """Trains autoencoders of the difference, and reads their latents as tokens.

    A latent counts where a token stands out more than in any latent of the models that learned nothing.
    """
    found, nulls, fits = list[tuple[Latent, AsTokens]](), list[float](), list[DifferenceFit]()
    try:
        for one in fitted(rows, settings, seed, on_progress):
            read = lens.read([latent.direction for latent in one.latents])
            found += zip(one.latents, read, strict=True)
            nulls += [null.score for other in one.others for null in lens.read(list(other))]
            fits.append(
                DifferenceFit(layer=one.layer, latents=one.width, positions=one.positions, fvu=one.fvu, l0=one.l0)
            )
    except TooFewPositions as error:
        message = f"no autoencoders of the difference were trained: {error}"
        return LatentFindings(warnings=[ReportWarning(code="difference_autoencoder_not_trained", message=message)])
    floor = floor_of(nulls)
    beyond = sorted((one for one in found if one[1].score > floor), key=lambda one: -one[1].score)
    largest = max((read.score for _, read in found), default=0.0)
    method = LearnedMethod(name="latents", found=len(beyond), largest=largest, floor=floor)
    return LatentFindings([_latent(*one, words) for one in beyond[:SHOWN]], fits, [method])


def _latent(latent: Latent, read: AsTokens, words: Words) -> LearnedLatent:
    return LearnedLatent(
        layer=latent.layer,
        score=read.score,
        share=latent.share,
        rate=latent.rate,
        in_base=latent.in_base,
        in_tuned=latent.in_tuned,
        gained=words.tokens(read.gained),
        lost=words.tokens(read.lost),
        examples=[
            LatentPlace(
                text=place.text,
                context=words.before(place.text, place.token),
                token=words.token(place.text, place.token),
                activation=place.activation,
            )
            for place in latent.places
        ],
    )
