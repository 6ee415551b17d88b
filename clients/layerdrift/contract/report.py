"""The report, schema version 1: everything that is known of a pair, and nothing that was not measured.

A number without a meaning at its place is null, and `undefined` beside it says why. HTML and Markdown are drawn from
this alone. Definitions of every number: `docs/numbers.md`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from layerdrift.contract.request import AnalysisRequest

SCHEMA_VERSION: Final = 1

ViewName = Literal["token", "cls", "mean"]
MeasureName = Literal["cosine", "cosine_centred", "relative_l2", "cka"]
PartName = Literal["embeddings", "attention", "mlp", "norm"]
ZoneName = Literal["general", "transitional", "specialised"]


class ReportModel(BaseModel):
    """Base of every part of a report: never NaN; fields of later versions are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Measured(ReportModel):
    """One number, its 95 % interval and its null level. What was not computed is null."""

    value: float | None = Field(description="the estimate, without unit")
    low: float | None = Field(default=None, description="lower end of the 95 % interval; null: not computed")
    high: float | None = Field(default=None, description="upper end of the 95 % interval; null: not computed")
    null: float | None = Field(default=None, description="the same number where nothing changed; null: not computed")
    undefined: str | None = Field(default=None, description="why there is no value")


class Similarity(ReportModel):
    """The four measures of one view of one layer."""

    cosine: Measured = Field(description="mean cosine of the two models' rows, [-1, 1]")
    cosine_centred: Measured = Field(description="the same after subtracting each model's mean, [-1, 1]")
    relative_l2: Measured = Field(description="Frobenius norm of the difference over that of the base, >= 0")
    cka: Measured = Field(description="debiased linear CKA, at most 1; may be slightly negative")


class SaeQuality(ReportModel):
    """How good one sparse autoencoder is, on texts that it was not trained on."""

    fvu: float = Field(description="fraction of variance unexplained, >= 0; 0 is perfect, 1 no better than the mean")
    l0: float = Field(ge=0, description="active latents for a token, mean")
    dead_fraction: float = Field(ge=0, le=1, description="latents that did not fire in the last 5 % of the training")


class WeightDrift(ReportModel):
    """How far the weights of one part of a layer moved."""

    relative_frobenius: float = Field(ge=0, description="Frobenius norm of the difference over that of the base, >= 0")
    effective_rank: float | None = Field(
        description="directions the difference spreads over, mean over the part's matrices; null: no matrix moved"
    )
    top8_share: float | None = Field(
        description="largest share of the squared difference that rank-8 updates could have made, 0 to 1"
    )
    top16_share: float | None = Field(description="the same for rank 16")


class LayerSae(ReportModel):
    """The autoencoders of one layer, one for each model."""

    base: SaeQuality
    tuned: SaeQuality
    transfer_fvu: float = Field(description="FVU of the base model's autoencoder on the tuned model's activations")
    transfer_excess: float = Field(description="transfer_fvu - base.fvu: what the base model's features miss")


class Layer(ReportModel):
    """One layer. Index 0 is the output of the embeddings, index i that of block i."""

    index: int = Field(ge=0)
    name: str
    zone: ZoneName
    drift: float = Field(description="1 - CKA of the token view, what the zones are fitted to; about 0 to 1")
    similarity: dict[ViewName, Similarity]
    weights: dict[PartName, WeightDrift] = Field(default={}, description="by part; parts that a layer lacks are absent")
    sae: LayerSae | None = None


class CrossLayerCka(ReportModel):
    """Debiased CKA between every layer of the base (rows) and every layer of the tuned model (columns)."""

    values: list[list[float | None]]
    rows: int = Field(description="tokens in the random sample it was computed on")


class Zone(ReportModel):
    """A run of layers whose drift is on one level."""

    name: ZoneName
    first: int = Field(ge=0, description="index of the first layer")
    last: int = Field(ge=0, description="index of the last layer")
    level: float = Field(description="mean drift (1 - CKA) of its layers")
    support: float | None = Field(
        default=None,
        description="share of the fits with a group of texts left out that agree on its layers; null: none",
    )


class Recommendation(ReportModel):
    """What to freeze next time."""

    freeze_first: int = Field(ge=0, description="k: the embeddings and the first k blocks; 0: nothing")
    basis: Literal["predicted", "validated"] = Field(description="`validated` only where a retraining confirmed it")
    evidence: str = Field(description="what it rests on, in words")


class ModelInfo(ReportModel):
    """One of the two checkpoints."""

    uri: str
    fingerprint: str = Field(description="sha256 over the names and sha256 of its config and weight files")
    architecture: str
    parameters: int = Field(ge=0, description="parameters of the body that was compared, heads not counted")
    blocks: int = Field(ge=1)
    hidden_size: int = Field(ge=1)


class DatasetInfo(ReportModel):
    """The texts that the models were compared on."""

    source: str
    sha256: str = Field(description="of the file, or of the inline texts")
    rows: int = Field(description="usable rows in the source")
    analysed_texts: int
    analysed_tokens: int = Field(description="tokens compared, special ones not counted")
    train_texts: int = Field(description="rows the fine-tune was trained on; 0 for a pair")
    sae_texts: int = Field(description="texts the autoencoders were trained on")
    sae_distinct_tokens: int = Field(description="distinct tokens the autoencoders were trained on")


class Outputs(ReportModel):
    """What the fine-tune reached on the analysed texts, none of which it was trained on."""

    accuracy: float = Field(ge=0, le=1, description="share of right labels")
    majority_accuracy: float = Field(ge=0, le=1, description="share of the commonest label: what a constant reaches")
    examples: int
    labels: list[str]
    steps: int = Field(description="optimiser steps")
    final_loss: float = Field(description="mean cross-entropy over the last tenth of the steps, nats")


class TokenText(ReportModel):
    """One text, token by token."""

    text: str
    tokens: list[str]
    special: list[bool] = Field(description="[CLS], [SEP] and the like")
    drift: list[list[float]] = Field(
        description="[layer][token]: 1 - cosine of the two models' centred activations, 0 (same) to 2 (opposite)"
    )


class TokenDrift(ReportModel):
    """Where in the shown texts the two models differ."""

    source: Literal["request", "dataset"]
    texts: list[TokenText]


class ReportWarning(ReportModel):
    """Something a reader must know before trusting a number."""

    code: str
    message: str


class Engine(ReportModel):
    """What computed it."""

    version: str
    python: str
    packages: dict[str, str]
    device: str
    threads: int


class Timings(ReportModel):
    """What it took."""

    stages: dict[str, float] = Field(description="seconds of each stage")
    peak_memory_bytes: int = Field(description="largest resident size of the worker's process")


class Report(ReportModel):
    """Everything that is known of a pair."""

    schema_version: Literal[1] = SCHEMA_VERSION
    analysis_id: str
    name: str
    created_at: datetime
    engine: Engine
    request: AnalysisRequest
    models: dict[Literal["base", "tuned"], ModelInfo]
    dataset: DatasetInfo
    layers: list[Layer]
    cross_layer_cka: CrossLayerCka
    zones: list[Zone]
    outputs: Outputs | None = Field(default=None, description="of the fine-tune; null for a pair")
    recommendation: Recommendation
    tokens: TokenDrift
    warnings: list[ReportWarning]
    timings: Timings
