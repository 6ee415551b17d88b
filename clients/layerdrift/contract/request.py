"""What a client asks for: the body of POST /v1/analyses. Unknown fields are refused; every default stands here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from layerdrift.contract.plain import Plain
from layerdrift.contract.renamed import with_current_names

MAX_TEXTS_SHOWN = 200
MAX_TEXT_CHARACTERS = 10_000
MAX_INLINE_TEXTS = 2_000
MIN_EXAMPLES = 20
"""Fewer analysed texts than this say nothing about similarity."""

NoiseFloorName = Literal["numerical", "reseed", "label_shuffle"]
Label = str | int
TagName = Annotated[Plain, Field(min_length=1, max_length=100)]
TagValue = Annotated[Plain, Field(max_length=500)]
InlineText = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARACTERS)]


_SURROGATE = re.compile("[\ud800-\udfff]")


def _strings(value: object) -> Iterator[str]:
    """Every string of a JSON document, keys included."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one


def _short(uri: str) -> str:
    """The last part of a URI that says something: a folder, a file, or a registry's name and version."""
    scheme, separator, rest = uri.partition("://")
    path = (rest if separator else uri.removeprefix("file:")).rstrip("/")
    if scheme == "mlflow":
        return path
    if scheme == "upload":
        return f"upload {path[:10]}…"
    return path.rsplit("/", 1)[-1] or uri


