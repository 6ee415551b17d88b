"""The report, schema version 2: everything that is known of a pair, and nothing that was not measured.

A number without a meaning at its place is null, and `undefined` beside it says why. HTML and Markdown are drawn from
this alone. Definitions of every number: `docs/numbers.md`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from layerdrift.contract.errors import InputError
from layerdrift.contract.names import Fate, PartName, RoleName, SaeRunName, StrategyName, ViewName, ZoneName
from layerdrift.contract.renamed import with_current_names
from layerdrift.contract.request import AnalysisRequest, NoiseFloorName, Objective

SCHEMA_VERSION: Final = 2


class ReportModel(BaseModel):
    """Base of every report model: rejects NaN, ignores fields of later versions."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Measured(ReportModel):
    """A number with its 95 % interval and its noise floor. Null: not computed."""

    value: float | None = Field(description="estimate, dimensionless")
    low: float | None = Field(default=None, description="lower bound of the 95 % interval; null: not computed")
    high: float | None = Field(default=None, description="upper bound of the 95 % interval; null: not computed")
    noise_floor: float | None = Field(
        default=None,
        description="the same number for the `numerical` noise floor (the effect of rounding), unless its own "
        "description says otherwise; null: not computed",
    )
    undefined: str | None = Field(default=None, description="why there is no value")


class Similarity(ReportModel):
    """Similarity measures for one view of one layer."""

    cosine: Measured = Field(description="mean cosine similarity of the two models' rows, [-1, 1]")
    cosine_centred: Measured = Field(description="`cosine` after subtracting each model's mean, [-1, 1]")
    relative_l2: Measured = Field(description="Frobenius norm of the difference over that of the base, >= 0")
    relative_l2_centred: Measured = Field(
        default=Measured(value=None, undefined="an older report"),
        description="`relative_l2` after subtracting each model's mean, >= 0",
    )
    cka: Measured = Field(description="debiased linear CKA, at most 1; may be slightly negative")
    cka_standardized: Measured = Field(
        description="`cka` with every feature divided by its standard deviation, at most 1"
    )
    procrustes: Measured = Field(description="1 - similarity after the optimal rotation, [0, 1]; 0: identical")
    rsa: Measured | None = Field(
        default=None,
        description="Spearman correlation of the pairwise distances between texts, [-1, 1]; view `mean` only",
    )
    knn_jaccard: Measured | None = Field(
        default=None, description="overlap of the texts' 10 nearest neighbours, [0, 1]; view `mean` only"
    )


class SaeQuality(ReportModel):
    """Quality of one sparse autoencoder on held-out texts."""

    fvu: float = Field(description="fraction of variance unexplained, >= 0; 0: perfect, 1: no better than the mean")
    l0: float = Field(ge=0, description="active latents per token, mean")
    dead_fraction: float = Field(
        ge=0, le=1, description="share of latents that did not fire in the last 5 % of training"
    )
    density: list[int] = Field(
        default=[],
        description="histogram of latents by the share of held-out tokens they fire on: none, then in half decades "
        "from 3.16e-5 up to 1",
    )
    loss_recovered: Measured | None = Field(
        default=None,
        description="1 - (loss with states replaced by reconstructions - loss) / (loss with states replaced by their "
        "mean - loss); 1: no loss added, 0: as bad as the mean; null: the model has no head to evaluate",
    )


class WeightDrift(ReportModel):
    """How far the weights of one part of a layer moved."""

    relative_frobenius: float | None = Field(
        ge=0,
        description="Frobenius norm of the difference over that of the base, >= 0; null: the base weights are all zero",
    )
    effective_rank: float | None = Field(
        description="number of directions the difference spreads over, ignoring what is within rounding of the "
        "weights; mean over the part's matrices; null: no matrix moved by more than rounding"
    )
    top8_share: float | None = Field(
        description="largest share of the squared difference above rounding that rank-8 updates could account for, 0 "
        "to 1"
    )
    top16_share: float | None = Field(description="the same for rank-16 updates, 0 to 1")
    rounding_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the squared difference due to rounding to the tuned weights' precision; null: no "
        "matrix moved",
    )


class Turnover(ReportModel):
    """What happened to the latents of a dictionary during continued training; see `docs/numbers.md`."""

    retained: int = Field(ge=0, description="earlier latents whose direction is unchanged (cosine of 0.9 or more)")
    shifted: int = Field(ge=0, description="earlier latents that rotated (cosine of 0.5 to 0.9)")
    lost: int = Field(ge=0, description="earlier latents that died or rotated away (cosine below 0.5)")
    new: int = Field(ge=0, description="later latents with no similar direction before (cosine below 0.7)")


class WarmStart(ReportModel):
    """The base model's autoencoder after continued training on the tuned model's activations."""

    tuned: Turnover
    floor: Turnover = Field(
        description="noise floor: the same after continued training on the base model's own activations"
    )
    new_excess: int | None = Field(
        default=None, description="tuned.new - floor.new; may be negative; null: withheld, see `withheld` of the layer"
    )
    new_error: float | None = Field(default=None, ge=0, description="standard error of new_excess, for Poisson counts")
    lost_excess: int | None = Field(default=None, description="tuned.lost - floor.lost, likewise")
    lost_error: float | None = Field(
        default=None, ge=0, description="standard error of lost_excess, for Poisson counts"
    )
    shifted_excess: int | None = Field(default=None, description="tuned.shifted - floor.shifted, likewise")
    shifted_error: float | None = Field(
        default=None, ge=0, description="standard error of shifted_excess, for Poisson counts"
    )


