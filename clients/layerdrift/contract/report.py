"""The report, schema version 2: everything that is known of a pair, and nothing that was not measured.

A number without a meaning at its place is null, and `undefined` beside it says why. HTML and Markdown are drawn from
this alone. Definitions of every number: `docs/numbers.md`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from layerdrift.contract.errors import InputError
from layerdrift.contract.renamed import with_current_names
from layerdrift.contract.request import AnalysisRequest, NoiseFloorName

SCHEMA_VERSION: Final = 2

ViewName = Literal["token", "cls", "mean"]
MeasureName = Literal[
    "cosine",
    "cosine_centred",
    "relative_l2",
    "relative_l2_centred",
    "cka",
    "cka_standardized",
    "procrustes",
    "rsa",
    "knn_jaccard",
]
PartName = Literal["embeddings", "attention", "mlp", "norm"]
ZoneName = Literal["general", "transitional", "specialised", "ramp"]


class ReportModel(BaseModel):
    """Base of every part of a report: never NaN; fields of later versions are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Measured(ReportModel):
    """One number, its 95 % interval and its null level. What was not computed is null."""

    value: float | None = Field(description="the estimate, without unit")
    low: float | None = Field(default=None, description="lower end of the 95 % interval; null: not computed")
    high: float | None = Field(default=None, description="upper end of the 95 % interval; null: not computed")
    noise_floor: float | None = Field(
        default=None,
        description="the same number of the numerical null, which is what rounding gives, or as the number's own "
        "description says; null: not computed",
    )
    undefined: str | None = Field(default=None, description="why there is no value")


class Similarity(ReportModel):
    """The measures of one view of one layer."""

    cosine: Measured = Field(description="mean cosine of the two models' rows, [-1, 1]")
    cosine_centred: Measured = Field(description="the same after subtracting each model's mean, [-1, 1]")
    relative_l2: Measured = Field(description="Frobenius norm of the difference over that of the base, >= 0")
    relative_l2_centred: Measured = Field(
        default=Measured(value=None, undefined="an older report"),
        description="the same after subtracting each model's mean, >= 0",
    )
    cka: Measured = Field(description="debiased linear CKA, at most 1; may be slightly negative")
    cka_standardized: Measured = Field(description="the same with every feature divided by its deviation, at most 1")
    procrustes: Measured = Field(description="1 - similarity after the best rotation, [0, 1]; 0: the same")
    rsa: Measured | None = Field(
        default=None, description="Spearman correlation of the distances between texts, [-1, 1]; view `mean` alone"
    )
    knn_jaccard: Measured | None = Field(
        default=None, description="overlap of the texts' 10 nearest neighbours, [0, 1]; view `mean` alone"
    )


DENSITY_EDGES: Final = (3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 0.1, 0.316)
"""Between the bins of `SaeQuality.density`: shares of the tokens that a latent fires on, half a decade apart."""


class SaeQuality(ReportModel):
    """How good one sparse autoencoder is, on texts that it was not trained on."""

    fvu: float = Field(description="fraction of variance unexplained, >= 0; 0 is perfect, 1 no better than the mean")
    l0: float = Field(ge=0, description="active latents for a token, mean")
    dead_fraction: float = Field(ge=0, le=1, description="latents that did not fire in the last 5 % of the training")
    density: list[int] = Field(
        default=[],
        description="latents by the share of the held-out tokens that they fire on: none, then in half decades from "
        "3.16e-5 up to 1",
    )
    loss_recovered: Measured | None = Field(
        default=None,
        description="1 - (loss with the reconstruction in the states' place - loss) / (loss with their mean - loss); "
        "1: nothing is lost, 0: as bad as the mean; null: the model has no head to ask",
    )


class WeightDrift(ReportModel):
    """How far the weights of one part of a layer moved."""

    relative_frobenius: float | None = Field(
        ge=0, description="Frobenius norm of the difference over that of the base, >= 0; null: the base's are all zero"
    )
    effective_rank: float | None = Field(
        description="directions the difference spreads over, mean over the part's matrices, of what is above the "
        "rounding of the weights; null: no matrix moved by more than that"
    )
    top8_share: float | None = Field(
        description="largest share of the squared difference above the rounding that rank-8 updates could have made, "
        "0 to 1"
    )
    top16_share: float | None = Field(description="the same for rank 16")
    rounding_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the squared difference that rounding to the tuned weights' precision makes; null: no "
        "matrix moved",
    )


