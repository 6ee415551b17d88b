"""Stage `finetune`: makes the tuned checkpoint from the base and the data set: a classifier or a language model.

Also its snapshots, and the further fine-tunes that serve as nulls.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from backends.sources.checkpoint_files import GENERATION_CONFIG, fingerprint, generation_config_of
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest, FineTune, Lora
from workers.models.device import best_device
from workers.models.loading import head_kind, is_multimodal, load_classifier, load_headed, read_config
from workers.models.structure import blocks_of, shares_blocks
from workers.models.texts import positions_of, usable_length
from workers.results.training import FineTuneRun, TrainingPoint
from workers.results.warnings import ReportWarning
from workers.stages.common.context import StageContext
from workers.stages.common.inputs import Checkpoint, Resolved
from workers.stages.common.progress import NO_NUMBERS, Numbers, OnProgress, Spans
from workers.stages.common.training import Recipe, Training, TrainingData, planned_steps, train, training_dtype
from workers.stages.common.training_state import Keeping
from workers.stages.finetune.language import LanguageData, language_data

MAX_LABELS = 1_000
LOSS_POINTS = 100

TUNED = "tuned"
"""The training that makes the tuned model, among the spans of the stage."""

RESEEDS = ("reseed", "reseed-2")
"""Further seeds: with the tuned model's own three, so that how alike seeds are has an interval over them."""


@dataclass(frozen=True)
class Snapshot:
    """The model after so many steps."""

    step: int
    folder: Path


@dataclass(frozen=True)
class FineTuned:
    """What the stage leaves: the checkpoint, how it came to be, and what it is compared with.

    snapshots: along the run, the kept weights last; empty unless asked for. retrained: further fine-tunes by name: one
    on shuffled labels, and under RESEEDS those that differ in their seed alone. warnings: on rows that were left out.
    """

    checkpoint: Checkpoint
    run: FineTuneRun
    snapshots: list[Snapshot] = field(default_factory=list)
    retrained: dict[str, Checkpoint] = field(default_factory=dict)
    warnings: list[ReportWarning] = field(default_factory=list)

    @property
    def reseeds(self) -> list[Checkpoint]:
        """The fine-tunes that differ from the first in their seed alone."""
        return [self.retrained[name] for name in RESEEDS if name in self.retrained]


def finetune(context: StageContext, resolved: Resolved, folder: Path, uri: str) -> FineTuned:
    """Trains a model on the split's training rows and saves it to `folder`; `uri` is where it will be kept.

    The same request gives the same weights on the same kind of machine: head, dropout and order of the rows follow
    the seed.

    Raises:
        InputError: the labels are too many, no row can be used, or the training diverged.
    """
    request, settings = context.request, context.request.finetune
    if settings is None:
        raise ValueError("this request has no fine-tune")
    asked = [name for name in dict.fromkeys(request.analysis.noise_floors) if name != "numerical"]
    nulls = [one for name in asked for one in (RESEEDS if name == "reseed" else (name,))]
    spans = Spans(context.on_progress, dict.fromkeys([TUNED, *nulls], 1.0))
    data = _data(request, resolved, settings)
    recipe = Recipe.of(settings, request.seed)
    weights = _Weights(folder.with_name(f"{folder.name}.steps"), settings, planned_steps(settings, data.rows))
    with _fresh(resolved, data, recipe) as (model, data):
        keeping = weights.keeping(context, TUNED)
        training = train(model, data, recipe, _numbered(spans, TUNED, nulls), weights.at_step, keeping)
        kept = training.best_step if settings.keep == "best" else training.steps
        run = _run(settings, training, kept, model, data)
        snapshots = [
            Snapshot(step, weights.export(step, model, data, weights.folder / f"step-{step:06d}"))
            for step in weights.snapshot_steps
            if step < kept
        ]
        weights.export(kept, model, data, folder)
    if settings.language and generation_config_of(resolved.base.light).exists():
        shutil.copyfile(generation_config_of(resolved.base.light), folder / GENERATION_CONFIG)
    if weights.snapshot_steps:
        snapshots.append(Snapshot(kept, folder))
    retrained: dict[str, Checkpoint] = {}
    for name in nulls:
        of_null = context.part(_numbered(spans, name, nulls))
        retrained[name] = _retrained(name, of_null, resolved, data, kept, folder.with_name(f"{folder.name}.{name}"))
    warnings = [] if isinstance(data, TrainingData) else data.warnings
    return FineTuned(Checkpoint(folder, uri, fingerprint(folder)), run, snapshots, retrained, warnings)