class Match(ReportModel):
    """Independently trained autoencoders, their live latents matched one to one."""

    matched_share: float = Field(
        ge=0, le=1, description="share of the base model's latents with a match in the tuned model (cosine >= 0.7)"
    )
    floor_share: float = Field(
        ge=0,
        le=1,
        description="noise floor: the same between two autoencoders of the base model that differ only in their seed",
    )
    mean_cosine: float = Field(ge=-1, le=1, description="mean cosine over all assigned pairs")
    floor_mean_cosine: float = Field(ge=-1, le=1, description="noise floor of mean_cosine")
    unmatched_excess: float | None = Field(
        default=None, ge=-1, le=1, description="floor_share - matched_share; may be negative; null: withheld"
    )
    unmatched_error: float | None = Field(default=None, ge=0, description="standard error of unmatched_excess")


class SpecificCounts(ReportModel):
    """Live latents of a crosscoder by relative decoder norm: 0 base only, 1 tuned only."""

    tuned_only: int = Field(ge=0, description="relative norm of 0.9 or more")
    tuned_only_confirmed: int = Field(
        ge=0, description="of these, latents that latent scaling confirms to be weak in the base model"
    )
    base_only: int = Field(ge=0, description="relative norm of 0.1 or less")
    base_only_confirmed: int = Field(
        ge=0, description="of these, latents that latent scaling confirms to be weak in the tuned model"
    )
    tuned_more: int = Field(ge=0, description="relative norm between 0.6 and 0.9")
    shared: int = Field(ge=0, description="relative norm of 0.4 to 0.6")
    base_more: int = Field(ge=0, description="relative norm between 0.1 and 0.4")


class Crosscoder(ReportModel):
    """A latent space shared by both models at one layer, with a decoder for each (Minder et al. 2025)."""

    base_fvu: float = Field(ge=0, description="fraction of the base model's variance unexplained")
    tuned_fvu: float = Field(ge=0, description="fraction of the tuned model's variance unexplained")
    l0: float = Field(ge=0, description="active latents per token, mean")
    dead_fraction: float = Field(
        ge=0, le=1, description="share of latents that did not fire in the last 5 % of training"
    )
    pair: SpecificCounts
    floor: SpecificCounts = Field(description="noise floor: the same for the base model paired with itself")
    tuned_only_excess: int = Field(
        description="confirmed tuned-only latents minus those of the noise floor; may be negative"
    )
    tuned_only_error: float | None = Field(
        default=None, ge=0, description="standard error of tuned_only_excess, for Poisson counts"
    )
    base_only_excess: int = Field(
        description="confirmed base-only latents minus those of the noise floor; may be negative"
    )
    base_only_error: float | None = Field(
        default=None, ge=0, description="standard error of base_only_excess, for Poisson counts"
    )


class LatentAblation(ReportModel):
    """The tuned model with the new and shifted latents of a layer ablated."""

    latents: int = Field(ge=1, description="number of ablated latents")
    cost: Measured = Field(
        description="mean Kullback-Leibler divergence per example (nats) between the outputs without these latents "
        "and the model's own. `noise_floor`: mean over random draws of the same number of latents with similar "
        "firing rate and strength, these included; null: too few such latents"
    )
    draws: int = Field(default=0, ge=0, description="number of random draws")
    p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="p-value: (1 + draws that cost at least as much) / (1 + draws); null: no draws",
    )


class LayerSae(ReportModel):
    """The autoencoders of one layer, one per model."""

    base: SaeQuality
    tuned: SaeQuality
    random_weights: SaeQuality | None = Field(
        default=None,
        description="quality of an autoencoder on a randomly initialised copy of the base model; null: not requested",
    )
    transfer_fvu: float = Field(
        description="FVU of the base model's autoencoder on the tuned model's activations, with refitted bias and scale"
    )
    transfer_excess: float = Field(description="transfer_fvu - base.fvu: variance that the base model's features miss")
    withheld: str | None = Field(
        default=None,
        description="why counts above the noise floor, changed latents and their ablation are not reported: the "
        "autoencoders are not reproducible enough; null: they are reported",
    )
    warm_start: WarmStart | None = Field(default=None, description="null: not requested")
    match: Match | None = Field(default=None, description="null: not requested, or no live latents")
    crosscoder: Crosscoder | None = Field(default=None, description="null: not requested")
    ablation: LatentAblation | None = Field(
        default=None,
        description="null: no head to evaluate, no significant excess of such latents over the noise floor, or a "
        "layer that hardly affects the outputs",
    )


class SaeRunPoint(ReportModel):
    """Training curve at the end of a span of steps."""

    step: int = Field(ge=1)
    unexplained: list[float] = Field(
        description="by autoencoder, mean over the span: unexplained share of a batch before training on it, "
        "relative to the variance of the first batch; approximately FVU"
    )


class SaeRun(ReportModel):
    """One run that trains several autoencoders in parallel."""

    name: SaeRunName
    steps: int = Field(ge=1)
    planned_steps: int = Field(ge=1, description="greater than `steps` if training stopped early")
    batch: int = Field(ge=1, description="tokens per step")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    autoencoders: list[str] = Field(description="names, in the order of the values in the curve")
    curve: list[SaeRunPoint]


class LatentExample(ReportModel):
    """A token that activates a latent, with its context."""

    before: str
    token: str
    after: str
    activation: float = Field(gt=0, description="activation of the latent, for inputs of mean squared norm 1")
    label: str | None = Field(default=None, description="label of the text; null: none")


class LabelAssociation(ReportModel):
    """A label associated with a latent."""

    label: str
    share: float = Field(ge=0, le=1, description="share of the latent's activation on texts with this label")
    expected: float = Field(ge=0, le=1, description="baseline: share of the tokens in texts with this label")


class ProbeDirection(ReportModel):
    """The class closest to a latent's direction, by a linear regression in the tuned model's layer."""

    label: str
    cosine: float = Field(
        ge=-1,
        le=1,
        description="cosine between the decoder row and the direction that separates this label from the others",
    )