class Turnover(ReportModel):
    """What became of a dictionary's latents while it was trained on; see `docs/numbers.md`."""

    retained: int = Field(ge=0, description="latents of before whose direction is the same (cosine of 0.9 or more)")
    shifted: int = Field(ge=0, description="latents of before that turned (cosine of 0.5 to 0.9)")
    lost: int = Field(ge=0, description="latents of before that fell silent or turned away (cosine below 0.5)")
    new: int = Field(ge=0, description="latents of after whose direction nothing before had (cosine below 0.7)")


class WarmStart(ReportModel):
    """The base model's autoencoder, trained on for a while on the tuned model's activations."""

    tuned: Turnover
    floor: Turnover = Field(description="the same trained on on the base model's own activations: what chance gives")
    new_excess: int | None = Field(
        default=None, description="tuned.new - floor.new; below 0 too; null: withheld, see `withheld` of the layer"
    )
    new_error: float | None = Field(default=None, ge=0, description="one standard error of it, of Poisson counts")
    lost_excess: int | None = Field(default=None, description="tuned.lost - floor.lost, likewise")
    lost_error: float | None = Field(default=None, ge=0, description="one standard error of it")
    shifted_excess: int | None = Field(default=None, description="tuned.shifted - floor.shifted, likewise")
    shifted_error: float | None = Field(default=None, ge=0, description="one standard error of it")


class Match(ReportModel):
    """Autoencoders that were trained apart, their living latents assigned one to one."""

    matched_share: float = Field(
        ge=0, le=1, description="of the base model's latents, those with a partner in the tuned model (cosine >= 0.7)"
    )
    floor_share: float = Field(
        ge=0, le=1, description="the same between two autoencoders of the base model that differ in their seed"
    )
    mean_cosine: float = Field(ge=-1, le=1, description="over all assigned pairs")
    floor_mean_cosine: float = Field(ge=-1, le=1, description="the same of the floor")
    unmatched_excess: float | None = Field(
        default=None, ge=-1, le=1, description="floor_share - matched_share; below 0 too; null: withheld"
    )
    unmatched_error: float | None = Field(default=None, ge=0, description="one standard error of it")


class SpecificCounts(ReportModel):
    """Living latents of a crosscoder by which model's decoder has them: relative norm, 0 base only to 1 tuned only."""

    tuned_only: int = Field(ge=0, description="relative norm of 0.9 or more")
    tuned_only_confirmed: int = Field(
        ge=0, description="of these, the ones that latent scaling finds little of in the base model"
    )
    base_only: int = Field(ge=0, description="relative norm of 0.1 or less")
    base_only_confirmed: int = Field(
        ge=0, description="of these, the ones that latent scaling finds little of in the tuned model"
    )
    tuned_more: int = Field(ge=0, description="relative norm between 0.6 and 0.9")
    shared: int = Field(ge=0, description="relative norm of 0.4 to 0.6")
    base_more: int = Field(ge=0, description="relative norm between 0.1 and 0.4")


class Crosscoder(ReportModel):
    """One latent space for both models at a layer, with a decoder for each (Minder et al. 2025)."""

    base_fvu: float = Field(ge=0, description="fraction of the base model's variance unexplained")
    tuned_fvu: float = Field(ge=0, description="fraction of the tuned model's variance unexplained")
    l0: float = Field(ge=0, description="active latents for a token, mean")
    dead_fraction: float = Field(ge=0, le=1, description="latents that did not fire in the last 5 % of the training")
    pair: SpecificCounts
    floor: SpecificCounts = Field(description="the same of the base model and itself: what chance gives")
    tuned_only_excess: int = Field(description="confirmed ones less those of the floor; below 0 too")
    tuned_only_error: float | None = Field(
        default=None, ge=0, description="one standard error of it, of Poisson counts"
    )
    base_only_excess: int = Field(description="the same of the base model's")
    base_only_error: float | None = Field(default=None, ge=0, description="one standard error of it")


