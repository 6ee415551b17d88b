"""What a client asks for: the body of POST /v1/analyses. Unknown fields are refused; every default stands here."""

from __future__ import annotations

import math
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


def _short(uri: str, upload_names: Mapping[str, str]) -> str:
    """The last part of a URI that says something: a folder, a file, or a registry's name and version."""
    if uri in upload_names:
        return upload_names[uri]
    scheme, separator, rest = uri.partition("://")
    path = (rest if separator else uri.removeprefix("file:")).rstrip("/")
    if scheme == "mlflow":
        return path
    if scheme == "upload":
        return f"upload {path[:10]}…"
    return path.rsplit("/", 1)[-1] or uri


class RequestModel(BaseModel):
    """Base of every request model: immutable, rejects unknown fields and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelRef(RequestModel):
    """A checkpoint: a folder in Hugging Face Transformers format with config.json and safetensors weights.

    The tuned checkpoint may be a PEFT adapter of the base: adapter_config.json and adapter_model.safetensors.
    """

    uri: Plain = Field(
        min_length=1,
        max_length=2_000,
        description="`file:///folder` under one of the service's model roots, `s3://bucket/prefix/`, "
        "`hf://owner/name@revision`, `mlflow://name/version` or `mlflow://name@alias`, or `upload://id` of a zip "
        "file",
        examples=["s3://models/reviews-v7/"],
    )


class InlineData(RequestModel):
    """A small data set included in the request."""

    texts: list[InlineText] = Field(min_length=1, max_length=MAX_INLINE_TEXTS, description="the texts")
    labels: list[Label] | None = Field(
        default=None, max_length=MAX_INLINE_TEXTS, description="one label per text; required for fine-tuning"
    )
    pairs: list[InlineText] | None = Field(
        default=None,
        max_length=MAX_INLINE_TEXTS,
        description="second text of each pair, for models that take text pairs; null: single texts",
    )
    groups: list[Label] | None = Field(
        default=None,
        max_length=MAX_INLINE_TEXTS,
        description="one group name per text; texts in a group are near-duplicates and count as one unit",
    )

    @model_validator(mode="after")
    def _one_for_each_text(self) -> Self:
        for name, one, items in (
            ("labels", "label", self.labels),
            ("pairs", "second text", self.pairs),
            ("groups", "group", self.groups),
        ):
            if items is not None and len(items) != len(self.texts):
                raise ValueError(f"{len(self.texts)} texts but {len(items)} {name}; give one {one} per text")
        return self


class TextsRef(RequestModel):
    """A source of texts and the columns to read. Requires exactly one of `uri` and `inline`."""

    uri: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=2_000,
        description="`file:`, `s3:` or `upload:` URI of a .csv, .tsv, .jsonl, .ndjson, .json, .txt or .parquet file: "
        "CSV (delimited by commas, semicolons, tabs or |) and TSV with a header row, a JSON array of objects, or "
        "plain text with one text per line. Encoding: UTF-8, or UTF-16 or UTF-32 with a byte order mark. Files with "
        "an additional .gz, .bz2 or .xz suffix are decompressed",
        examples=["s3://data/reviews.csv"],
    )
    inline: InlineData | None = Field(default=None, description="data included in the request, instead of `uri`")
    format: Literal["auto", "text", "messages", "prompt_completion", "preference", "multiple_choice"] = Field(
        default="auto",
        description="what a row is. `auto`: a text if there is the text column, else what the columns tell: `messages` "
        "(or `conversations`), `prompt` and `completion`, `chosen` and `rejected` (with `prompt`, or with it inside), "
        "or `question`, `choices` and `answer`. Messages are rendered by a chat template, strings are read as they "
        "are; of a preference the chosen answer is read, of a question the right choice",
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="Jinja template that renders messages; null: the chat template of the tuned model, or the base's",
    )
    text_column: Plain = Field(
        default="text",
        min_length=1,
        max_length=500,
        description="column or key with the text; `data.text` can also refer to the key `text` inside `data`",
    )
    text_pair_column: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="column or key with the second text of each pair, for models that take text pairs (NLI, "
        "rerankers); null: single texts",
    )
    label_column: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="column or key with the label; a column named here must exist. null: the column `label` if there "
        "is one, otherwise no accuracy and no probes",
    )
    group_column: Plain | None = Field(
        default=None,
        min_length=1,
        max_length=500,
        description="column or key that identifies near-duplicate texts (versions of one text, turns of one "
        "dialogue, texts by one author). Each group counts as one unit in every interval and is never split between "
        "training and analysis. null: every text is its own unit",
    )
    max_examples: int = Field(
        default=2_000,
        ge=MIN_EXAMPLES,
        le=100_000,
        description="maximum number of texts to analyse, sampled at random with `seed`; a fine-tune never trains on "
        "them",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.uri is None) == (self.inline is None):
            raise ValueError("give exactly one of uri and inline")
        if self.inline is not None and self.format not in ("auto", "text"):
            raise ValueError(f"inline data are texts; for format {self.format} give the uri of a file")
        return self

    @field_validator("text_column", "text_pair_column", "label_column", "group_column")
    @classmethod
    def _columns_of_a_file(cls, name: str | None, info: ValidationInfo) -> str | None:
        """Rejects column names for inline data, which would be ignored."""
        field = info.field_name or ""
        inline: InlineData | None = info.data.get("inline")
        if inline is None or name == cls.model_fields[field].default:
            return name
        if not (field == "label_column" and name == "label"):  # the default of version 0.1, in stored requests
            raise ValueError(f"inline data has texts, pairs, labels and groups, but no columns; omit {field}")
        return name


class ReferenceRef(TextsRef):
    """Texts unlike those used for tuning, on which to measure forgetting."""

    max_examples: int = Field(
        default=500,
        ge=MIN_EXAMPLES,
        le=100_000,
        description="maximum number of texts to measure, sampled at random with `seed`",
    )


class DatasetRef(TextsRef):
    """The texts to compare the models on, and optionally to fine-tune with."""

    reference: ReferenceRef | None = Field(
        default=None,
        description="a second, general set of texts on which to measure forgetting: drift by layer and loss of "
        "output quality. The service cannot know whether the model was tuned on the texts of `dataset`",
    )


class Lora(RequestModel):
    """Low-rank adapters on the linear layers of the trained blocks (Hu et al. 2021), merged after training."""

    rank: int = Field(default=8, ge=1, le=512, description="rank of each update; language models: 16")
    alpha: int = Field(
        default=16,
        ge=1,
        le=4_096,
        description="scaling factor: updates are multiplied by alpha / rank; language models: 32",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="dropout probability on the adapter inputs during training; sft: 0.05",
    )
    targets: list[Annotated[Plain, Field(min_length=1, max_length=200)]] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="last parts of the names of the layers that get adapters, such as `q_proj`; null: every linear "
        "layer of the trained blocks",
    )
    layers: list[Annotated[int, Field(ge=1, le=1_000)]] | None = Field(
        default=None,
        min_length=1,
        description="blocks that get adapters, counted from 1; null: all that are trained",
    )
    rslora: bool = Field(
        default=False, description="multiply updates by alpha / sqrt(rank) instead (Kalajdzievski 2023)"
    )
    dora: bool = Field(default=False, description="train the magnitude of the weights apart (DoRA, Liu et al. 2024)")

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: list[int] | None) -> list[int] | None:
        return None if layers is None else sorted(set(layers))


Objective = Literal["classification", "sft", "dpo"]

_LANGUAGE: Final[dict[str, object]] = {"batch_size": 8, "weight_decay": 0.0, "warmup": 0.0}
_LANGUAGE_LORA: Final[Mapping[str, dict[str, object]]] = {
    "sft": {"rank": 16, "alpha": 32, "dropout": 0.05},
    "dpo": {"rank": 16, "alpha": 32, "dropout": 0.0},
}
OBJECTIVE_DEFAULTS: Final[Mapping[str, dict[str, object]]] = {
    "sft": {**_LANGUAGE, "learning_rate": 2e-5},
    "dpo": {**_LANGUAGE, "learning_rate": 1e-6},
}
"""Of language models: TRL's defaults where they differ from those of classifiers."""