class RequestModel(BaseModel):
    """Base of every part of a request: strict about names, immutable, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelRef(RequestModel):
    """A checkpoint: a folder in transformers' layout with config.json and safetensors weights.

    A tuned one may be a PEFT adapter of the base: adapter_config.json and adapter_model.safetensors.
    """

    uri: Plain = Field(
        min_length=1,
        max_length=2_000,
        description="`file:///folder` under one of the service's model roots, `s3://bucket/prefix/`, "
        "`hf://owner/name@revision`, `mlflow://name/version` or `mlflow://name@alias`, or `upload://id` of a zip",
        examples=["s3://models/reviews-v7/"],
    )


class InlineData(RequestModel):
    """A small data set inside the request."""

    texts: list[InlineText] = Field(min_length=1, max_length=MAX_INLINE_TEXTS, description="the texts")
    labels: list[Label] | None = Field(
        default=None, max_length=MAX_INLINE_TEXTS, description="one label for each text; needed to fine-tune"
    )
    pairs: list[InlineText] | None = Field(
        default=None,
        max_length=MAX_INLINE_TEXTS,
        description="the second text of each pair, for models that read two; null: single texts",
    )
    groups: list[Label] | None = Field(
        default=None,
        max_length=MAX_INLINE_TEXTS,
        description="a name for each text; texts of one name are nearly the same, and count as one unit",
    )

    @model_validator(mode="after")
    def _one_for_each_text(self) -> Self:
        for name, one, items in (
            ("labels", "label", self.labels),
            ("pairs", "second text", self.pairs),
            ("groups", "group", self.groups),
        ):
            if items is not None and len(items) != len(self.texts):
                raise ValueError(f"{len(self.texts)} texts but {len(items)} {name}; give one {one} for each text")
        return self


class TextsRef(RequestModel):
    """Where texts come from, and which columns they are in. Exactly one of `uri` and `inline`."""

    uri: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=2_000,
        description="`file:`, `s3:` or `upload:` URI of a .csv, .tsv, .jsonl, .ndjson, .json, .txt or .parquet file: "
        "CSV (commas, semicolons, tabs or |) and TSV with a header, a JSON array of objects, plain text, a text "
        "a line. UTF-8, or UTF-16 and UTF-32 with a byte order mark; .gz, .bz2 and .xz after the suffix are expanded",
        examples=["s3://data/reviews.csv"],
    )
    inline: InlineData | None = Field(default=None, description="the data themselves")
    text_column: Plain = Field(
        default="text",
        min_length=1,
        max_length=500,
        description="column or key that holds the text; `data.text` also reads the key `text` inside `data`",
    )
    text_pair_column: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="column or key that holds the second text of a pair, for models that read two (NLI, rerankers); "
        "null: single texts",
    )
    label_column: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="column or key that holds the label. A column that is named here must exist; null: the column "
        "`label` where there is one, and no accuracy and no probes where there is none",
    )
    group_column: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="column or key that says which texts are nearly the same (versions of one text, turns of one "
        "dialogue, texts of one author): they count as one unit in every interval, and none is trained on where "
        "another is analysed; null: every text is a unit",
    )
    max_examples: int = Field(
        default=2_000,
        ge=MIN_EXAMPLES,
        le=100_000,
        description="texts that are analysed, drawn at random by the seed; a fine-tune never trains on them",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.uri is None) == (self.inline is None):
            raise ValueError("give exactly one of uri and inline")
        return self

    @field_validator("text_column", "text_pair_column", "label_column", "group_column")
    @classmethod
    def _columns_of_a_file(cls, name: str | None, info: ValidationInfo) -> str | None:
        """A column named beside inline data would be ignored."""
        field = info.field_name or ""
        inline: InlineData | None = info.data.get("inline")
        if inline is None or name == cls.model_fields[field].default:
            return name
        if not (field == "label_column" and name == "label"):  # the default of version 0.1, in stored requests
            raise ValueError(f"inline data have texts, pairs, labels and groups, but no columns; leave {field} out")
        return name


class ReferenceRef(TextsRef):
    """Texts of another kind than the tuned model was tuned on: what it must not forget."""

    max_examples: int = Field(
        default=500, ge=MIN_EXAMPLES, le=100_000, description="texts that are measured, drawn at random by the seed"
    )


class DatasetRef(TextsRef):
    """The texts that the models are compared on, and may be tuned on."""

    reference: ReferenceRef | None = Field(
        default=None,
        description="a second, general set of texts, on which forgetting is measured: drift by layer, and what the "
        "answers lost; of the texts in `dataset` itself nobody but you knows whether the model was tuned on them",
    )


class Lora(RequestModel):
    """Low-rank adapters on every linear map of the blocks that are trained (Hu et al. 2021); merged at the end."""

    rank: int = Field(default=8, ge=1, le=512, description="rank of each update")
    alpha: int = Field(default=16, ge=1, le=4_096, description="updates are scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the adapters' inputs while training")


class FineTune(RequestModel):
    """How the base model is tuned when there is no tuned one: as a classifier of the data set's labels."""

    method: Literal["full", "lora", "head"] = Field(
        default="full",
        description="`full` trains every weight, `lora` low-rank adapters and the head, `head` the new classification "
        "head alone",
    )
    lora: Lora | None = Field(default=None, description="of method `lora`; null there: its defaults")
    freeze_first: int = Field(
        default=0,
        ge=0,
        le=1_000,
        description="0: nothing is frozen; k: the embeddings and the first k blocks are, and run without dropout",
    )
    train_examples: int | None = Field(
        default=None, ge=8, description="rows to train on, none of them analysed; null: all the others"
    )
    epochs: int = Field(default=3, ge=1, le=100, description="passes over the training rows")
    max_steps: int | None = Field(default=None, ge=1, description="stop after so many optimiser steps")
    batch_size: int = Field(default=32, ge=1, le=1_024, description="rows in an optimiser step")
    learning_rate: float = Field(
        default=5e-5, gt=0, le=1, description="peak of AdamW's learning rate; 10 % warm-up, then linear decay to 0"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the products while training; `auto`: bfloat16 where the hardware multiplies it, else float32. "
        "Weights and optimiser stay in float32",
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="which weights become the tuned model: those with the best accuracy on held-out rows, looked at "
        "after every epoch, or the last ones",
    )
    checkpoints: int = Field(
        default=0, ge=0, le=20, description="snapshots along the run; the report shows drift growing over them"
    )

    @model_validator(mode="after")
    def _lora_where_it_is_used(self) -> Self:
        if self.lora is not None and self.method != "lora":
            raise ValueError(f"lora is given, but method is {self.method!r}; set method to 'lora' or leave lora out")
        return self


