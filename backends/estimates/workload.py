"""How much work a request is: floating-point operations by stage, memory and disk, from sizes that are cheap to know.

Only leading terms: what is estimated is divided by rates that were measured on whole jobs, counted in the same way, so
constant factors cancel. Knows neither Redis nor S3.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.estimates.execution import WRITTEN_BYTES, runs_in_layers
from layerdrift.contract.analysis import StageName
from layerdrift.contract.request import AnalysisRequest, FineTune, SaeSettings

CHARACTERS_OF_TOKEN, SPECIAL_TOKENS = 4.0, 2
FLOAT32, FLOAT64, BFLOAT16 = 4, 8, 2
VIEWS, GROUPS = 3, 20
SPLICED_TEXTS = 200
HELDOUT_ROWS, SAE_EPOCHS = 20_000, 2
NULL_TOKENS, RANDOM_TOKENS = 10_000, 5_000
LOADED = 2_000
"""Matrix products of D x D by which a layer is loaded and its weights are compared."""

DISTANCE_TEXTS = 1_000
PROCESS_BYTES, LAYERED_PROCESS_BYTES = 1_700 << 20, 800 << 20
"""A worker without a model: Python, torch and transformers, and what a whole pair's sums leave in its heap."""

SUSPENDED, SAMPLES, LOGITS = 2.5, 256 << 20, 128 << 20
"""A suspended forward pass holds so many times its states. Memory of samples of all layers, and of logits."""

TRAINED_TOKENS, LOGIT_COPIES = 1_024, 4
"""Tokens of a language model's training row at most, by default; and how often its logits are in memory."""

PER_WEIGHT, OF_ROWS, DECOMPOSED = 2_500, 30, 60
"""In layers: a block's weights are read, drawn, rounded and compared; products
of D x D for each row of a view, and for each layer."""

GRAFTED_TEXTS, GRAFTED_TOKENS, SPLICED_TOKENS = 500, 2_500, 2_500
ABLATIONS, ABLATED_TOKENS, PATCHED_BYTES = 21, 600, 2 << 30
TRAINED_TOGETHER, SAE_BATCH, BATCH_COPIES = 8 << 30, 2_048, 6
"""Memory of autoencoders that train together beside their numbers, rows of a step, and tensors of their latents."""

LAST_STATES, MEASURED_SAES, DEVICE_CONTEXT = 512 << 20, 1 << 30, 1 << 30
"""Memory of the last states of compared texts; of shuffled and encoded rows and tables of latents, which the process of
whole models has anyway; of CUDA itself."""
LAYERED_TWIN_TOKENS, LAYERED_RANDOM_TOKENS = 2_500, 2_048
LEARNED_SIDES = 5
"""Models that are asked what was learned: both, two changed at random, and a rounded one."""

WRITTEN_PASSES, PROMPT_TOKENS = 6, 10
"""Completions: how often their tokens go through a model, by writing and scoring; and about how long a prompt is."""

KEPT_DIFFERENCES, LENS_LAYERS = 4_000, 6
"""Positions of which the differences of all layers wait on disk, and layers at which those of the three nulls do."""

DIFFERENCE_ROWS, DIFFERENCE_PASSES, LEAST_DIFFERENCES = 16_000, 20, 600 * 512
"""Positions that autoencoders of the difference see, how often, and how many they see at least, repetitions counted."""


@dataclass(frozen=True)
class ModelSizes:
    """What config.json and the files of the base model tell.

    blocks: L. width: D. block_parameters: of all blocks. parameters: of the whole. bytes: of the files. language: it
    predicts the next token.
    """

    blocks: int
    width: int
    block_parameters: int
    parameters: int
    bytes: int
    language: bool = False


@dataclass(frozen=True)
class DataSizes:
    """What the first bytes of the data set tell: about how many rows, and tokens of a row."""

    rows: int
    row_tokens: float
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """Of the base model, the data set, and the fine-tunes' files in bytes; adapter: whether the tuned one is one."""

    model: ModelSizes
    data: DataSizes
    tuned_bytes: int
    adapter: bool = False


@dataclass(frozen=True)
class Workload:
    """operations: by stage. memory, device_memory, scratch, download: bytes; device_memory where there is a GPU."""

    operations: dict[StageName, float]
    memory: int
    device_memory: int
    scratch: int
    download: int