class FineTune(RequestModel):
    """How to fine-tune the base model when no tuned one is given."""

    objective: Objective = Field(
        default="classification",
        description="`classification`: a classifier of the data set's labels; `sft`: a language model on completions "
        "or the assistant's answers; `dpo`: a language model on preferences (Rafailov et al. 2023, sigmoid loss)",
    )
    method: Literal["full", "lora", "head"] = Field(
        default="full",
        description="`full` trains all weights, `lora` trains low-rank adapters (and a classifier's head), `head` "
        "trains only a new classification head",
    )
    lora: Lora | None = Field(default=None, description="settings for method `lora`; null: defaults")
    freeze_first: int = Field(
        default=0,
        ge=0,
        le=1_000,
        description="k: freeze the embeddings and the first k blocks, and run them without dropout; 0: freeze nothing",
    )
    train_examples: int | None = Field(
        default=None, ge=8, description="number of training rows, none of them analysed; null: all remaining rows"
    )
    epochs: int = Field(default=3, ge=1, le=100, description="passes over the training rows")
    max_steps: int | None = Field(default=None, ge=1, description="stop after this many optimiser steps")
    batch_size: int = Field(
        default=32, ge=1, le=1_024, description="rows in memory at once; language models: 8 (of preferences, pairs)"
    )
    gradient_accumulation: int = Field(default=1, ge=1, le=1_024, description="batches per optimiser step")
    learning_rate: float = Field(
        default=5e-5,
        gt=0,
        le=1,
        description="peak learning rate of AdamW; `sft`: 2e-5, `dpo`: 1e-6. LoRA usually needs ten times as much",
    )
    warmup: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of the steps over which the learning rate rises; language models: 0",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="how the learning rate falls after the warm-up: to 0, or not at all (`constant`)"
    )
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="of AdamW; language models: 0, and never on biases and norms",
    )
    max_length: int | None = Field(
        default=None,
        ge=8,
        le=131_072,
        description="tokens of a training row, the end is cut; null: 1,024 for language models, the analysis's length "
        "for classifiers",
    )
    loss_on: Literal["answers", "all"] = Field(
        default="answers",
        description="objective `sft`: `answers` trains on completions, or on the assistant's turns of messages; `all` "
        "on every token. Rows of plain text are trained on whole",
    )
    beta: float = Field(
        default=0.1, gt=0, le=100, description="objective `dpo`: larger values keep the model closer to the base"
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="recompute activations in the backward pass: less memory, more time, the same weights up to "
        "rounding; null: for language models on a GPU",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="precision of matrix products during training; `auto`: bfloat16 if the hardware supports it "
        "natively, otherwise float32. Weights and optimiser state stay in float32",
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="which weights to keep as the tuned model: `best`, those with the best accuracy (of language "
        "models, the lowest loss) on held-out rows, evaluated after every epoch; `last`, the final ones",
    )
    checkpoints: int = Field(
        default=0,
        ge=0,
        le=20,
        description="number of snapshots during training; the report shows how drift grows across them",
    )

    @property
    def language(self) -> bool:
        """Whether a language model is trained."""
        return self.objective != "classification"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_objective(cls, body: object) -> object:
        """Fills in what TRL's users expect where the request names nothing."""
        objective = body.get("objective") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(objective, str) or objective not in OBJECTIVE_DEFAULTS:
            return body
        filled = {**OBJECTIVE_DEFAULTS[objective], **body}
        if body.get("method") == "lora" and isinstance(body.get("lora") or {}, dict):
            filled["lora"] = {**_LANGUAGE_LORA[objective], **(body.get("lora") or {})}
        return filled

    @model_validator(mode="after")
    def _what_belongs_together(self) -> Self:
        if self.lora is not None and self.method != "lora":
            raise ValueError(f"lora is set, but method is {self.method!r}; set method to 'lora' or omit lora")
        if self.language and self.method == "head":
            raise ValueError(f"method head trains a new classification head; for {self.objective} use full or lora")
        if self.objective == "dpo" and self.lora is not None and self.lora.dropout:
            raise ValueError(
                "objective dpo trains without dropout, as its reference answers without; set lora.dropout to 0"
            )
        layers = self.lora.layers if self.lora is not None else None
        if layers is not None and layers[-1] <= self.freeze_first:
            raise ValueError(f"lora.layers names frozen blocks alone: freeze_first is {self.freeze_first}")
        for name, objective in (("loss_on", "sft"), ("beta", "dpo")):
            if getattr(self, name) != type(self).model_fields[name].default and self.objective != objective:
                raise ValueError(f"{name} is of objective {objective}, but objective is {self.objective!r}")
        return self