class LatentAblation(ReportModel):
    """The tuned model without the latents that are new or shifted at a layer."""

    latents: int = Field(ge=1, description="how many were taken out")
    cost: Measured = Field(
        description="mean Kullback-Leibler divergence per example (nats) between the outputs without these latents "
        "and the model's own. `noise_floor`: mean over random draws of the same number of latents that fire about as "
        "often and as strongly, these included; null: too few such latents"
    )
    draws: int = Field(default=0, ge=0, description="how many such draws were made")
    p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="how often a draw costs as much: (1 + draws that do) / (1 + draws); null: no draws",
    )


class LayerSae(ReportModel):
    """The autoencoders of one layer, one for each model."""

    base: SaeQuality
    tuned: SaeQuality
    random_weights: SaeQuality | None = Field(
        default=None, description="of an autoencoder on a randomly initialised copy of the base model; null: not asked"
    )
    transfer_fvu: float = Field(
        description="FVU of the base model's autoencoder on the tuned model's activations, its bias and scale re-fitted"
    )
    transfer_excess: float = Field(description="transfer_fvu - base.fvu: what the base model's features miss")
    withheld: str | None = Field(
        default=None,
        description="why counts beyond the floor, changed latents and their ablation are not told: the autoencoders "
        "are not identified well enough; null: they are told",
    )
    warm_start: WarmStart | None = Field(default=None, description="null: not asked for")
    match: Match | None = Field(default=None, description="null: not asked for, or no latent is alive")
    crosscoder: Crosscoder | None = Field(default=None, description="null: not asked for")
    ablation: LatentAblation | None = Field(
        default=None,
        description="null: no head to ask, no more such latents than floor and chance explain, or a layer not heard",
    )


class SaeRunPoint(ReportModel):
    """A run at the end of a span of steps."""

    step: int = Field(ge=1)
    unexplained: list[float] = Field(
        description="by autoencoder, mean over the span: what was not rebuilt of a batch before it was trained on, "
        "as a share of the first batch's variance; about FVU"
    )


SaeRunName = Literal["training", "warm_start", "crosscoder", "random_weights"]


class SaeRun(ReportModel):
    """One training of many autoencoders side by side."""

    name: SaeRunName
    steps: int = Field(ge=1)
    planned_steps: int = Field(ge=1, description="more than `steps` where none got better any more")
    batch: int = Field(ge=1, description="tokens in a step")
    learning_rate: float = Field(gt=0, description="peak")
    autoencoders: list[str] = Field(description="their names, in the order of the curve's numbers")
    curve: list[SaeRunPoint]


Fate = Literal["new", "shifted", "lost"]


class LatentExample(ReportModel):
    """A token that a latent fires on, with the words around it."""

    before: str
    token: str
    after: str
    activation: float = Field(gt=0, description="of the latent, for inputs of mean squared norm 1")
    label: str | None = Field(default=None, description="of the text; null: it has none")


class LabelAssociation(ReportModel):
    """A label that goes with a latent."""

    label: str
    share: float = Field(ge=0, le=1, description="of the latent's activation, the part on texts of this label")
    expected: float = Field(ge=0, le=1, description="of the tokens, the part in texts of this label: what chance gives")


class ProbeDirection(ReportModel):
    """The class that a latent's direction points to most, by a linear regression in the tuned model's layer."""

    label: str
    cosine: float = Field(
        ge=-1, le=1, description="of the decoder row and the direction that tells this label from the others"
    )


class ChangedLatent(ReportModel):
    """A latent of a fate that a layer has more of than training on by itself and chance explain."""

    layer: int = Field(ge=0)
    index: int = Field(ge=0, description="in the autoencoder of the warm start, the same before and after")
    fate: Fate
    cosine: float = Field(ge=-1, le=1, description="of its decoder rows before and after")
    base_rate: float = Field(ge=0, le=1, description="share of the base model's tokens that it fired on before")
    tuned_rate: float = Field(ge=0, le=1, description="share of the tuned model's tokens that it fires on after")
    base: list[LatentExample] = Field(description="where it fired most in the base model, one token of a text at most")
    tuned: list[LatentExample] = Field(description="where it fires most in the tuned model")
    label_association: LabelAssociation | None = Field(
        default=None, description="the label it goes with most; null: no labels, or no more than chance gives"
    )
    probe: ProbeDirection | None = Field(default=None, description="null: no probes, or no nearer than chance gives")
    promotes: list[str] = Field(
        default=[],
        description="of a causal language model, the tokens whose logits its direction raises most where the output "
        "embeddings read it as it is",
    )


