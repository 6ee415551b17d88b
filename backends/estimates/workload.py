"""How much work a request is: floating-point operations by stage, memory and disk, from sizes that are cheap to know.

Only leading terms: what is estimated is divided by rates that were measured on whole jobs, counted in the same way, so
constant factors cancel. Knows neither Redis nor S3.
"""

from __future__ import annotations

from dataclasses import dataclass

from layerdrift.contract.analysis import StageName
from layerdrift.contract.request import AnalysisRequest

CHARACTERS_OF_TOKEN, SPECIAL_TOKENS = 4.0, 2
FLOAT32, FLOAT64, BFLOAT16 = 4, 8, 2
VIEWS, GROUPS = 3, 20
SPLICED_TEXTS = 200
HELDOUT_ROWS, SAE_EPOCHS = 20_000, 2
NULL_TOKENS, RANDOM_TOKENS = 10_000, 5_000
LOADED = 2_000
"""Matrix products of D x D by which a layer is loaded and its weights are compared."""

DISTANCE_TEXTS = 1_000
PROCESS_BYTES = 1_700 << 20
"""A worker without a model: Python, torch and transformers."""


@dataclass(frozen=True)
class ModelSizes:
    """What config.json and the files of the base model tell.

    blocks: L. width: D. block_parameters: of all blocks. parameters: of the whole. bytes: of the files.
    """

    blocks: int
    width: int
    block_parameters: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class DataSizes:
    """What the first bytes of the data set tell: about how many rows, and tokens of a row."""

    rows: int
    row_tokens: float
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """Of the base model, the data set, and the tuned checkpoint's files in bytes."""

    model: ModelSizes
    data: DataSizes
    tuned_bytes: int


@dataclass(frozen=True)
class Workload:
    """operations: by stage. memory, scratch, download: bytes."""

    operations: dict[StageName, float]
    memory: int
    scratch: int
    download: int


def workload(request: AnalysisRequest, model: ModelSizes, data: DataSizes, tuned_bytes: int = 0) -> Workload:
    """The work of one request.

    Args:
        tuned_bytes: of the tuned checkpoint's files; 0 for a fine-tune.
    """
    settings, finetune, sae = request.analysis, request.finetune, request.analysis.sae
    row_tokens = min(data.row_tokens, settings.max_length or 512)
    texts = min(request.dataset.max_examples, max(1, data.rows))
    tokens = min(float(settings.max_tokens), texts * row_tokens)
    layers, width = model.blocks + 1, model.width

    def forward(count: float, read: float = row_tokens) -> float:
        """Operations of one model on so many tokens, with the attention that texts of this length take."""
        return count * (2 * model.block_parameters + 4 * model.blocks * width * read)

    operations: dict[StageName, float] = {StageName.RESOLVE: float(model.bytes + tuned_bytes + data.bytes)}
    snapshots = 0
    if finetune is not None:
        rows = min(finetune.train_examples or data.rows, max(1, data.rows - texts))
        steps = rows * finetune.epochs / finetune.batch_size
        steps = min(steps, finetune.max_steps or steps)
        trainings = 1 + sum({"reseed": 2, "label_shuffle": 1}.get(name, 0) for name in settings.noise_floors)
        trained = 3 * forward(steps * finetune.batch_size * row_tokens) + 10 * steps * model.parameters
        evaluated = finetune.epochs * forward(min(500, rows) * row_tokens)
        operations[StageName.FINETUNE] = trainings * trained + evaluated
        snapshots = finetune.checkpoints
    nulls = min(tokens, NULL_TOKENS) * (1 + 2 * ("reseed" in settings.noise_floors))
    nulls += min(tokens, NULL_TOKENS) * ("label_shuffle" in settings.noise_floors)
    moments = 6.0 * layers * width**2
    operations[StageName.EXTRACT] = (
        forward(2 * tokens + nulls + min(tokens, RANDOM_TOKENS))
        + (tokens + nulls) * moments
        + layers * width**3 * LOADED
    )
    distances = min(texts, DISTANCE_TEXTS) ** 2 * 20_000
    operations[StageName.COMPARE] = layers * (width**3 * VIEWS * (GROUPS + 8) * 10 + distances)
    if sae is not None:
        sites, latents = 2 * layers, sae.width * width
        rows_read = min(sae.tokens / SAE_EPOCHS, max(data.rows - texts, texts // 2) * row_tokens)
        share = 1 + 0.5 * ("match" in sae.comparisons) + 0.25 * ("warm_start" in sae.comparisons)
        share += 2.0 * ("crosscoder" in sae.comparisons) + 0.5 * sae.random_weights
        training = 4.0 * sites * sae.tokens * latents * width * share
        operations[StageName.SAE] = forward(2 * rows_read) + training
    asked = min(texts, 500)
    grafted = (model.blocks * asked * row_tokens) if settings.grafts else 0.0
    spliced = 6.0 * layers * min(texts, SPLICED_TEXTS) * row_tokens if sae is not None else 0.0
    swept = 0.0
    if settings.freeze_sweep is not None and finetune is not None:
        depths = len(settings.freeze_sweep.depths or range(model.blocks)) + 1
        swept = depths * settings.freeze_sweep.seeds * 0.7 * operations[StageName.FINETUNE]
    along = snapshots * min(tokens, NULL_TOKENS)
    operations[StageName.CAUSAL] = forward(1.5 * grafted + spliced + along) + swept
    operations[StageName.REPORT] = float(layers)
    return Workload(
        operations,
        _memory(request, model, tokens),
        _scratch(request, model, tokens),
        model.bytes + tuned_bytes + data.bytes,
    )


def _memory(request: AnalysisRequest, model: ModelSizes, tokens: float) -> int:
    """The largest of what the stages hold at once."""
    layers, width, sae = model.blocks + 1, model.width, request.analysis.sae
    weights = FLOAT32 * model.parameters
    sums = VIEWS * 3 * layers * width**2 * FLOAT64
    remembered = min(512 << 20, int(2 * FLOAT32 * layers * width * min(tokens, NULL_TOKENS) * 1.3))
    stages = [4 * weights + sums + remembered]
    if request.finetune is not None:
        stages.append(5 * weights)
    if sae is not None:
        latents = sae.width * width
        stacks = 2 * layers * (2 + ("match" in sae.comparisons)) * 2 * latents * width * FLOAT32
        stages.append(2 * stacks + 64 * 1024 * width)
    return PROCESS_BYTES + max(stages)


def _scratch(request: AnalysisRequest, model: ModelSizes, tokens: float) -> int:
    layers, width, sae = model.blocks + 1, model.width, request.analysis.sae
    groups = GROUPS * VIEWS * 3 * layers * width**2 * FLOAT32
    if sae is None:
        return groups
    rows = sae.tokens // SAE_EPOCHS + min(HELDOUT_ROWS, int(tokens))
    return groups + int(2 * layers * width * BFLOAT16 * rows * (1.5 if sae.random_weights else 1.0))