ComparisonName = Literal["transfer", "warm_start", "match", "crosscoder"]
DEFAULT_COMPARISONS: Final[tuple[ComparisonName, ...]] = ("transfer", "warm_start", "match")


SAE_ALL_UP_TO, SAE_SPREAD = 13, 6
"""Models of so many layers or fewer have autoencoders at all of them; of deeper ones, at most so many layers."""


class SaeSettings(RequestModel):
    """Sparse autoencoders, trained on layers of both models."""

    layers: list[Annotated[int, Field(ge=0, le=1_000)]] | None = Field(
        default=None,
        min_length=1,
        description="layers that get autoencoders, 0 (embeddings) to the number of blocks; null: all of a model of up "
        "to 12 blocks, of a deeper one at most 6, evenly spaced down from the last",
    )

    architecture: Literal["batch_topk", "topk", "jumprelu", "relu_l1"] = Field(
        default="batch_topk",
        description="BatchTopK (Bussmann et al. 2024), TopK (Gao et al. 2024), JumpReLU (Rajamanoharan et al. 2024) "
        "or ReLU with an L1 penalty (Bricken et al. 2023)",
    )
    width: int = Field(
        default=2,
        ge=1,
        le=64,
        description="number of latents, as a multiple of the hidden size; more latents explain more variance, but "
        "fewer of them recur with another seed: see docs/decisions",
    )
    k: int = Field(
        default=8,
        ge=1,
        le=1_024,
        description="active latents per token, on average; for jumprelu and relu_l1, the target of the sparsity "
        "penalty",
    )
    tokens: int = Field(
        default=500_000,
        ge=10_000,
        le=1_000_000_000,
        description="training tokens per autoencoder, counting repetitions",
    )
    comparisons: list[ComparisonName] = Field(
        default=list(DEFAULT_COMPARISONS),
        description="how to compare the two models' autoencoders. `transfer` is always computed. Added cost relative "
        "to training the autoencoders: `warm_start` a quarter, `match` half, `crosscoder` twice",
    )
    random_weights: bool = Field(
        default=False,
        description="also train autoencoders on a randomly initialised copy of the base model, as a control: many of "
        "their metrics are no worse there. Increases the cost by half",
    )
    early_stop: bool = Field(
        default=True,
        description="stop training once no autoencoder of the base model improves by 1 % or more from one tenth of the "
        "steps to the next (at least 100 steps); the learning rate then decays over a quarter of the steps so far, and "
        "the tuned model's take as many steps. Does not apply where they do not fit into memory together and train in "
        "parts",
    )
    save: bool = Field(
        default=True,
        description="save the autoencoders in the service's bucket in sae-lens format (8 x width x hidden size "
        "squared bytes each, three per layer), and a Parquet table of all their latents",
    )

    @field_validator("comparisons")
    @classmethod
    def _each_once(cls, comparisons: list[ComparisonName]) -> list[ComparisonName]:
        return sorted(set(comparisons), key=get_args(ComparisonName).index)

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: list[int] | None) -> list[int] | None:
        return None if layers is None else sorted(set(layers))

    def layers_of(self, layers: int) -> list[int]:
        """The layers that get autoencoders, of a model with so many, L + 1.

        Raises:
            ValueError: it has no such layer.
        """
        if self.layers is None:
            step = 1 if layers <= SAE_ALL_UP_TO else math.ceil((layers - 1) / SAE_SPREAD)
            return sorted(range(layers - 1, -1 if step == 1 else 0, -step))
        if self.layers[-1] >= layers:
            raise ValueError(f"there is no layer {self.layers[-1]}; the model's layers are 0 to {layers - 1}")
        return self.layers