class LayerProbe(ReportModel):
    """How well a linear probe reads the labels off a layer, in both models, on texts that it was not fitted to."""

    base: Measured = Field(description="accuracy in the base model, 0 to 1")
    tuned: Measured = Field(description="accuracy in the tuned model, 0 to 1")
    base_control: float = Field(ge=0, le=1, description="the same fitted to shuffled labels: what chance gives")
    tuned_control: float = Field(ge=0, le=1, description="the same in the tuned model")


class LayerGraft(ReportModel):
    """What becomes of the tuned model's answers when parts of the base model are put in; see `causal.graft`."""

    prefix: Measured = Field(description="with the base model's embeddings and blocks up to this layer")
    prefix_cost: Measured = Field(
        description="what that costs on the same texts: share of right answers lost, relative increase of perplexity, "
        "else the measure itself"
    )
    block: Measured = Field(description="with this block of the base model alone (layer 0: its embeddings)")


class AllTokens(ReportModel):
    """The token view with first tokens and outliers in it, which everything else leaves out."""

    drift: float = Field(description="1 - CKA; about 0 (same) to 1 (unrelated)")
    relative_l2: float | None = Field(description="Frobenius norm of the difference over that of the base, >= 0")


class Layer(ReportModel):
    """One layer. Index 0 is the output of the embeddings, index i that of block i."""

    index: int = Field(ge=0)
    name: str
    zone: ZoneName
    drift: float = Field(description="1 - CKA of the token view; about 0 (same) to 1 (unrelated)")
    noise_floors: dict[NoiseFloorName, float] = Field(
        default={},
        description="1 - CKA of the token view of the pairs in `noise_floors`; `numerical` is the resolution",
    )
    excess_drift: float = Field(
        ge=0, description="drift less the numerical null, 0 where not `drifted`; what the zones are fitted to"
    )
    drifted: bool = Field(
        description="whether the layer is displaced: by more than the numerical resolution; see docs/numbers.md"
    )
    random_weights_drift: float | None = Field(
        default=None,
        description="1 - CKA of the base model and a copy of it with random weights: the drift of a layer of which "
        "nothing is left; null: not computed",
    )
    relative_drift: Measured = Field(
        default=Measured(value=None, undefined="an older report"),
        description="drift over `random_weights_drift`: 0 the same, 1 as far as random weights",
    )
    reproducibility: Measured | None = Field(
        default=None,
        description="share of the change that fine-tunes with other seeds make alike, -1 to 1: 1 every seed moves the "
        "tokens alike, 0 each seed elsewhere; interval over texts and seeds; null: `reseed` was not asked for",
    )
    task_consistency: Measured | None = Field(
        default=None,
        description="mean cosine of the changes that fine-tunes with different seeds made to a token, [-1, 1]; null: "
        "`reseed` was not asked for",
    )
    similarity: dict[ViewName, Similarity]
    all_tokens: AllTokens | None = Field(
        default=None, description="with the tokens that are left out elsewhere; null: none were"
    )
    weights: dict[PartName, WeightDrift] = Field(default={}, description="by part; parts that a layer lacks are absent")
    probe: LayerProbe | None = None
    graft: LayerGraft | None = None
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
    level: float = Field(description="mean excess drift of its layers")
    support: float | None = Field(
        default=None,
        description="share of fresh samples of texts that would give a zone of the same layers; null: no intervals",
    )