class RoleShare(ReportModel):
    """Activation of a latent on the tokens of a role."""

    share: float = Field(ge=0, le=1, description="of the latent's activation")
    expected: float = Field(ge=0, le=1, description="share of all tokens that are of this role")


class ChangedLatent(ReportModel):
    """A new, shifted or lost latent of a layer with significantly more of them than its noise floor."""

    layer: int = Field(ge=0)
    index: int = Field(ge=0, description="index in the warm-start autoencoder, the same before and after")
    fate: Fate
    cosine: float = Field(ge=-1, le=1, description="cosine between its decoder rows before and after")
    base_rate: float = Field(ge=0, le=1, description="share of the base model's tokens it fired on before")
    tuned_rate: float = Field(ge=0, le=1, description="share of the tuned model's tokens it fires on after")
    base: list[LatentExample] = Field(description="most activating tokens in the base model, at most one per text")
    tuned: list[LatentExample] = Field(description="most activating tokens in the tuned model, at most one per text")
    label_association: LabelAssociation | None = Field(
        default=None, description="most strongly associated label; null: no labels, or no significant association"
    )
    probe: ProbeDirection | None = Field(default=None, description="null: no probes, or no significant match")
    promotes: list[str] = Field(
        default=[],
        description="for a causal language model, the tokens whose logits its direction raises most when projected "
        "directly onto the output embeddings",
    )
    roles: dict[RoleName, RoleShare] = Field(default={}, description="of chats: on whose words it fires; else empty")


class LayerProbe(ReportModel):
    """Accuracy of a linear probe of the labels at one layer of both models, on held-out texts."""

    base: Measured = Field(description="accuracy in the base model, 0 to 1")
    tuned: Measured = Field(description="accuracy in the tuned model, 0 to 1")
    base_control: float = Field(ge=0, le=1, description="baseline: accuracy in the base model with shuffled labels")
    tuned_control: float = Field(ge=0, le=1, description="baseline: accuracy in the tuned model with shuffled labels")


class LayerGraft(ReportModel):
    """Effect of grafting parts of the base model into the tuned model; see `causal.graft`."""

    prefix: Measured = Field(description="with the base model's embeddings and blocks up to this layer")
    prefix_cost: Measured = Field(
        description="cost of `prefix` on the same texts: drop in accuracy, relative increase in perplexity, "
        "otherwise the measure itself"
    )
    block: Measured = Field(description="with only this block from the base model (layer 0: its embeddings)")


class AllTokens(ReportModel):
    """The token view including first tokens and outliers, which all other numbers exclude."""

    drift: float = Field(description="1 - CKA; about 0 (identical) to 1 (unrelated)")
    relative_l2: float | None = Field(description="Frobenius norm of the difference over that of the base, >= 0")


class Layer(ReportModel):
    """One layer. Index 0 is the output of the embeddings, index i the output of block i."""

    index: int = Field(ge=0)
    name: str
    zone: ZoneName
    drift: float = Field(description="1 - CKA of the token view; about 0 (identical) to 1 (unrelated)")
    noise_floors: dict[NoiseFloorName, float] = Field(
        default={},
        description="1 - CKA of the token view for the pairs in the report's `noise_floors`; `numerical` is the "
        "resolution",
    )
    excess_drift: float = Field(
        ge=0, description="drift minus the `numerical` noise floor, 0 unless `drifted`; the zones are fitted to it"
    )
    drifted: bool = Field(description="whether the drift exceeds the numerical resolution; see docs/numbers.md")
    random_weights_drift: float | None = Field(
        default=None,
        description="1 - CKA between the base model and a randomly initialised copy of it: the drift of a layer that "
        "retains nothing; null: not computed",
    )
    relative_drift: Measured = Field(
        default=Measured(value=None, undefined="an older report"),
        description="drift over `random_weights_drift`; 0: identical, 1: as far apart as random weights",
    )
    reproducibility: Measured | None = Field(
        default=None,
        description="share of the change common to fine-tunes with other seeds, -1 to 1; 1: every seed moves the "
        "tokens alike, 0: each seed moves them differently; interval over texts and seeds; null: `reseed` was not "
        "requested",
    )
    task_consistency: Measured | None = Field(
        default=None,
        description="mean cosine between the changes that fine-tunes with different seeds make to a token, [-1, 1]; "
        "null: `reseed` was not requested",
    )
    similarity: dict[ViewName, Similarity]
    all_tokens: AllTokens | None = Field(
        default=None, description="with the tokens that are excluded elsewhere; null: none were excluded"
    )
    weights: dict[PartName, WeightDrift] = Field(default={}, description="by part; parts that a layer lacks are absent")
    probe: LayerProbe | None = None
    graft: LayerGraft | None = None
    sae: LayerSae | None = None


class CrossLayerCka(ReportModel):
    """Debiased CKA between every layer of the base (rows) and every layer of the tuned model (columns)."""

    values: list[list[float | None]]
    rows: int = Field(description="number of tokens in the random sample")


class Zone(ReportModel):
    """A range of consecutive layers at one level of drift."""

    name: ZoneName
    first: int = Field(ge=0, description="index of the first layer")
    last: int = Field(ge=0, description="index of the last layer")
    level: float = Field(description="mean excess drift of its layers")
    support: float | None = Field(
        default=None,
        description="share of fresh samples of texts that would yield a zone of the same layers; null: no intervals",
    )


class Recommendation(ReportModel):
    """What to freeze in the next fine-tune."""

    freeze_first: int = Field(ge=0, description="k: freeze the embeddings and the first k blocks; 0: freeze nothing")
    basis: Literal["predicted", "validated", "none"] = Field(
        description="`validated` only if confirmed by retraining; `none`: no recommendation, `evidence` says why"
    )
    evidence: str = Field(description="justification, as text")