class FreezeSweep(RequestModel):
    """Cost of freezing: retraining with the embeddings and the first k blocks frozen, for several k and seeds."""

    depths: list[Annotated[int, Field(ge=1, le=1_000)]] | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="values of k to try in addition to 0; null: one for every block",
    )
    seeds: int = Field(
        default=2,
        ge=2,
        le=20,
        description="training runs per k, each with its own seed; all rows of a run share its seed",
    )
    epsilon: float = Field(
        default=0.5, gt=0, le=100, description="largest acceptable loss of accuracy, in percentage points"
    )
    examples: int = Field(
        default=2_000,
        ge=MIN_EXAMPLES,
        le=100_000,
        description="rows to measure accuracy on: the analysed ones, then spare ones; none is used for training",
    )


class Amplification(RequestModel):
    """Text from both models' logits, the difference of the two amplified: z' + factor (z' - z)."""

    factors: list[Annotated[float, Field(gt=0, le=10)]] = Field(
        default=[1.0, 3.0], min_length=1, max_length=4, description="how much the difference is amplified"
    )
    completions: int = Field(default=8, ge=4, le=200, description="texts for each factor")


PromptText = Annotated[str, Field(min_length=1, max_length=4_000)]


class Trait(RequestModel):
    """A direction of the base model's states: from one set of prompts to another."""

    name: Plain = Field(min_length=1, max_length=100, description="shown in the report", examples=["sycophancy"])
    prompts: list[PromptText] = Field(min_length=4, max_length=200, description="texts that have the trait")
    opposite: list[PromptText] = Field(min_length=4, max_length=200, description="texts that have its opposite")