class Recommendation(ReportModel):
    """What to freeze next time."""

    freeze_first: int = Field(ge=0, description="k: the embeddings and the first k blocks; 0: nothing")
    basis: Literal["predicted", "validated", "none"] = Field(
        description="`validated` only where a retraining confirmed it; `none`: there is no advice, `evidence` says why"
    )
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
    units: int | None = Field(
        default=None, description="groups of texts that are nearly the same, by `group_column`; null: none were named"
    )
    train_texts: int = Field(description="rows the fine-tune was trained on; 0 for a pair")
    max_length: int | None = Field(
        default=None, description="tokens of a text that were read, special ones counted; null: an older report"
    )
    truncated_share: float | None = Field(
        default=None, ge=0, le=1, description="share of the texts' tokens that lie beyond max_length and were not read"
    )
    excluded_first_tokens: int = Field(
        default=0, ge=0, description="first tokens of texts, which are not compared in a causal model"
    )
    excluded_outliers: int = Field(
        default=0,
        ge=0,
        description="other tokens that are not compared: their norm is beyond 10 medians at some layer of either model",
    )
    excluded_share: float = Field(
        default=0.0, ge=0, le=1, description="both, as a share of the tokens that were read, special ones not counted"
    )
    sae_texts: int = Field(description="texts the autoencoders were trained on")
    sae_distinct_tokens: int = Field(description="distinct tokens the autoencoders were trained on")


class NoiseFloor(ReportModel):
    """A pair of models that differ by chance alone, measured like the real one."""

    name: NoiseFloorName
    description: str = Field(description="what was compared with what")
    tokens: int = Field(description="tokens it was measured on")


class ModelOutputs(ReportModel):
    """How well one model answers on the analysed texts. What its head or the data do not allow is null."""

    accuracy: Measured | None = Field(default=None, description="share of right labels, 0 to 1; classifiers")
    mcc: Measured | None = Field(
        default=None,
        description="Matthews correlation of predictions and labels, -1 to 1; 0 for a constant prediction. "
        "`noise_floor`: what unrelated predictions reach in at most 2.5 % of cases; classifiers only",
    )
    perplexity: Measured | None = Field(
        default=None, description="exp of the mean negative log-likelihood of a token, >= 1; language models"
    )


class Outputs(ReportModel):
    """The answers of both models on the analysed texts; a model without a head of this kind has none."""

    kind: Literal["classifier", "causal_lm", "masked_lm"]
    examples: int = Field(description="texts (classifiers) or predicted tokens (language models)")
    labels: list[str] = Field(default=[], description="classes, in the order of the tuned model")
    labelled: int | None = Field(
        default=None, description="texts with a label, which accuracy is over; null: language models, or none known"
    )
    base: ModelOutputs | None = None
    tuned: ModelOutputs | None = None
    majority_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="share of the commonest label: what a constant reaches"
    )
    majority_change: Measured | None = Field(
        default=None,
        description="accuracy of the tuned model less that of always answering the commonest label, on the same texts, "
        "-1 to 1",
    )
    accuracy_change: Measured | None = Field(
        default=None, description="accuracy of the tuned model less the base model's on the same texts, -1 to 1"
    )
    perplexity_ratio: Measured | None = Field(
        default=None,
        description="perplexity of the tuned model over the base model's on the same tokens, > 0; above 1: worse",
    )
    disagreement: Measured | None = Field(
        default=None, description="share of the examples to which the two give different answers, 0 to 1"
    )
    js_divergence: Measured | None = Field(
        default=None, description="mean Jensen-Shannon divergence of the two distributions, bits, 0 to 1"
    )


class Reference(ReportModel):
    """Forgetting: the two models on a second, general set of texts, `dataset.reference` of the request."""

    source: str
    sha256: str = Field(description="of the file, or of the inline texts")
    texts: int
    tokens: int = Field(description="tokens compared, special ones not counted")
    drift: list[Measured] = Field(description="by layer, 0 to L: 1 - CKA of the token view on these texts")
    outputs: Outputs | None = Field(default=None, description="the answers to these texts; null: no head to ask")


class TrainingPoint(ReportModel):
    """The fine-tune at one step."""

    step: int
    loss: float = Field(description="mean cross-entropy, nats")


class Evaluation(TrainingPoint):
    """The fine-tune on held-out rows."""

    accuracy: float = Field(ge=0, le=1)