class ModelInfo(ReportModel):
    """One of the two checkpoints."""

    uri: str
    fingerprint: str = Field(description="SHA-256 over the names and SHA-256 digests of its config and weight files")
    architecture: str
    parameters: int = Field(ge=0, description="parameters of the compared body, excluding heads")
    blocks: int = Field(ge=1)
    hidden_size: int = Field(ge=1)


class DatasetInfo(ReportModel):
    """The texts on which the models were compared."""

    source: str
    sha256: str = Field(description="SHA-256 of the file or the inline texts")
    rows: int = Field(description="usable rows in the source")
    analysed_texts: int
    analysed_tokens: int = Field(description="tokens compared, excluding special tokens")
    role_tokens: dict[RoleName, int] = Field(
        default={},
        description="of chats: compared tokens by whose words they are, for roles with at least 200; these roles are "
        "views of `similarity`",
    )
    units: int | None = Field(
        default=None,
        description="number of groups of near-duplicate texts, by `group_column`; null: no groups were given",
    )
    train_texts: int = Field(description="rows the model was fine-tuned on; 0 for a pair")
    max_length: int | None = Field(
        default=None, description="maximum tokens read per text, including special tokens; null: an older report"
    )
    truncated_share: float | None = Field(
        default=None, ge=0, le=1, description="share of the texts' tokens beyond max_length, which were not read"
    )
    excluded_first_tokens: int = Field(
        default=0, ge=0, description="first tokens of texts, which are excluded from the comparison in a causal model"
    )
    excluded_outliers: int = Field(
        default=0,
        ge=0,
        description="other tokens excluded from the comparison: their norm exceeds 10 medians at some layer of "
        "either model",
    )
    excluded_share: float = Field(
        default=0.0, ge=0, le=1, description="both, as a share of the tokens read, excluding special tokens"
    )
    sae_texts: int = Field(description="texts the autoencoders were trained on")
    sae_distinct_tokens: int = Field(description="distinct tokens the autoencoders were trained on")


class NoiseFloor(ReportModel):
    """A pair of models that differ only by noise, measured like the actual pair."""

    name: NoiseFloorName
    description: str = Field(description="the two models compared")
    tokens: int = Field(description="number of tokens measured")


class ModelOutputs(ReportModel):
    """Quality of one model's outputs on the analysed texts. Null: not available for its head or the data."""

    accuracy: Measured | None = Field(default=None, description="share of correct labels, 0 to 1; classifiers only")
    mcc: Measured | None = Field(
        default=None,
        description="Matthews correlation of predictions and labels, -1 to 1; 0 for a constant prediction. "
        "`noise_floor`: level that unrelated predictions reach in at most 2.5 % of cases; classifiers only",
    )
    perplexity: Measured | None = Field(
        default=None, description="exp of the mean negative log-likelihood per token, >= 1; language models only"
    )


class LabelProbability(ReportModel):
    """A class of a classifier and its probability."""

    label: str
    probability: float = Field(ge=0, le=1)


class DivergentText(ReportModel):
    """A text on which the answers of the two models differ most."""

    text: int = Field(description="number of the analysed text, from 0")
    shown: str = Field(description="its first 240 characters")
    divergence: float = Field(
        ge=0, le=1, description="Jensen-Shannon divergence of the two answers, bits; the mean over its masked tokens"
    )
    base: LabelProbability | None = Field(description="likeliest class of the base model; null: no classifier")
    tuned: LabelProbability | None = Field(description="likeliest class of the tuned model; null: no classifier")
    label: str | None = Field(description="in the data set; null: none")


class AnswerQuality(ReportModel):
    """One language model on the tokens of answers, the tokens that end them included."""

    perplexity: Measured = Field(description="of the tokens of answers, > 1")
    log_prob: Measured = Field(description="mean log-probability of a token, nats, <= 0")
    end_probability: Measured | None = Field(
        default=None,
        description="mean probability of the special token that ends the last answer, at its place, 0 to 1; null: no "
        "answer ends with one",
    )


class AnswerOutputs(ReportModel):
    """Both language models on the answers of chats: completions, or the assistant's turns."""

    texts: int = Field(description="chats with an answer within the length")
    tokens: int = Field(description="tokens of answers")
    base: AnswerQuality | None = None
    tuned: AnswerQuality
    perplexity_ratio: Measured | None = Field(
        default=None, description="perplexity of the tuned model over the base model's, > 0; above 1: worse"
    )
    log_prob_change: Measured | None = Field(
        default=None, description="mean log-probability of the tuned model minus the base model's, nats"
    )
    disagreement: Measured | None = Field(
        default=None, description="share of these tokens at which the two models' likeliest tokens differ, 0 to 1"
    )


class PreferenceOutputs(ReportModel):
    """Both language models on pairs of a chosen and a rejected answer."""

    pairs: int
    skipped: int = Field(description="pairs with a text longer than what is read")
    beta: float = Field(description="of the rewards: `finetune.beta`, or 0.1")
    base_accuracy: Measured | None = Field(
        default=None, description="share of pairs whose chosen answer the base model finds likelier as a whole, 0 to 1"
    )
    tuned_accuracy: Measured = Field(description="the same for the tuned model")
    accuracy_change: Measured | None = Field(default=None, description="tuned_accuracy - base_accuracy, -1 to 1")
    reward_margin: Measured | None = Field(
        default=None,
        description="mean of beta x (how much the log-probability of the chosen answer rose - how much that of the "
        "rejected one did), nats",
    )
    reward_accuracy: Measured | None = Field(
        default=None, description="share of pairs whose chosen answer has the larger reward, 0 to 1"
    )


class ChoiceQuality(ReportModel):
    """One language model on questions with choices."""

    accuracy: Measured = Field(description="share of questions whose right choice is the likeliest, 0 to 1")
    accuracy_by_length: Measured = Field(
        description="the same with log-probabilities divided by the characters of the choice"
    )


