"""Inspecting texts: each token, at each layer, through both models of a finished analysis."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TEXTS = 16
STRONGEST = 5
"""Latents that are told of each token."""

LIKELIEST = 5
"""Next tokens of each model that are told after each token."""

_Text = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


class InspectionRequest(BaseModel):
    """An analysis and the texts to run through its models."""

    model_config = ConfigDict(extra="forbid")

    analysis_id: str = Field(
        min_length=1,
        max_length=200,
        description="an analysis that has succeeded: its id, the first characters of it, its name, or `latest`",
    )
    texts: list[_Text] = Field(min_length=1, max_length=MAX_TEXTS)
    completion_tokens: int = Field(
        default=24,
        ge=0,
        le=128,
        description="tokens with which each language model goes on from the end of each text, at most; 0: none",
    )


class LatentActivation(BaseModel):
    """Activation of one latent of a layer's autoencoder on one token."""

    latent: int = Field(ge=0, description="index in the autoencoder")
    activation: float = Field(gt=0, description="activation, in the units of the raw states")


class InspectedLayer(BaseModel):
    """One layer, token by token."""

    drift: list[float | None] = Field(
        description="squared distance between the two centred states over the sum of their mean squared norms, >= 0; "
        "0: identical, 1: as far apart as unrelated tokens; null where `special`"
    )
    base_norm: list[float] = Field(description="Euclidean norm of the base model's state")
    tuned_norm: list[float] = Field(description="Euclidean norm of the tuned model's state")
    base_latents: list[list[LatentActivation]] | None = Field(
        default=None,
        description="most active latents of the base model's autoencoder, strongest first; null: no autoencoder was "
        "saved",
    )
    tuned_latents: list[list[LatentActivation]] | None = Field(
        default=None, description="most active latents of the tuned model's autoencoder"
    )


class TokenProbability(BaseModel):
    """A token, and how probable it is."""

    token: str
    probability: float = Field(ge=0, le=1)


class NextTokens(BaseModel):
    """What two language models expect after a token."""

    divergence: float = Field(
        ge=0,
        description="Kullback-Leibler divergence of the tuned model's next-token distribution from the base model's, "
        "in bits",
    )
    base: list[TokenProbability] = Field(description="the likeliest tokens in the base model, at most 5")
    tuned: list[TokenProbability] = Field(description="the same in the tuned model")


class TextCompletions(BaseModel):
    """How two language models go on from the end of a text, each time with the likeliest token."""

    base: str
    tuned: str


class InspectedText(BaseModel):
    """One text through both models."""

    text: str
    tokens: list[str]
    special: list[bool] = Field(
        description="whether each token is excluded from the comparison: [CLS], [SEP] and similar, the first token "
        "in a causal model, outliers"
    )
    truncated: bool = Field(description="whether the text was truncated to analysis.max_length tokens")
    layers: list[InspectedLayer] = Field(description="by layer; index 0: the embeddings")
    next_tokens: list[NextTokens] | None = Field(
        default=None, description="after each token; null: the two are not language models with heads of their own"
    )
    completions: TextCompletions | None = Field(
        default=None,
        description="null: as for `next_tokens`, or none was asked for, or the pair is read block by block",
    )


class Inspection(BaseModel):
    """Texts run through the models of one analysis."""

    analysis_id: str
    texts: list[InspectedText]