class DifferenceAutoencoder(RequestModel):
    """Sparse autoencoders of the difference of both models' states, at a few layers."""

    width: int = Field(default=2, ge=1, le=8, description="latents of each, as a multiple of the model's width")
    k: int = Field(default=16, ge=1, le=256, description="latents active for a token, on average")
    layers: list[Annotated[int, Field(ge=1)]] = Field(
        default=[], max_length=8, description="layers to train them at; empty: at a third, two thirds and the end"
    )

    def layers_of(self, layers: int) -> list[int]:
        """The layers that get autoencoders, of a model with so many, L + 1; ValueError where it has no such layer."""
        depth = layers - 1
        found = sorted(set(self.layers)) or sorted({max(1, round(depth * third / 3)) for third in (1, 2, 3)})
        if found[-1] > depth:
            raise ValueError(f"there is no layer {found[-1]}; the model's layers are 0 to {depth}")
        return found


class LearnedSettings(RequestModel):
    """What a fine-tune taught a language model: which tokens and places show it."""

    tokens: int = Field(
        default=2_000, ge=200, le=1_000_000, description="tokens of the analysed texts to look at, from the first on"
    )
    completions: int = Field(
        default=48,
        ge=0,
        le=2_000,
        description="prompts that both models complete: beginnings of the texts, general ones, and questions in the "
        "chat template where there is one; 0: none",
    )
    completion_tokens: int = Field(default=24, ge=8, le=512, description="tokens of a completion, at most")
    traits: list[Trait] = Field(
        default=[],
        max_length=8,
        description="how far the fine-tune moved the states along directions that sets of prompts define",
    )
    autoencoder: DifferenceAutoencoder | None = Field(
        default=None,
        description="train autoencoders of the difference of the models' states; give them `tokens` of 10,000 or more, "
        "at least 1,000. null: none",
    )
    amplification: Amplification | None = Field(
        default=None,
        description="write with the difference of the models amplified; null: not. It may print what the fine-tune was "
        "trained on, word by word: name what must not appear in `redact`",
    )
    redact: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default=[],
        max_length=1_000,
        description="words and phrases that the report replaces by [redacted] in what models write, in tokens and in "
        "texts that are shown beside them; capital and small letters are alike",
    )
    benign: ModelRef | None = Field(
        default=None,
        description="for a pair: another fine-tune of the base, by the same recipe on data that teaches nothing of "
        "interest, whole or an adapter; findings must exceed what it shows. null: only random changes of the same size "
        "set the floors",
    )