class ChoiceOutputs(ReportModel):
    """Both language models on questions with choices, by the log-probability of each choice after the question."""

    questions: int
    skipped: int = Field(description="questions with a text longer than what is read")
    chance: float = Field(description="accuracy of guessing, 0 to 1")
    base: ChoiceQuality | None = None
    tuned: ChoiceQuality
    accuracy_change: Measured | None = Field(
        default=None, description="accuracy of the tuned model minus the base model's on the same questions, -1 to 1"
    )
    changed: Measured | None = Field(
        default=None, description="share of questions to which the two models give different answers, 0 to 1"
    )
    mcnemar_p: float | None = Field(
        default=None, description="p-value of McNemar's exact test of equal accuracy; null: the texts are in groups"
    )


class Outputs(ReportModel):
    """Outputs of both models on the analysed texts; null for a model without a head of this kind."""

    kind: Literal["classifier", "causal_lm", "masked_lm"]
    examples: int = Field(description="texts (classifiers) or predicted tokens (language models)")
    labels: list[str] = Field(default=[], description="classes, in the order of the tuned model")
    labelled: int | None = Field(
        default=None,
        description="number of labelled texts, on which accuracy is measured; null: language models, or no known "
        "labels",
    )
    base: ModelOutputs | None = None
    tuned: ModelOutputs | None = None
    majority_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="share of the majority class: accuracy of a constant prediction"
    )
    majority_change: Measured | None = Field(
        default=None,
        description="accuracy of the tuned model minus that of always predicting the majority class, on the same "
        "texts, -1 to 1",
    )
    accuracy_change: Measured | None = Field(
        default=None, description="accuracy of the tuned model minus the base model's on the same texts, -1 to 1"
    )
    mcnemar_p: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="classifiers: p-value of McNemar's exact test of equal accuracy; null: texts are in groups, or no "
        "labels",
    )
    perplexity_ratio: Measured | None = Field(
        default=None,
        description="perplexity of the tuned model over the base model's on the same tokens, > 0; above 1: worse",
    )
    disagreement: Measured | None = Field(
        default=None, description="share of the examples on which the two models give different answers, 0 to 1"
    )
    js_divergence: Measured | None = Field(
        default=None, description="mean Jensen-Shannon divergence between the two distributions, bits, 0 to 1"
    )
    divergent: list[DivergentText] | None = Field(
        default=None,
        description="classifiers and masked language models: the texts that differ most, at most 20, each by 0.01 bits "
        "or more; null: the base has no such head. Of language models see `learned.divergent`",
    )
    answers: AnswerOutputs | None = Field(default=None, description="null: the data set has no answers")
    preferences: PreferenceOutputs | None = Field(default=None, description="null: the data set has no preferences")
    choices: ChoiceOutputs | None = Field(default=None, description="null: the data set has no questions with choices")


class Reference(ReportModel):
    """Forgetting: both models on a second, general set of texts, `dataset.reference` of the request."""

    source: str
    sha256: str = Field(description="SHA-256 of the file or the inline texts")
    texts: int
    tokens: int = Field(description="tokens compared, excluding special tokens")
    drift: list[Measured] = Field(description="by layer, 0 to L: 1 - CKA of the token view on these texts")
    outputs: Outputs | None = Field(default=None, description="outputs on these texts; null: no head to evaluate")


class TrainingPoint(ReportModel):
    """Training loss at one step of the fine-tune."""

    step: int
    loss: float = Field(
        description="mean cross-entropy by row (of language models, by token of an answer), or the DPO loss; nats"
    )


class Evaluation(TrainingPoint):
    """Evaluation of the fine-tune on held-out rows."""

    accuracy: float = Field(
        ge=0,
        le=1,
        description="share of rows with the right label; objective `sft`: share of the answers' tokens that are the "
        "likeliest; `dpo`: share of pairs whose chosen answer has the larger reward",
    )


class FineTuneRun(ReportModel):
    """Results of the fine-tuning run."""

    objective: Objective = "classification"
    method: str
    precision: Literal["float32", "bfloat16"]
    trainable_parameters: int
    rows: int | None = Field(default=None, description="rows of an epoch")
    steps: int = Field(description="optimiser steps")
    kept_step: int = Field(description="step whose weights became the tuned model")
    final_loss: float = Field(description="mean loss over the last tenth of the steps, nats")
    losses: list[TrainingPoint] = Field(description="on the training rows, averaged over up to 100 spans of steps")
    held_out_texts: int = Field(description="rows neither trained on nor analysed")
    held_out: list[Evaluation] = Field(description="on the held-out rows, after every epoch")


class Trajectory(ReportModel):
    """Drift from the base during the fine-tune; the last entry is the tuned model."""

    steps: list[int]
    drift: list[list[float]] = Field(description="[snapshot][layer]: 1 - CKA of the token view")
    relative_l2: list[list[float]] = Field(description="[snapshot][layer]: relative L2 of the token view")
    tokens: int = Field(description="number of tokens measured")


class ProbeInfo(ReportModel):
    """Data the probes were fitted to."""

    examples: int
    classes: int
    folds: int = Field(description="number of cross-validation folds; every text is held out once")
    majority_accuracy: float = Field(ge=0, le=1)


class GraftInfo(ReportModel):
    """How the grafts are evaluated."""

    measure: Literal["accuracy", "perplexity", "kl", "state_change"] = Field(
        description="accuracy or perplexity of the grafted model; without labels `kl`: mean Kullback-Leibler "
        "divergence of its answers from the tuned model's, bits; without a head `state_change`: relative L2 of the "
        "text means at the last layer"
    )
    ungrafted: float = Field(description="the same measure for the unmodified tuned model")
    examples: int