def workload(
    request: AnalysisRequest, model: ModelSizes, data: DataSizes, tuned_bytes: int = 0, adapter: bool = False
) -> Workload:
    """The work of one request.

    Args:
        tuned_bytes: of the files of the tuned checkpoint, and of a benign one; 0 for a fine-tune.
        adapter: the tuned checkpoint is one.
    """
    work = _Work(request, model, data)
    download = model.bytes + tuned_bytes + data.bytes
    by_stage = {
        StageName.RESOLVE: float(download),
        StageName.FINETUNE: work.finetune(),
        StageName.EXTRACT: work.extract(),
        StageName.COMPARE: work.compare(),
        StageName.LEARNED: work.learned(),
        StageName.SAE: work.sae(),
        StageName.CAUSAL: work.causal(),
        StageName.REPORT: float(work.layers),
    }
    return Workload(
        {stage: operations for stage, operations in by_stage.items() if operations is not None},
        _memory(request, model, data, work.tokens, adapter),
        _device_memory(request, model, data, work.tokens, adapter),
        _scratch(request, model, work.tokens, work.every_token),
        download,
    )


class _Work:
    """The operations of each stage; None: the request leaves the stage out.

    texts, tokens: that are analysed. row_tokens: of a row, as far as it is read. every_token: of all rows.
    layers: L + 1.
    """

    def __init__(self, request: AnalysisRequest, model: ModelSizes, data: DataSizes) -> None:
        self.request, self.model, self.data = request, model, data
        self.row_tokens = min(data.row_tokens, request.analysis.max_length or 512)
        self.texts = min(request.dataset.max_examples, max(1, data.rows))
        self.tokens = min(float(request.analysis.max_tokens), self.texts * self.row_tokens)
        self.every_token = data.rows * self.row_tokens
        self.layers = model.blocks + 1
        self.layered = runs_in_layers(request, model.bytes)

    def _forward(self, count: float) -> float:
        """Of one model on so many tokens, with the attention that texts of this length take."""
        return count * (2 * self.model.block_parameters + 4 * self.model.blocks * self.model.width * self.row_tokens)

    def finetune(self) -> float | None:
        """The training, those of the noise floors, and the evaluations."""
        settings, noise_floors = self.request.finetune, self.request.analysis.noise_floors
        if settings is None:
            return None
        spare = max(1, self.data.rows - self.texts)
        rows = min(settings.train_examples or self.data.rows, spare)
        of_step = settings.batch_size * settings.gradient_accumulation
        steps = rows * settings.epochs / of_step
        steps = min(steps, settings.max_steps or steps)
        trainings = 1 + sum({"reseed": 2, "label_shuffle": 1}.get(name, 0) for name in noise_floors)
        tokens = _row_tokens(settings, self.data)
        trained = 3 * self._trained(settings, steps * of_step * tokens)
        trained += 10 * steps * self.model.parameters * (0.1 if settings.method == "lora" else 1.0)
        passes = settings.epochs * min(500, rows) + (rows if settings.objective == "dpo" else 0)
        return trainings * trained + self._trained(settings, passes * tokens)

    def _trained(self, settings: FineTune, tokens: float) -> float:
        """One pass over so many tokens, of a language model with its head; of preferences both answers."""
        if not settings.language:
            return self._forward(tokens)
        outside = self.model.parameters - self.model.block_parameters
        return (self._forward(tokens) + 2 * tokens * outside) * (2 if settings.objective == "dpo" else 1)

    def extract(self) -> float:
        """Both models, the noise floors and a copy with random weights, with their moments; the weights compared."""
        noise_floors, width = self.request.analysis.noise_floors, self.model.width
        nulls = 1 + 2 * ("reseed" in noise_floors) + ("label_shuffle" in noise_floors)
        if self.layered:
            return self._extract_layered(min(self.tokens, LAYERED_TWIN_TOKENS) + (nulls - 1) * self._null_tokens())
        null_tokens = nulls * self._null_tokens()
        forwards = self._forward(2 * self.tokens + null_tokens + min(self.tokens, RANDOM_TOKENS))
        moments = (self.tokens + null_tokens) * 6.0 * self.layers * width**2
        return forwards + moments + self.layers * width**3 * LOADED

    def _null_tokens(self) -> float:
        return min(self.tokens, NULL_TOKENS)

    def _extract_layered(self, null_tokens: float) -> float:
        """The same block by block; views are measured here, of the rows, with each group left out."""
        width, block = self.model.width, self.model.block_parameters
        passes = 2 * self.tokens + null_tokens + min(self.tokens, LAYERED_RANDOM_TOKENS)
        weights = block * (PER_WEIGHT + 1.5 * width)
        texts = 2 * self.texts * min(self.texts, width) ** 2
        rows = OF_ROWS * (self.tokens + null_tokens / 3) * min(self.tokens, width) ** 2 + OF_ROWS * texts
        decomposed = DECOMPOSED * min(self.tokens, width) ** 2 * width
        return self._forward(passes) + weights + self.layers * (rows + decomposed)

    def compare(self) -> float:
        """Similarities of all groups of texts, and the distances between texts."""
        distances = min(self.texts, DISTANCE_TEXTS) ** 2 * 20_000
        if self.layered:
            outside = self.model.parameters - self.model.block_parameters
            return self.layers * distances + 2 * self.tokens * outside
        return self.layers * (self.model.width**3 * VIEWS * (GROUPS + 8) * 10 + distances)

    def learned(self) -> float | None:
        """Language models alone: both, and those that learned nothing, with their heads."""
        settings = self.request.analysis.learned
        if settings is None or not self.model.language:
            return None
        asked = min(self.tokens, float(settings.tokens))
        outside = self.model.parameters - self.model.block_parameters
        texts = float(settings.completions)
        if settings.amplification is not None:  # written by all models, each time with both of them
            texts += 2 * len(settings.amplification.factors) * settings.amplification.completions
        written = texts * (settings.completion_tokens + PROMPT_TOKENS) * WRITTEN_PASSES
        written = written if _written_bytes(self.request, self.model) else 0
        sides = LEARNED_SIDES + (settings.benign is not None)
        read = sides * (self._forward(asked) + 6 * asked * outside)
        trained = 0.0
        if settings.autoencoder is not None:
            rows = max(min(asked, DIFFERENCE_ROWS) * DIFFERENCE_PASSES, LEAST_DIFFERENCES)
            trainings = (sides - 1) * _difference_layers(self.request, self.model)
            trained = 6 * rows * trainings * settings.autoencoder.width * self.model.width**2
        return read + trained + self._forward(written) + 2 * written * outside

    def sae(self) -> float | None:
        """The rows, and the trainings of all autoencoders."""
        sae = self.request.analysis.sae
        if sae is None:
            return None
        rows = max(self.data.rows - self.texts, self.texts // 2) * self.row_tokens
        share = 1 + 0.5 * ("match" in sae.comparisons) + 0.25 * ("warm_start" in sae.comparisons)
        share += 2.0 * ("crosscoder" in sae.comparisons) + 0.5 * sae.random_weights
        layers = len(_sae_layers(sae, self.model))
        training = 4.0 * 2 * layers * sae.tokens * sae.width * self.model.width * self.model.width * share
        return self._forward(2 * min(sae.tokens / SAE_EPOCHS, rows)) + training

    def causal(self) -> float:
        """Grafts, splices, the snapshots of a fine-tune, and the freeze sweep."""
        settings, finetune = self.request.analysis, self.request.finetune
        grafted = self.model.blocks * self._asked(GRAFTED_TEXTS, GRAFTED_TOKENS) if settings.grafts else 0.0
        spliced = 0.0
        if settings.sae is not None:
            layers = len(_sae_layers(settings.sae, self.model))
            spliced = 6.0 * layers * self._asked(SPLICED_TEXTS, SPLICED_TOKENS)
        along = (finetune.checkpoints if finetune is not None else 0) * min(self.tokens, NULL_TOKENS)
        return self._forward(1.5 * grafted + spliced + along) + self._sweep()

    def _asked(self, texts: int, tokens: int) -> float:
        """Tokens of what a model is asked again and again; large models are taken for language models."""
        found = min(self.texts, texts) * self.row_tokens
        return min(found, float(tokens)) if self.layered else found

    def _sweep(self) -> float:
        sweep, tuned = self.request.analysis.freeze_sweep, self.finetune()
        if sweep is None or tuned is None:
            return 0.0
        depths = len(sweep.depths or range(self.model.blocks)) + 1
        return depths * sweep.seeds * 0.7 * tuned


def _memory(request: AnalysisRequest, model: ModelSizes, data: DataSizes, tokens: float, adapter: bool) -> int:
    """The largest of what the stages hold at once."""
    weights, sae = FLOAT32 * model.parameters, request.analysis.sae
    layered = runs_in_layers(request, model.bytes)
    if layered:
        stages = [_in_layers(model, tokens, adapter), _patched(request, model, tokens, adapter)]
    else:
        layers, width = model.blocks + 1, model.width
        sums = VIEWS * 3 * layers * width**2 * FLOAT64
        remembered = min(512 << 20, int(2 * FLOAT32 * layers * width * min(tokens, NULL_TOKENS) * 1.3))
        stages = [4 * weights + sums + remembered]
    stages.append(_written_bytes(request, model))
    if adapter and not layered:
        stages.append(2 * weights)
    if request.finetune is not None:
        stages.append(_training_bytes(request.finetune, model, data))
    if sae is not None:
        each, sites = _autoencoders(sae, model)
        warmed = each * 2 * len(_sae_layers(sae, model)) * ("warm_start" in sae.comparisons)
        trained = max(min(2 * each * sites, TRAINED_TOGETHER), 2 * each)
        kept = int(min(LAST_STATES, 2 * tokens * model.width * _stored(model))) + SAMPLES + MEASURED_SAES
        stages.append(each * sites + warmed + trained + 64 * 1024 * model.width + (kept if layered else 0))
    return (LAYERED_PROCESS_BYTES if layered else PROCESS_BYTES) + max(stages)


def _row_tokens(settings: FineTune, data: DataSizes) -> float:
    """Tokens of a training row, as far as it is read."""
    return min(data.row_tokens, float(settings.max_length or (TRAINED_TOKENS if settings.language else 512)))


def _training_bytes(settings: FineTune, model: ModelSizes, data: DataSizes) -> int:
    """Weights, gradients and moments; of a language model also logits, of which the backward pass has copies."""
    weights = FLOAT32 * model.parameters
    held = 5 * weights if settings.method != "lora" else 3 * weights
    if not settings.language:
        return held
    vocabulary = (model.parameters - model.block_parameters) / max(1, model.width)
    rows = settings.batch_size * (2 if settings.objective == "dpo" else 1) * 2 * _row_tokens(settings, data)
    states = 0 if settings.gradient_checkpointing else 16 * model.blocks * model.width
    return held + int(rows * FLOAT32 * (LOGIT_COPIES * vocabulary + states))


def _written_bytes(request: AnalysisRequest, model: ModelSizes) -> int:
    """A whole language model that completes prompts, and the heads of both; 0 where it does not."""
    learned, outside = request.analysis.learned, model.parameters - model.block_parameters
    if learned is None or not (learned.completions or learned.amplification) or not model.language:
        return 0
    models = 1 if learned.amplification is None else 2
    sizes = [size * model.parameters for size in (FLOAT32, _stored(model))]
    whole = next((size for size in sizes if size <= WRITTEN_BYTES), 0.0)
    return int(models * whole + (2 * outside * FLOAT32 + LOGITS if whole else 0))


def _device_memory(request: AnalysisRequest, model: ModelSizes, data: DataSizes, tokens: float, adapter: bool) -> int:
    """Of a GPU: weights and states. Sums, and autoencoders that do not train at the time, are in host memory."""
    weights, sae = FLOAT32 * model.parameters, request.analysis.sae
    if runs_in_layers(request, model.bytes):
        going = _weights_in_layers(model, adapter) + _suspended(model, tokens)
        stages = [going, _patched(request, model, tokens, adapter)]
    else:
        stages = [3 * weights]
    if request.finetune is not None:
        stages.append(_training_bytes(request.finetune, model, data))
    if sae is not None:
        each, sites = _autoencoders(sae, model)
        step = int(5 * each + BATCH_COPIES * SAE_BATCH * FLOAT32 * sae.width * model.width)
        stages.append(max(min(step * sites, TRAINED_TOGETHER), step))
    return DEVICE_CONTEXT + max(stages)


def _autoencoders(sae: SaeSettings, model: ModelSizes) -> tuple[int, int]:
    """Bytes of one, and how many are trained from the start."""
    each = 2 * FLOAT32 * sae.width * model.width**2
    return each, len(_sae_layers(sae, model)) * (2 + ("match" in sae.comparisons))


def _patched(request: AnalysisRequest, model: ModelSizes, tokens: float, adapter: bool) -> int:
    """Weights of the heads and a block of both models, and the states of all grafts, or of all splices of one model."""
    if not request.analysis.grafts and request.analysis.sae is None:
        return 0
    stored, asked = _stored(model), min(tokens, float(GRAFTED_TOKENS))
    state = model.width * stored
    found = [0.0]
    if request.analysis.grafts:
        found.append(min(PATCHED_BYTES, 2 * model.blocks * asked * state))
    if request.analysis.sae is not None:
        layers = len(_sae_layers(request.analysis.sae, model))
        found.append(layers * state * (2 * asked + ABLATIONS * min(asked, ABLATED_TOKENS)))
    return int(_weights_in_layers(model, adapter) + max(found) + SUSPENDED * 2 * asked * state + LOGITS)


def _difference_layers(request: AnalysisRequest, model: ModelSizes) -> int:
    """Layers with autoencoders of the difference."""
    learned = request.analysis.learned
    autoencoder = learned.autoencoder if learned is not None else None
    if autoencoder is None:
        return 0
    return len(autoencoder.layers) or min(3, model.blocks)


def _sae_layers(sae: SaeSettings, model: ModelSizes) -> list[int]:
    """The layers that get autoencoders; all that are named where the model does not have them all."""
    try:
        return sae.layers_of(model.blocks + 1)
    except ValueError:
        return sae.layers or []


def _in_layers(model: ModelSizes, tokens: float, adapter: bool) -> int:
    """Embeddings and a block of both models, the states between layers, and the sums of one layer."""
    sums = 12 * min(tokens, model.width) ** 2 * FLOAT64
    return int(_weights_in_layers(model, adapter) + _suspended(model, tokens) + sums + SAMPLES)


def _stored(model: ModelSizes) -> float:
    """Bytes of a weight in the files."""
    return min(FLOAT32, max(BFLOAT16, model.bytes / max(1, model.parameters)))


def _weights_in_layers(model: ModelSizes, adapter: bool) -> int:
    """What is in no block, which an adapter shares with its base, and a block of both models and of the copies."""
    outside, block = model.parameters - model.block_parameters, model.block_parameters / max(1, model.blocks)
    return int((1 if adapter else 2) * outside * _stored(model) + block * (3 * _stored(model) + BFLOAT16))


def _suspended(model: ModelSizes, tokens: float) -> int:
    return int(SUSPENDED * _passed_tokens(tokens) * model.width * _stored(model))


def _passed_tokens(tokens: float) -> float:
    """Tokens of both models and of the two nulls."""
    return 2 * tokens + min(tokens, LAYERED_TWIN_TOKENS) + min(tokens, LAYERED_RANDOM_TOKENS)


def _scratch(request: AnalysisRequest, model: ModelSizes, tokens: float, every_token: float) -> int:
    """States, differences and rows on disk; no more rows than the data set has tokens."""
    layers, width, sae = model.blocks + 1, model.width, request.analysis.sae
    groups = GROUPS * VIEWS * 3 * layers * width**2 * FLOAT32
    if runs_in_layers(request, model.bytes):  # the states of all layers wait there
        groups = int(layers * _passed_tokens(tokens) * width * max(BFLOAT16, model.bytes / max(1, model.parameters)))
    learned = request.analysis.learned
    if learned is not None and model.language:
        positions = min(KEPT_DIFFERENCES, learned.tokens, int(tokens))
        groups += (layers + (3 + (learned.benign is not None)) * LENS_LAYERS) * positions * width * BFLOAT16
        rows = min(DIFFERENCE_ROWS, learned.tokens, int(tokens))
        sides = LEARNED_SIDES + (learned.benign is not None)
        groups += _difference_layers(request, model) * sides * rows * width * BFLOAT16
    if sae is None:
        return groups
    rows = min(sae.tokens // SAE_EPOCHS, int(every_token)) + min(HELDOUT_ROWS, int(tokens))
    stored = 2 * len(_sae_layers(sae, model)) * width * BFLOAT16 * rows
    return groups + int(stored * (1.5 if sae.random_weights else 1.0))
