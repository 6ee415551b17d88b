"""Inspecting texts: each token, at each layer, through both models of a finished analysis."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TEXTS = 16
STRONGEST = 5
"""Latents that are told of each token."""

_Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


class InspectionRequest(BaseModel):
    """Which pair, and what it is to read."""

    model_config = ConfigDict(extra="forbid")

    analysis_id: str = Field(pattern=r"^an_[a-z2-7]{26}$", description="an analysis that has succeeded")
    texts: list[_Text] = Field(min_length=1, max_length=MAX_TEXTS)


class LatentActivation(BaseModel):
    """A latent of a layer's autoencoder on one token."""

    latent: int = Field(ge=0, description="its index in the autoencoder")
    activation: float = Field(gt=0, description="in the units of the raw states")


class InspectedLayer(BaseModel):
    """One layer, token by token."""

    drift: list[float | None] = Field(
        description="squared distance of the two centred states over the sum of their mean squared norms, >= 0: 0 the "
        "same, 1 as far as unrelated tokens; null where `special`"
    )
    base_norm: list[float] = Field(description="Euclidean norm of the base model's state")
    tuned_norm: list[float] = Field(description="the same in the tuned model")
    base_latents: list[list[LatentActivation]] | None = Field(
        default=None, description="of the base model's autoencoder, strongest first; null: none was kept"
    )
    tuned_latents: list[list[LatentActivation]] | None = Field(default=None, description="of the tuned model's")


class InspectedText(BaseModel):
    """One text through both models."""

    text: str
    tokens: list[str]
    special: list[bool] = Field(
        description="tokens that are not compared: [CLS], [SEP] and the like, a causal model's first one, outliers"
    )
    truncated: bool = Field(description="whether its end was not read: analysis.max_length tokens are")
    layers: list[InspectedLayer] = Field(description="index 0: the embeddings")


class Inspection(BaseModel):
    """Texts through the pair of one analysis."""

    analysis_id: str
    texts: list[InspectedText]