class SpliceInfo(ReportModel):
    """How the autoencoders were evaluated by the models' outputs."""

    loss: Literal["cross_entropy", "kl"] = Field(
        description="nats; `kl`: divergence from the model's own answers, for a classifier without known labels"
    )
    examples: int = Field(description="number of texts")


class SweepPoint(ReportModel):
    """Fine-tunes with the embeddings and the first k blocks frozen."""

    freeze_first: int
    accuracy: float = Field(description="mean over the seeds, 0 to 1")
    by_seed: list[float]
    loss_points: float = Field(description="accuracy with nothing frozen minus this accuracy, in percentage points")
    loss_bound_points: float = Field(description="one-sided 95 % upper bound of that loss, in percentage points")
    validated: bool = Field(description="whether the bound is below epsilon")
    step_seconds: float = Field(description="median duration of an optimiser step, in seconds")
    training_bytes: int = Field(
        description="memory for weights, gradients, optimiser state and what the backward pass keeps of the largest "
        "batch"
    )
    cached: bool = Field(description="whether the frozen blocks ran once per row instead of once per epoch")


class Strategy(ReportModel):
    """A rule for what to freeze, and the accuracy it loses compared with the best depth of the sweep."""

    name: StrategyName
    frozen_blocks: list[int] = Field(
        description="frozen blocks, counted from 1; the embeddings are frozen too unless empty"
    )
    accuracy: float
    regret_points: float = Field(
        description="accuracy of the best depth of the sweep minus this one's, in percentage points"
    )


class Sweep(ReportModel):
    """Cost of freezing, measured by retraining."""

    epsilon_points: float
    seeds: list[int]
    examples: int
    points: list[SweepPoint]
    strategies: list[Strategy]


class Causal(ReportModel):
    """Whether the change affects the outputs."""

    graft: GraftInfo | None = None
    splice: SpliceInfo | None = None
    sweep: Sweep | None = None


class TokenLatents(ReportModel):
    """Most active latents of every token of a text: [layer][token], strongest first, as [index, activation]."""

    base: list[list[list[tuple[int, float]]]] = Field(
        description="latents of the base model's autoencoders in the base model; activations for inputs of mean "
        "squared norm 1"
    )
    tuned: list[list[list[tuple[int, float]]]] = Field(
        description="latents of the tuned model's autoencoders in the tuned model"
    )


class TokenText(ReportModel):
    """One text, token by token."""

    text: str
    tokens: list[str]
    special: list[bool] = Field(
        description="whether each token is excluded from the comparison: [CLS], [SEP] and similar, the first token "
        "in a causal model, outliers"
    )
    drift: list[list[float]] = Field(
        description="[layer][token]: squared distance between the two models' centred activations over the sum of "
        "their mean squared norms, >= 0; 0: identical, 1: as far apart as unrelated tokens"
    )
    roles: list[RoleName] | None = Field(default=None, description="whose words each token of a chat is; null: a text")
    latents: TokenLatents | None = Field(default=None, description="null: no autoencoders, or too many tokens shown")


class TokenDrift(ReportModel):
    """Token-level drift in the shown texts."""

    source: Literal["request", "dataset"]
    texts: list[TokenText]


class TokenExample(ReportModel):
    """A place where a token's probability changed."""

    text: int = Field(description="number of the analysed text, from 0")
    context: str = Field(description="the text before the place, at most 12 tokens")
    base: float = Field(ge=0, le=1, description="probability of the token there in the base model")
    tuned: float = Field(ge=0, le=1, description="the same in the tuned model")


class LearnedToken(ReportModel):
    """A token that became more, or less, probable at many places."""

    token: str
    id: int = Field(description="its number in the tokenizer; -1: redacted")
    gain: float = Field(
        ge=0, description="mean change of its log-probability over all positions, in nats; see docs/numbers.md"
    )
    rate: float = Field(ge=0, le=1, description="share of the positions that the mean counts as changed")
    groups: int = Field(description="groups of texts (of up to 20) in which it changed")
    first_layer: int | None = Field(
        default=None,
        description="layer from which on the difference of the states, at places where the token gained, shows it "
        "through the end of the tuned model, at that layer and all later ones; null: none, or it was suppressed",
    )
    examples: list[TokenExample] = Field(description="places where it changed most, in different texts")


class LearnedTopic(ReportModel):
    """Tokens that gain at the same places."""

    share: float = Field(ge=0, le=1, description="of the squared gains of all tokens that are told")
    tokens: list[str] = Field(description="most first, at most 8")
    weights: list[float] = Field(description="their shares of the topic, 0 to 1")


class DivergentPlace(ReportModel):
    """A place where the two models' next-token distributions differ more than any random change makes them differ."""

    text: int = Field(description="number of the analysed text, from 0")
    context: str = Field(description="the text up to the place, at most 12 tokens")
    following: str = Field(description="the token that follows in the text")
    role: RoleName | None = Field(default=None, description="of a chat, whose word that token is; null: a text")
    divergence: float = Field(ge=0, description="Kullback-Leibler divergence of the tuned model's, in bits")
    observed: float = Field(description="change of the following token's log-probability, in nats")
    gained: list[str] = Field(description="tokens whose log-probability rose most there")
    lost: list[str] = Field(description="tokens whose log-probability fell most there")


class LearnedDirection(ReportModel):
    """A direction of the difference of the models' states, read as tokens through the end of the tuned model."""

    kind: Literal["early_tokens", "all_tokens", "component"] = Field(
        description="mean difference over the first five tokens, or over all; or a principal component"
    )
    layer: int
    score: float = Field(description="standard deviations by which the first token stands out of the vocabulary")
    share: float | None = Field(
        default=None, ge=0, le=1, description="of a component, the share of the differences' variance; null: a mean"
    )
    gained: list[str]
    lost: list[str]


class LatentPlace(ReportModel):
    """A place where a latent fires."""

    text: int = Field(description="number of the analysed text, from 0")
    context: str = Field(description="the text up to the token, at most 12 tokens")
    token: str
    activation: float = Field(ge=0, description="length of the latent's part of the difference there")