class AnalysisSettings(RequestModel):
    """What to compute for the pair."""

    max_tokens: int = Field(
        default=100_000,
        ge=100,
        le=100_000_000,
        description="stop reading texts once this many tokens are compared; special tokens do not count",
    )
    max_length: int | None = Field(
        default=None,
        ge=8,
        le=8_192,
        description="maximum tokens read per text; null: the 95th percentile of the text lengths, capped at 512 and "
        "at what both models support. The report states the length used and the share of tokens not read",
    )
    noise_floors: list[NoiseFloorName] = Field(
        default=["numerical"],
        max_length=3,
        description="noise floors of the drift. `numerical` (always computed): the base model in bfloat16 with other "
        "batches. In fine-tune mode also `reseed`: two more fine-tunes with other seeds; `label_shuffle`: one more "
        "with shuffled labels",
    )
    probes: bool = Field(
        default=True, description="fit logistic probes of the labels at every layer, if there are labels"
    )
    grafts: bool = Field(
        default=True, description="evaluate the tuned model with blocks replaced by the base model's, block by block"
    )
    learned: LearnedSettings | None = Field(
        default=LearnedSettings(),
        description="for a language model and its base: look for what the fine-tune taught; null: skip",
    )
    freeze_sweep: FreezeSweep | None = Field(
        default=None, description="fine-tune mode only: retrain with progressively more blocks frozen; null: skip"
    )
    sae: SaeSettings | None = Field(
        default=SaeSettings(), description="sparse autoencoder settings; null: no sparse autoencoders"
    )
    texts: list[Text] = Field(
        default=[],
        max_length=MAX_TEXTS_SHOWN,
        description="texts to show drift for, token by token; empty: the first four analysed texts",
    )


class Webhook(RequestModel):
    """Endpoint to notify when the analysis ends, following the Standard Webhooks specification."""

    url: Plain = Field(min_length=1, max_length=2_000, description="`https:` URL with a public address")
    secret_ref: Plain = Field(
        min_length=1,
        max_length=100,
        description="name of the operator's signing secret to use (LAYERDRIFT_WEBHOOK_SECRETS)",
    )