class FineTuneRun(ReportModel):
    """How the fine-tune went."""

    method: str
    precision: Literal["float32", "bfloat16"]
    trainable_parameters: int
    steps: int = Field(description="optimiser steps")
    kept_step: int = Field(description="the step whose weights became the tuned model")
    final_loss: float = Field(description="mean cross-entropy over the last tenth of the steps, nats")
    losses: list[TrainingPoint] = Field(description="on the training rows, means over up to 100 spans of steps")
    held_out_texts: int = Field(description="rows that were neither trained on nor analysed")
    held_out: list[Evaluation] = Field(description="on these, after every epoch")


class Trajectory(ReportModel):
    """Drift from the base along the fine-tune; the last entry is the tuned model."""

    steps: list[int]
    drift: list[list[float]] = Field(description="[snapshot][layer]: 1 - CKA of the token view")
    relative_l2: list[list[float]] = Field(description="[snapshot][layer]")
    tokens: int = Field(description="tokens it was measured on")


class ProbeInfo(ReportModel):
    """What the probes were fitted to."""

    examples: int
    classes: int
    folds: int = Field(description="every text was held out once, in one of so many folds")
    majority_accuracy: float = Field(ge=0, le=1)


class GraftInfo(ReportModel):
    """What the grafts are measured by."""

    measure: Literal["accuracy", "perplexity", "kl", "state_change"] = Field(
        description="accuracy or perplexity of the grafted model; without labels `kl`: mean Kullback-Leibler "
        "divergence of its answers from the tuned model's, bits; without a head `state_change`: relative L2 of the "
        "texts' means at the last layer"
    )
    ungrafted: float = Field(description="the same of the tuned model as it is")
    examples: int


class SpliceInfo(ReportModel):
    """How the autoencoders were judged by the models' answers."""

    loss: Literal["cross_entropy", "kl"] = Field(
        description="nats; `kl`: a classifier without known labels, divergence from the answers it gives by itself"
    )
    examples: int = Field(description="texts")


class SweepPoint(ReportModel):
    """Fine-tunes with the embeddings and the first k blocks frozen."""

    freeze_first: int
    accuracy: float = Field(description="mean over the seeds, 0 to 1")
    by_seed: list[float]
    loss_points: float = Field(description="accuracy with nothing frozen less this, in points (%)")
    loss_bound_points: float = Field(description="one-sided 95 % upper bound of that loss, in points (%)")
    validated: bool = Field(description="whether the bound is below epsilon")
    step_seconds: float = Field(description="median time of an optimiser step")
    training_bytes: int = Field(
        description="weights, gradients, optimiser and what the backward pass kept of the largest batch"
    )
    cached: bool = Field(description="whether the frozen blocks ran once for each row instead of once an epoch")


class Strategy(ReportModel):
    """A rule for what to freeze, and how much accuracy it would have cost against the best of the sweep."""

    name: Literal["recommended", "nothing", "half", "gradient_norm"]
    frozen_blocks: list[int] = Field(description="blocks, counted from 1; the embeddings with them unless empty")
    accuracy: float
    regret_points: float = Field(description="accuracy of the best depth of the sweep less this one's, in points (%)")


class Sweep(ReportModel):
    """What freezing costs, measured by retraining."""

    epsilon_points: float
    seeds: list[int]
    examples: int
    points: list[SweepPoint]
    strategies: list[Strategy]


class Causal(ReportModel):
    """Whether the change matters to the answers."""

    graft: GraftInfo | None = None
    splice: SpliceInfo | None = None
    sweep: Sweep | None = None


class TokenLatents(ReportModel):
    """The strongest latents of every token of a text: [layer][token], strongest first, as [index, activation]."""

    base: list[list[list[tuple[int, float]]]] = Field(
        description="of the base model's autoencoders in the base model; activations for inputs of mean squared norm 1"
    )
    tuned: list[list[list[tuple[int, float]]]] = Field(description="of the tuned model's in the tuned model")


class TokenText(ReportModel):
    """One text, token by token."""

    text: str
    tokens: list[str]
    special: list[bool] = Field(
        description="tokens that are not compared: [CLS], [SEP] and the like, a causal model's first one, outliers"
    )
    drift: list[list[float]] = Field(
        description="[layer][token]: squared distance of the two models' centred activations over the sum of their "
        "mean squared norms, >= 0: 0 the same, 1 as far as unrelated tokens"
    )
    latents: TokenLatents | None = Field(
        default=None, description="null: no autoencoders, or too many tokens are shown"
    )