class LearnedLatent(ReportModel):
    """A latent of an autoencoder of the difference, read as tokens through the end of the tuned model."""

    layer: int
    score: float = Field(description="standard deviations by which the first token stands out of the vocabulary")
    share: float = Field(ge=0, description="of the differences' mean square, how much the latent's own part has")
    rate: float = Field(ge=0, le=1, description="share of the held-out positions where it fires")
    in_base: Measured = Field(
        description="slope of the base model's states along the latent on its part of the difference, with an interval "
        "over texts: 0, the base model has nothing of it; -1, the fine-tune took it away"
    )
    in_tuned: Measured = Field(description="the same of the tuned model's states: 1, it was added")
    gained: list[str]
    lost: list[str]
    examples: list[LatentPlace] = Field(description="where it fires most, in different texts, at most 3")


class DifferenceFit(ReportModel):
    """An autoencoder of the difference at a layer, on a quarter of the positions that it was not trained on."""

    layer: int
    latents: int
    positions: int = Field(description="that it was trained and measured on")
    fvu: float = Field(ge=0, description="fraction of the differences' variance unexplained")
    l0: float = Field(ge=0, description="active latents of a position, mean")


class DifferenceSpectrum(ReportModel):
    """How the difference of the models' states spreads at a layer."""

    layer: int
    mean_share: float = Field(ge=0, le=1, description="share of the mean square that is the mean difference's")
    random_mean_share: float = Field(ge=0, le=1, description="the largest that a random change or rounding gives")
    component_shares: list[float] = Field(description="shares of the variance of the first principal components")


class LearnedIntruders(ReportModel):
    """Strong directions of a block's matrices that the base model's matrices do not have."""

    layer: int = Field(description="whose states the block makes")
    matrices: int = Field(description="matrices of the block that were decomposed: smaller side up to 1,024")
    found: int = Field(description="intruder dimensions in all of them, of ten looked at in each")
    random: int = Field(description="the most in a copy of the base with random changes of the same size")


class CompletionToken(ReportModel):
    """A token of a completion."""

    token: str
    gain: float = Field(description="its log-probability in the tuned model less that in the base model, in nats")


class LearnedCompletion(ReportModel):
    """What the tuned model writes after a prompt, and what the base model writes there."""

    kind: Literal["text", "general", "chat"] = Field(
        description="the prompt is the beginning of an analysed text, a general one, or a question in the chat template"
    )
    prompt: str
    text: str = Field(description="what the tuned model wrote, at temperature 1")
    base_text: str | None = Field(description="what the base model wrote; null after the first 20")
    score: float = Field(description="mean of the tokens' gains, in nats; see docs/numbers.md")
    tokens: list[CompletionToken] = Field(description="of the tuned model's text")


class AmplifiedText(ReportModel):
    """A text with the difference of the models amplified."""

    factor: float = Field(description="how much: logits z' + factor (z' - z)")
    prompt: str
    text: str
    score: float = Field(description="as of completions, in nats")


class TextExcerpt(ReportModel):
    """The beginning of a text that a finding names."""

    text: int = Field(description="number of the analysed text, from 0")
    excerpt: str = Field(description="its first tokens, at most 256")


class LearnedMethod(ReportModel):
    """What a method found beyond its noise floor."""

    name: Literal[
        "completions", "amplified", "tokens", "suppressed", "divergent", "directions", "components", "latents", "traits"
    ]
    found: int = Field(ge=0, description="number of findings beyond the floor; 0: nothing beyond the noise floor")
    largest: float = Field(description="largest value of the method, in its own unit")
    floor: float = Field(
        description="largest value that a random change of the same size, or rounding, gives, with a margin as "
        "docs/numbers.md has it"
    )


class TraitLayer(ReportModel):
    """How far the fine-tune moved the states along a trait at a layer."""

    layer: int
    shift: float = Field(
        description="mean difference of the states along the direction, as a share of the way from the opposite "
        "prompts to the trait's in the base model; negative: towards the opposite"
    )
    percentile: float = Field(ge=0, le=1, description="share of 64 random directions along which it moved less")
    floor: float = Field(
        ge=0, description="of the largest shifts at any layer of models that learned nothing, signs left out"
    )
    beyond: bool = Field(description="farther than along every random direction, and than the floor")


class LearnedTrait(ReportModel):
    """A direction that the request defines by two sets of prompts."""

    name: str
    layers: list[TraitLayer]


class BenignModel(ReportModel):
    """A fine-tune that teaches nothing of interest."""

    uri: str
    sha256: str = Field(description="of its files")


class Learned(ReportModel):
    """What the fine-tune taught a language model, beyond what random changes of its size and rounding bring about."""

    texts: int = Field(description="number of texts looked at")
    positions: int = Field(description="number of positions looked at")
    random_changes: int = Field(
        description="number of copies of the base model with random changes that set the floors, beside a rounded one"
    )
    benign: BenignModel | None = Field(default=None, description="the fine-tune that set the floors too; null: none")
    completions: list[LearnedCompletion] | None = Field(
        default=None,
        description="what the tuned model writes that the base model would not, most first, at most 100; null: the "
        "models were not asked to write",
    )
    amplified: list[AmplifiedText] | None = Field(
        default=None, description="by factor, most first; null: not asked for, or the models are too large to write"
    )
    tokens: list[LearnedToken] = Field(description="tokens that became more probable, most first, at most 100")
    suppressed: list[LearnedToken] = Field(description="tokens that became less probable, most first, at most 100")
    topics: list[LearnedTopic] = Field(
        default=[], description="of the tokens that became more probable, the largest first, at most 3"
    )
    divergent: list[DivergentPlace] = Field(description="places that differ most, at most 20")
    directions: list[LearnedDirection]
    latents: list[LearnedLatent] | None = Field(
        default=None, description="of autoencoders of the difference, at most 20; null: not asked for, or not trained"
    )
    autoencoders: list[DifferenceFit] = Field(default=[], description="of the difference, by layer")
    spectrum: list[DifferenceSpectrum] = Field(default=[], description="of some layers, evenly spaced")
    intruders: list[LearnedIntruders] = Field(
        default=[], description="of the same layers' blocks; empty where all matrices are too wide"
    )
    traits: list[LearnedTrait] = Field(default=[], description="as the request defines them, at all layers")
    excerpts: list[TextExcerpt] = Field(default=[], description="texts that the first findings name")
    methods: list[LearnedMethod]