ComparisonName = Literal["transfer", "warm_start", "match", "crosscoder"]
DEFAULT_COMPARISONS: Final[tuple[ComparisonName, ...]] = ("transfer", "warm_start", "match")


class SaeSettings(RequestModel):
    """The sparse autoencoders trained on every layer of both models."""

    architecture: Literal["batch_topk", "topk", "jumprelu", "relu_l1"] = Field(
        default="batch_topk",
        description="BatchTopK (Bussmann et al. 2024), TopK (Gao et al. 2024), JumpReLU (Rajamanoharan et al. 2024) "
        "or ReLU with an L1 penalty (Bricken et al. 2023)",
    )
    width: int = Field(
        default=2,
        ge=1,
        le=64,
        description="latents, as a multiple of the hidden width; more explain more, and fewer of them come again from "
        "another seed: see docs/decisions",
    )
    k: int = Field(
        default=8,
        ge=1,
        le=1_024,
        description="latents active for a token, on average; what the penalty of jumprelu and relu_l1 is steered to",
    )
    tokens: int = Field(
        default=500_000,
        ge=10_000,
        le=1_000_000_000,
        description="tokens each autoencoder is trained on, repetitions counted",
    )
    comparisons: list[ComparisonName] = Field(
        default_factory=lambda: list(DEFAULT_COMPARISONS),
        description="what is asked of the pair's autoencoders: transfer is always there, a warm start costs a quarter "
        "of their training, an independent match half of it, a crosscoder twice as much as all of it",
    )
    random_weights: bool = Field(
        default=False,
        description="train autoencoders on a randomly initialised copy of the base model too, as a control: many of "
        "their numbers are no worse there; costs half as much again",
    )
    early_stop: bool = Field(
        default=True,
        description="end the training once no autoencoder gets better any more: from one tenth of the steps to the "
        "next (at least 100) by less than 1 %; the learning rate then falls over a quarter of the steps so far",
    )
    save: bool = Field(
        default=True,
        description="keep the autoencoders in the service's bucket, as files that sae-lens opens (8 x width x hidden "
        "width squared bytes each, three for each layer), and a table of all their latents as Parquet",
    )

    @field_validator("comparisons")
    @classmethod
    def _each_once(cls, comparisons: list[ComparisonName]) -> list[ComparisonName]:
        return sorted(set(comparisons), key=get_args(ComparisonName).index)


class FreezeSweep(RequestModel):
    """Retraining with the embeddings and the first k blocks frozen, for several k and seeds: what freezing costs."""

    depths: list[Annotated[int, Field(ge=1, le=1_000)]] | None = Field(
        default=None, min_length=1, max_length=100, description="the k that are tried, beside 0; null: every block"
    )
    seeds: int = Field(
        default=2, ge=2, le=20, description="trainings for each k; all rows of a training follow its seed"
    )
    epsilon: float = Field(
        default=0.5, gt=0, le=100, description="largest loss of accuracy that is still worth freezing, in points (%)"
    )
    examples: int = Field(
        default=2_000,
        ge=MIN_EXAMPLES,
        le=100_000,
        description="rows that accuracy is measured on: the analysed ones, then spare ones; none is trained on",
    )


class AnalysisSettings(RequestModel):
    """What is computed on the pair."""

    max_tokens: int = Field(
        default=100_000,
        ge=100,
        le=100_000_000,
        description="texts are read until so many tokens are compared; special ones do not count",
    )
    max_length: int | None = Field(
        default=None,
        ge=8,
        le=8_192,
        description="tokens of a text that are read; null: the 95th percentile of the texts' lengths, up to 512 and to "
        "what both models can read. The report says which length was used and what share of the tokens was not read",
    )
    noise_floors: list[NoiseFloorName] = Field(
        default=["numerical"],
        max_length=3,
        description="what drift is compared with. `numerical` (always computed): the base model in bfloat16 and other "
        "batches. In fine-tune mode also `reseed`: a second fine-tune with another seed; `label_shuffle`: the same "
        "steps on shuffled labels. Each of these costs one more fine-tune",
    )
    probes: bool = Field(
        default=True, description="logistic probes of the labels at every layer, where there are labels"
    )
    grafts: bool = Field(
        default=True, description="run the tuned model with blocks of the base model in their place, block by block"
    )
    freeze_sweep: FreezeSweep | None = Field(
        default=None, description="fine-tune mode: retrain with more and more frozen; null: do not"
    )
    sae: SaeSettings | None = Field(default=SaeSettings(), description="null: no sparse autoencoders")
    texts: list[Text] = Field(
        default=[],
        max_length=MAX_TEXTS_SHOWN,
        description="texts whose drift is shown token by token; empty: the first four of the analysed ones",
    )