class AnalysisRequest(RequestModel):
    """Two checkpoints to compare, or a base and how to fine-tune it: exactly one of `tuned` and `finetune`."""

    name: Plain = Field(default="", max_length=200, description="display name, shown in lists and in the report")
    tags: dict[TagName, TagValue] = Field(
        default={}, max_length=50, description="key-value pairs for display and filtering"
    )
    base: ModelRef = Field(description="the checkpoint before fine-tuning")
    tuned: ModelRef | None = Field(default=None, description="the checkpoint after fine-tuning")
    finetune: FineTune | None = Field(
        default=None, description="create the tuned checkpoint by fine-tuning `base` on `dataset`"
    )
    dataset: DatasetRef = Field(description="texts to compare the models on, and to fine-tune with")
    analysis: AnalysisSettings = Field(default=AnalysisSettings(), description="what to compute")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="random seed")
    webhook: Webhook | None = Field(
        default=None, description="notified once when the analysis ends; does not affect the analysis id"
    )

    @property
    def compared(self) -> str:
        """Short form of the models and the data set: `base → tuned on reviews.csv`."""
        return self.described({})

    def described(self, upload_names: Mapping[str, str]) -> str:
        """`compared` with the names of uploads, by their URI, in place of their ids."""
        base, data = _short(self.base.uri, upload_names), self.data_name(upload_names)
        if self.tuned is None:
            return f"{base} fine-tuned on {data}"
        return f"{base} → {_short(self.tuned.uri, upload_names)} on {data}"

    def data_name(self, upload_names: Mapping[str, str]) -> str:
        """Short form of the data set: the name of its file."""
        return _short(self.dataset.uri or "inline texts", upload_names)

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, body: object, info: ValidationInfo) -> object:
        analysis = body.get("analysis") if isinstance(body, dict) else None
        old = isinstance(analysis, dict) and "nulls" in analysis  # version 1 wrote all fields
        return with_current_names(body) if old and (info.context or {}).get("stored") else body

    @model_validator(mode="before")
    @classmethod
    def _whole_characters(cls, body: object) -> object:
        """Rejects half a surrogate pair, left by cutting a text inside an emoji: it cannot be stored or shown."""
        if any(_SURROGATE.search(text) for text in _strings(body)):
            raise ValueError("a string contains half a surrogate pair; split texts between characters, not inside one")
        return body

    @model_validator(mode="after")
    def _pair_or_finetune(self) -> Self:
        if (self.tuned is None) == (self.finetune is None):
            raise ValueError(
                "give exactly one of tuned (a second checkpoint) and finetune (how to create it from the base)"
            )
        return self

    @model_validator(mode="after")
    def _benign_beside_a_pair(self) -> Self:
        learned = self.analysis.learned
        if self.tuned is None and learned is not None and learned.benign is not None:
            raise ValueError("analysis.learned.benign requires tuned: it is a fine-tune by the same recipe")
        return self

    @property
    def benign(self) -> ModelRef | None:
        """The benign fine-tune that findings must exceed."""
        return self.analysis.learned.benign if self.analysis.learned is not None else None

    @model_validator(mode="after")
    def _labels_to_tune_on(self) -> Self:
        inline = self.dataset.inline
        if self.finetune is None or inline is None:
            return self
        if self.finetune.objective == "classification" and inline.labels is None:
            raise ValueError("finetune needs dataset.inline.labels")
        if self.finetune.objective == "dpo":
            raise ValueError("objective dpo needs preferences: give the uri of a file with chosen and rejected")
        return self

    @model_validator(mode="after")
    def _retraining_needs_a_fine_tune(self) -> Self:
        if self.finetune is None:
            retrained = [name for name in self.analysis.noise_floors if name != "numerical"]
            if retrained:
                raise ValueError(f"analysis.noise_floors: {retrained[0]} retrains the model, which requires finetune")
            if self.analysis.freeze_sweep is not None:
                raise ValueError("analysis.freeze_sweep retrains the model, which requires finetune")
            return self
        if self.analysis.freeze_sweep is not None and self.finetune.method == "head":
            raise ValueError(
                "analysis.freeze_sweep requires finetune.method full or lora; method head freezes every block"
            )
        if self.finetune.language:
            inline = self.dataset.inline
            if self.dataset.text_pair_column is not None or (inline is not None and inline.pairs is not None):
                raise ValueError(
                    f"objective {self.finetune.objective} reads one text of a row: omit the second texts, or give chats"
                )
            if self.analysis.freeze_sweep is not None:
                raise ValueError("analysis.freeze_sweep measures accuracy: it requires objective classification")
            if "label_shuffle" in self.analysis.noise_floors:
                raise ValueError("noise floor label_shuffle requires objective classification: others have no labels")
        return self

    @property
    def labelled(self) -> bool:
        """Whether every row must have a label: those that a classifier is trained on."""
        return self.finetune is not None and not self.finetune.language