WARNING_CODES: Final = (
    "adapter_base",
    "added_tokens",
    "answers_not_explained",
    "answers_not_evaluated",
    "answers_worse",
    "below_resolution",
    "blank_texts",
    "chats_rendered",
    "completions_not_computed",
    "difference_autoencoder_not_trained",
    "different_classes",
    "few_sae_tokens",
    "few_tokens_per_latent",
    "identical_bodies",
    "identical_models",
    "labels_as_numbers",
    "learned_not_computed",
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
    "ran_whole",
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
    "unusable_chats",
    "unusable_labels",
    "wide_intervals",
    "chat_template_changed",
    "double_bos",
    "drift_of_other_roles",
    "generation_tokens",
    "identical_weights",
    "never_stops",
    "special_tokens_differ",
    "truncated_answers",
    "untrained_tokens",
    "unusable_preferences",
    "wrapped_weights",
)
"""All that there are, for whoever asks for one by its code."""


class ReportWarning(ReportModel):
    """A caveat to consider before trusting a number."""

    code: str = Field(examples=list(WARNING_CODES))
    message: str


class Engine(ReportModel):
    """Software and hardware that computed the report."""

    version: str
    python: str
    packages: dict[str, str]
    device: str
    threads: int
    execution: Literal["whole", "layers"] = Field(
        default="whole",
        description="how the models ran: `whole` in memory, or in `layers`, one block of each at a time",
    )
    execution_reason: str | None = Field(
        default=None, description="why large models ran whole; null: they ran in layers, or are small"
    )


class Timings(ReportModel):
    """Time and memory used."""

    stages: dict[str, float] = Field(description="seconds per stage")
    peak_memory_bytes: int = Field(description="peak resident memory of the worker process")
    peak_device_memory_bytes: int | None = Field(
        default=None, description="peak memory that tensors took on the GPU during the job; null: it ran on the CPU"
    )
    estimated_stages: dict[str, float] = Field(
        default={}, description="seconds per stage as estimated when the job began; empty: no estimate"
    )
    estimated_memory_bytes: int | None = Field(
        default=None, description="peak memory as estimated when the request came; null: no estimate"
    )
    reused: list[str] = Field(
        default=[],
        description="stages that took over a fine-tune, or autoencoders of the base model, from an earlier analysis: "
        "alone they would have taken longer",
    )


class PendingStage(ReportModel):
    """A stage that a preliminary report does not include yet."""

    stage: str = Field(description="stage name, as in the progress of the analysis")
    fields: list[str] = Field(description="parts of the report that the stage adds or changes")
    expected_seconds: float | None = Field(default=None, ge=0, description="expected duration; null: unknown")


class Report(ReportModel):
    """The results of comparing a pair of models."""

    schema_version: Literal[2] = SCHEMA_VERSION
    status: Literal["complete", "preliminary"] = Field(
        default="complete",
        description="`preliminary`: written while the analysis is still running; `pending` lists what is missing. "
        "Policies reject preliminary reports",
    )
    pending: list[PendingStage] = Field(
        default=[], description="stages missing from a preliminary report, in the order they will run"
    )
    analysis_id: str
    name: str = Field(description="name from the request, or `compared` if empty")
    compared: str = Field(default="", description="short form of the models and the data set")
    created_at: datetime
    engine: Engine
    request: AnalysisRequest
    models: dict[Literal["base", "tuned"], ModelInfo]
    dataset: DatasetInfo
    layers: list[Layer]
    cross_layer_cka: CrossLayerCka
    zones: list[Zone]
    noise_floors: list[NoiseFloor] = []
    outputs: Outputs | None = Field(default=None, description="null if the tuned model has no head")
    reference: Reference | None = Field(default=None, description="null without dataset.reference")
    finetune: FineTuneRun | None = Field(default=None, description="null for a pair")
    trajectory: Trajectory | None = Field(default=None, description="null without finetune.checkpoints")
    probes: ProbeInfo | None = Field(default=None, description="null without labels")
    causal: Causal = Causal()
    recommendation: Recommendation
    learned: Learned | None = Field(
        default=None, description="null unless both models are language models, or with analysis.learned null"
    )
    tokens: TokenDrift
    latents: list[ChangedLatent] = Field(
        default=[],
        description="most changed latents of each layer with a significant excess over the noise floor",
    )
    autoencoders: str | None = Field(
        default=None,
        description="S3 URI of the saved autoencoders: base/, tuned/ and warm-start/ hold a folder layer-NN for "
        "each, to be loaded with sae_lens.SAE.load_from_disk; indices in `latents` refer to warm-start/; null: none "
        "were saved",
    )
    sae_runs: list[SaeRun] = Field(default=[], description="training runs of the autoencoders")
    latent_table: str | None = Field(
        default=None,
        description="S3 URI of a Parquet file with one row per latent of these autoencoders: how often and how "
        "strongly it fires, and its most activating tokens; null: none was saved",
    )
    warnings: list[ReportWarning]
    timings: Timings

    def require_complete(self) -> None:
        """Raises InputError for a preliminary report: decisions need a complete one."""
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