class Webhook(RequestModel):
    """Who is told when the analysis has ended, in the form of Standard Webhooks."""

    url: Plain = Field(min_length=1, max_length=2_000, description="https: URL of a public address")
    secret_ref: Plain = Field(
        min_length=1,
        max_length=100,
        description="which of the operator's secrets signs it (LAYERDRIFT_WEBHOOK_SECRETS)",
    )


class AnalysisRequest(RequestModel):
    """A pair of checkpoints to compare, or one and how to fine-tune it. Exactly one of `tuned` and `finetune`."""

    name: Plain = Field(default="", max_length=200, description="for people; shown in lists and in the report")
    tags: dict[TagName, TagValue] = Field(default={}, max_length=50, description="for people and filters")
    base: ModelRef = Field(description="the checkpoint before")
    tuned: ModelRef | None = Field(default=None, description="the checkpoint after")
    finetune: FineTune | None = Field(default=None, description="make the checkpoint after from `base` and `dataset`")
    dataset: DatasetRef = Field(description="texts to compare the models on, and to fine-tune with")
    analysis: AnalysisSettings = Field(default=AnalysisSettings(), description="what is computed")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="of every random choice")
    webhook: Webhook | None = Field(
        default=None, description="told once when the analysis has ended; makes no other analysis of the request"
    )

    @property
    def title(self) -> str:
        """The name, else what is compared."""
        return self.name or self.compared

    @property
    def compared(self) -> str:
        """What is compared, in short: `base → tuned on reviews.csv`."""
        base, data = _short(self.base.uri), _short(self.dataset.uri or "inline texts")
        if self.tuned is None:
            return f"{base} fine-tuned on {data}"
        return f"{base} → {_short(self.tuned.uri)} on {data}"

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, body: object, info: ValidationInfo) -> object:
        analysis = body.get("analysis") if isinstance(body, dict) else None
        old = isinstance(analysis, dict) and "nulls" in analysis  # version 1 wrote all fields
        return with_current_names(body) if old and (info.context or {}).get("stored") else body

    @model_validator(mode="before")
    @classmethod
    def _whole_characters(cls, body: object) -> object:
        """Half a surrogate pair, from a text cut inside an emoji, is no text: nothing could store or show it."""
        if any(_SURROGATE.search(text) for text in _strings(body)):
            raise ValueError("a string holds half a surrogate pair: cut texts between characters, not inside one")
        return body

    @model_validator(mode="after")
    def _pair_or_finetune(self) -> Self:
        if (self.tuned is None) == (self.finetune is None):
            raise ValueError(
                "give exactly one of tuned (a second checkpoint) and finetune (how to make it from the base)"
            )
        return self

    @model_validator(mode="after")
    def _labels_to_tune_on(self) -> Self:
        inline = self.dataset.inline
        if self.finetune is not None and inline is not None and inline.labels is None:
            raise ValueError("a fine-tune needs dataset.inline.labels")
        return self

    @model_validator(mode="after")
    def _retraining_needs_a_fine_tune(self) -> Self:
        if self.finetune is None:
            retrained = [name for name in self.analysis.noise_floors if name != "numerical"]
            if retrained:
                raise ValueError(f"analysis.noise_floors: {retrained[0]} retrains the model, which needs finetune")
            if self.analysis.freeze_sweep is not None:
                raise ValueError("analysis.freeze_sweep retrains the model, which needs finetune")
        elif self.analysis.freeze_sweep is not None and self.finetune.method == "head":
            raise ValueError("analysis.freeze_sweep needs finetune.method full or lora: a head freezes every block")
        return self