class TokenDrift(ReportModel):
    """Where in the shown texts the two models differ."""

    source: Literal["request", "dataset"]
    texts: list[TokenText]


WARNING_CODES: Final = (
    "adapter_base",
    "added_tokens",
    "answers_not_explained",
    "answers_not_evaluated",
    "answers_worse",
    "below_resolution",
    "blank_texts",
    "different_classes",
    "few_sae_tokens",
    "identical_bodies",
    "identical_models",
    "labels_as_numbers",
    "excluded_tokens",
    "length_reduced",
    "measures_disagree",
    "no_better_than_majority",
    "no_grafts",
    "no_intervals",
    "no_mask_token",
    "noise_floor_not_computed",
    "outlier_features",
    "outlier_norms",
    "repeated_texts",
    "sae_on_analysed_texts",
    "sae_on_trained_texts",
    "shared_blocks",
    "single_texts_of_pairs",
    "texts_cut",
    "texts_not_reached",
    "tokenizers_differ",
    "undefined_cka",
    "unknown_labels",
    "unlabelled_rows",
    "unusable_labels",
    "wide_intervals",
    "wrapped_weights",
)
"""All that there are, for whoever asks for one by its code."""


class ReportWarning(ReportModel):
    """Something a reader must know before trusting a number."""

    code: str = Field(examples=list(WARNING_CODES))
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


class PendingStage(ReportModel):
    """A stage that a preliminary report was written before."""

    stage: str = Field(description="its name, as in the progress of the analysis")
    fields: list[str] = Field(description="parts of the report that it adds or changes")
    expected_seconds: float | None = Field(default=None, ge=0, description="how long it will take; null: not known")


class Report(ReportModel):
    """Everything that is known of a pair."""

    schema_version: Literal[2] = SCHEMA_VERSION
    status: Literal["complete", "preliminary"] = Field(
        default="complete",
        description="`preliminary`: written while the analysis still runs; `pending` says what is missing. "
        "Policies refuse it",
    )
    pending: list[PendingStage] = Field(default=[], description="what a preliminary report lacks, in the order to come")
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
    noise_floors: list[NoiseFloor] = []
    outputs: Outputs | None = Field(default=None, description="null where the tuned model has no head")
    reference: Reference | None = Field(default=None, description="null without dataset.reference")
    finetune: FineTuneRun | None = Field(default=None, description="null for a pair")
    trajectory: Trajectory | None = Field(default=None, description="null without finetune.checkpoints")
    probes: ProbeInfo | None = Field(default=None, description="null without labels")
    causal: Causal = Causal()
    recommendation: Recommendation
    tokens: TokenDrift
    latents: list[ChangedLatent] = Field(
        default=[],
        description="the most changed latents of each layer, where there are more than floor and chance explain",
    )
    autoencoders: str | None = Field(
        default=None,
        description="S3 URI under which base/, tuned/ and warm-start/ have a folder layer-NN for each autoencoder, as "
        "sae_lens.SAE.load_from_disk opens it; `latents` count in those of warm-start/; null: none were kept",
    )
    sae_runs: list[SaeRun] = Field(default=[], description="how the autoencoders were trained")
    latent_table: str | None = Field(
        default=None,
        description="S3 URI of a Parquet file with a row for each latent of these autoencoders: how often and how "
        "strongly it fires, and the tokens it is strongest on; null: none was kept",
    )
    warnings: list[ReportWarning]
    timings: Timings

    def require_complete(self) -> None:
        """InputError for a preliminary report: no decision may rest on it."""
        if self.status != "complete":
            missing = ", ".join(stage.stage for stage in self.pending)
            raise InputError(
                f"the report of {self.analysis_id} is preliminary ({missing} still to come); wait for the analysis"
            )

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, document: object) -> object:
        """A report of version 1 under the names of today."""
        if not isinstance(document, dict) or document.get("schema_version") != 1:
            return document
        return {**with_current_names(document), "schema_version": SCHEMA_VERSION}