def _numbered(spans: Spans, name: str, nulls: list[str]) -> OnProgress:
    """The progress of one training, with its number. Curves are drawn of the one that makes the tuned model."""
    on_progress, trainings = spans.span(name, ""), 1 + len(nulls)
    if trainings == 1:
        return on_progress
    number = 1 if name == TUNED else 2 + nulls.index(name)

    def numbered(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        on_progress(fraction, f"{number} of {trainings}: {detail}", numbers if name == TUNED else NO_NUMBERS)

    return numbered


Data = TrainingData | LanguageData


def _data(request: AnalysisRequest, resolved: Resolved, settings: FineTune) -> Data:
    if settings.language:
        positions = positions_of(read_config(resolved.base.folder, "/base/uri"))
        return language_data(resolved.tokenizer, resolved.split, settings, positions)
    return training_data(request, resolved)


def training_data(request: AnalysisRequest, resolved: Resolved) -> TrainingData:
    """The split's rows as a classifier reads them; InputError where there are too many labels."""
    labels = sorted({str(row.label) for row in resolved.split.train})
    if len(labels) > MAX_LABELS:
        raise InputError.at(
            "/dataset/label_column", f"{len(labels)} different labels; a classifier supports at most {MAX_LABELS}"
        )
    split = resolved.split
    asked = request.finetune.max_length if request.finetune is not None else None
    return TrainingData(resolved.tokenizer, asked or resolved.length, labels, split.train, split.held_out)


@contextmanager
def fresh_classifier(
    resolved: Resolved, data: TrainingData, recipe: Recipe
) -> Iterator[tuple[PreTrainedModel, TrainingData]]:
    """The base under a new head, with adapters where the method has them, and the data as far as it reads them.

    Torch's generator follows the recipe's seed inside, and is what it was afterwards.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = load_classifier(resolved.base.folder, "/base/uri", best_device(), data.labels)
        _refuse_shared(model, recipe)
        if model.config.pad_token_id is None:  # so that the saved classifier can be run on batches elsewhere
            model.config.pad_token_id = _padding(data.tokenizer)
        if recipe.settings.method == "lora":
            _add_adapters(model, recipe)
        yield model, replace(data, length=usable_length(data.tokenizer, model, data.length))


@contextmanager
def _fresh(resolved: Resolved, data: Data, recipe: Recipe) -> Iterator[tuple[PreTrainedModel, Data]]:
    """The model that is trained, as `fresh_classifier`."""
    if isinstance(data, TrainingData):
        with fresh_classifier(resolved, data, recipe) as made:
            yield made
        return
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = _language_model(resolved)
        _refuse_shared(model, recipe)
        if recipe.settings.method == "lora":
            _add_adapters(model, recipe)
        yield model, data


def _language_model(resolved: Resolved) -> PreTrainedModel:
    folder, pointer = resolved.base.folder, "/base/uri"
    if head_kind(folder, pointer) != "causal_lm":
        detail = "finetune.objective sft and dpo train a causal language model, but the base has no such head"
        raise InputError.at("/finetune/objective", detail)
    if is_multimodal(read_config(folder, pointer)):
        raise InputError.at(pointer, "a multimodal model cannot be fine-tuned here; give the tuned checkpoint instead")
    headed = load_headed(folder, pointer, best_device())
    if headed is None:
        raise InputError.at(pointer, "the base's files do not contain the complete head that config.json names")
    return headed.model


def _refuse_shared(model: PreTrainedModel, recipe: Recipe) -> None:
    if recipe.frozen and shares_blocks(model.base_model):
        raise InputError.at(
            "/finetune/freeze_first",
            f"the blocks of {type(model).__name__} share their weights: freezing one freezes them all. Freeze "
            "nothing, or train only the head (finetune.method head)",
        )


def _padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What batches are padded with where a tokenizer is used as people do: by its padding token, else its last one."""
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((one for one in named if isinstance(one, int)), None)


def _add_adapters(model: PreTrainedModel, recipe: Recipe) -> None:
    """Low-rank adapters on the linear maps of the blocks that are trained, or of those that are asked for; beside them
    only a classifier's head is trained.

    Raises:
        InputError: no layer has a name that was asked for.
    """
    settings = recipe.settings.lora or Lora()
    names = {id(module): name for name, module in model.named_modules()}
    linear = [
        names[id(module)]
        for number, block in enumerate(blocks_of(model.base_model), start=1)
        if number not in recipe.frozen and (settings.layers is None or number in settings.layers)
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    targets = [name for name in linear if _is_asked(name, settings.targets)]
    if linear and not targets:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise InputError.at("/finetune/lora/targets", f"no linear layer of the blocks is named so; they are {known}")
    body = {id(parameter) for parameter in model.base_model.parameters()}
    head = [parameter for parameter in model.parameters() if id(parameter) not in body]
    if targets:
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            target_modules=targets,
        )
        inject_adapter_in_model(config, model)
    else:
        model.base_model.requires_grad_(False)
    for parameter in head:
        parameter.requires_grad_(not recipe.settings.language)


def _is_asked(name: str, asked: list[str] | None) -> bool:
    return asked is None or any(name == one or name.endswith(f".{one}") for one in asked)


def _without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or where it has adapters a copy with them merged into its weights."""
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent), child, module.get_base_layer())
    return merged


class _Weights:
    """The trained weights at the steps that may be wanted again: snapshots, the best so far, the last."""

    def __init__(self, folder: Path, settings: FineTune, steps: int) -> None:
        self.folder = folder
        count = settings.checkpoints
        self.snapshot_steps = sorted({max(1, round(steps * number / count)) for number in range(1, count + 1)})
        self._last = steps
        self._best: int | None = None

    def at_step(self, step: int, training: Training, model: PreTrainedModel) -> None:
        """Keeps the weights where they may be wanted."""
        best = training.best_step if training.held_out else None
        if step not in (*self.snapshot_steps, self._last, best):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        trained = {name: one.detach().contiguous() for name, one in model.named_parameters() if one.requires_grad}
        save_file(trained, self._path(step))
        if self._best not in (None, best, *self.snapshot_steps):
            self._path(self._best or 0).unlink()
        self._best = best

    def keeping(self, context: StageContext, run: str) -> Keeping:
        """Where the training that these are of keeps its state, and these with it."""
        return Keeping(context.checkpointing, f"finetune-{run}", self._parts, self._take)

    def _parts(self) -> Iterator[dict[str, Tensor]]:
        for path in sorted(self.folder.glob("*.safetensors")):
            yield {f"weights/{path.stem}/{name}": one for name, one in load_file(path).items()}

    def _take(self, part: dict[str, Tensor]) -> None:
        """Writes what an earlier worker kept of one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        names = [name.split("/", 2) for name in part]
        step = names[0][1]
        save_file(
            {inner: part[f"{kind}/{step}/{inner}"] for kind, _, inner in names}, self.folder / f"{step}.safetensors"
        )

    def export(self, step: int, model: PreTrainedModel, data: Data, folder: Path) -> Path:
        """Writes the model as it was at that step, in transformers' layout."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in load_file(self._path(step)).items():
                parameters[name].copy_(value)
        _without_adapters(model).save_pretrained(folder)
        data.tokenizer.save_pretrained(folder)
        return folder

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"


def _retrained(name: str, context: StageContext, resolved: Resolved, data: Data, kept: int, folder: Path) -> Checkpoint:
    """A further fine-tune: with another seed, or as many steps on shuffled labels."""
    request = context.request
    if request.finetune is None:
        raise ValueError("this request has no fine-tune")
    settings = request.finetune.model_copy(update={"checkpoints": 0})
    further = 1 + RESEEDS.index(name) if name in RESEEDS else 0
    recipe = Recipe.of(settings, request.seed + further)
    if name == "label_shuffle" and isinstance(data, TrainingData):
        data = data.shuffled(request.seed + 1).without_held_out()
        recipe = replace(recipe, stop_after=kept)
    steps = kept if recipe.stop_after else planned_steps(settings, data.rows)
    weights = _Weights(folder.with_name(f"{folder.name}.steps"), settings, steps)
    with _fresh(resolved, data, recipe) as (model, data):
        keeping = weights.keeping(context, name)
        training = train(model, data, recipe, context.on_progress, weights.at_step, keeping)
        weights.export(training.best_step if settings.keep == "best" else training.steps, model, data, folder)
    return Checkpoint(folder, f"null:{name}", fingerprint(folder))


def _run(settings: FineTune, training: Training, kept: int, model: nn.Module, data: Data) -> FineTuneRun:
    losses = training.losses
    last = losses[-max(1, len(losses) // 10) :]
    span = -(-len(losses) // LOSS_POINTS)
    spans = [(start, losses[start : start + span]) for start in range(0, len(losses), span)]
    dtype = training_dtype(settings, next(model.parameters()).device)
    return FineTuneRun(
        objective=settings.objective,
        method=settings.method,
        precision="bfloat16" if dtype == torch.bfloat16 else "float32",
        trainable_parameters=sum(one.numel() for one in model.parameters() if one.requires_grad),
        rows=data.rows,
        steps=training.steps,
        kept_step=kept,
        final_loss=sum(last) / len(last),
        losses=[TrainingPoint(step=start + len(part), loss=sum(part) / len(part)) for start, part in spans],
        held_out_texts=len(data.held_out),
        held_out=training.held_out,
    )
