"""The advice on adapters, tried: LoRA on the layers that changed most, on all, and on as many random ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from backends.deployment import Deployment
from backends.jobs.identity import analysis_id
from backends.jobs.records import JobRecord, StudyRecord, TrialRecord
from backends.jobs.studies import ready
from layerdrift.contract.analysis import Progress, Status
from layerdrift.contract.request import AnalysisRequest, FineTune
from layerdrift.contract.study import TrialKind
from layerdrift.contract.study_report import LoraTrialResult, StudyLora, StudyReport
from workers.studies.advice import lora
from workers.studies.outcomes import Outcome, metric
from workers.studies.paired import tested

ALPHA = 2
"""Times the rank: the scaling of every trial, so that ranks are comparable."""

FASTER = 10.0
"""Times the learning rate of the full fine-tune, which LoRA needs."""

logger = logging.getLogger(__name__)


class Trial(NamedTuple):
    """One set of layers for one task, counted in blocks from 1."""

    kind: TrialKind
    layers: tuple[int, ...]
    rank: int


def begun(
    deployment: Deployment, study: StudyRecord, outcomes: Sequence[Outcome], jobs: Sequence[JobRecord | None]
) -> bool:
    """Submits the trials that a study asks for and does not have yet; whether it now waits for them."""
    advice = lora(outcomes)
    if study.request.lora_trial is None or study.trials or advice is None:
        return False
    made = list(_trials(study, outcomes, jobs, advice))
    if not made:
        return False

    def waiting(found: StudyRecord) -> StudyRecord:
        if found.status.final or found.attempts != study.attempts:
            return found
        trials = [trial for trial, _ in made]
        return found.model_copy(update={"trials": trials, "status": Status.QUEUED, "attempts": 0})

    stored = deployment.studies.update(study.id, waiting)
    if not stored.trials:
        return False
    for _, job in made:
        record, to_run = deployment.jobs.submit(job)
        if to_run:
            deployment.queue.announce(record)
    if ready(deployment.jobs, stored):  # all of them were there already
        deployment.queue.announce(stored)
    logger.info("%s: %d trials of adapters were submitted", study.id, len(made))
    return True


def _trials(
    study: StudyRecord, outcomes: Sequence[Outcome], jobs: Sequence[JobRecord | None], advice: StudyLora
) -> Iterator[tuple[TrialRecord, JobRecord]]:
    """For each task, from its first full fine-tune that has a report."""
    done: set[str] = set()
    for outcome, job in zip(outcomes, jobs, strict=True):
        finetune, report = outcome.request.finetune, outcome.report
        if job is None or report is None or finetune is None or finetune.method != "full" or outcome.task in done:
            continue
        done.add(outcome.task)
        for trial in chosen(study, advice, len(report.layers) - 1):
            name = f"{outcome.name}: LoRA on {trial.kind} layers"
            request = asked(job.request, finetune, trial, name)
            record = _job(study, job, request)
            yield (
                TrialRecord(
                    name=name,
                    task=outcome.task,
                    kind=trial.kind,
                    layers=list(trial.layers),
                    rank=trial.rank,
                    analysis_id=record.id,
                ),
                record,
            )


def chosen(study: StudyRecord, advice: StudyLora, blocks: int) -> list[Trial]:
    """The layers that changed most, all of them, and as many random ones, which the study's seed draws."""
    settings = study.request.lora_trial
    if settings is None:
        raise ValueError("the study asks for no trial")
    count = min(settings.layers or math.ceil(blocks / 2), blocks)
    inside = [one for one in advice.layers if one.layer >= 1]
    best = sorted(inside, key=lambda one: one.change, reverse=True)[:count]
    rank = settings.rank or (8 if all(one.rank == 8 for one in best) else 16)
    most = tuple(sorted(one.layer for one in best))
    found = [Trial("chosen", most, rank), Trial("all", tuple(range(1, blocks + 1)), rank)]
    if len(most) < blocks:
        generator = np.random.default_rng(study.request.seed)
        drawn = most
        while drawn == most:
            drawn = tuple(sorted(int(one) for one in 1 + generator.choice(blocks, len(most), replace=False)))
        found.append(Trial("random", drawn, rank))
    return found


def asked(request: AnalysisRequest, finetune: FineTune, trial: Trial, name: str) -> AnalysisRequest:
    """The same fine-tune by LoRA on some layers; freezing, snapshots and further fine-tunes are left out."""
    adapters = {"rank": trial.rank, "alpha": ALPHA * trial.rank, "dropout": 0.0, "layers": list(trial.layers)}
    body = finetune.model_dump() | {
        "method": "lora",
        "lora": adapters,
        "learning_rate": min(1.0, FASTER * finetune.learning_rate),
        "freeze_first": 0,
        "checkpoints": 0,
    }
    plain = {"noise_floors": ["numerical"], "freeze_sweep": None, "sae": None, "grafts": False, "learned": None}
    analysis = request.analysis.model_copy(update=plain)
    update = {"name": name, "finetune": FineTune.model_validate(body), "analysis": analysis, "webhook": None}
    return request.model_copy(update=update)


def _job(study: StudyRecord, like: JobRecord, request: AnalysisRequest) -> JobRecord:
    """A job of the request with the pins of another, whose base and data it has."""
    return JobRecord(
        id=analysis_id(study.tenant, request, like.pins),
        tenant=study.tenant,
        submitted_by=study.submitted_by,
        priority=study.priority,
        created_at=datetime.now(UTC),
        request=request,
        compared=like.compared,
        pins=like.pins,
        progress=Progress(),
        memory_bytes=like.memory_bytes,
        trace=like.trace,
    )


def with_trials(report: StudyReport, trials: Sequence[Outcome]) -> StudyReport:
    """The report with what became of the trials."""
    if report.lora is None or not trials:
        return report
    whole = {one.task: one for one in trials if kind_of(one) == "all"}
    results = [_result(one, whole.get(one.task)) for one in trials]
    return report.model_copy(update={"lora": report.lora.model_copy(update={"trials": results})})


def _result(outcome: Outcome, whole: Outcome | None) -> LoraTrialResult:
    adapters = outcome.request.finetune.lora if outcome.request.finetune is not None else None
    if adapters is None or adapters.layers is None:
        raise ValueError(f"{outcome.name} is no trial of adapters")
    test = None if whole is None or whole is outcome else next(tested(outcome.task, whole, outcome), None)
    trained = outcome.report.finetune.trainable_parameters if outcome.report and outcome.report.finetune else None
    return LoraTrialResult(
        task=outcome.task,
        kind=kind_of(outcome),
        layers=adapters.layers,
        rank=adapters.rank,
        analysis_id=outcome.analysis_id,
        trainable_parameters=trained,
        metric=metric(outcome.report) if outcome.report is not None else None,
        against_all=test.difference if test is not None else None,
        p=test.p if test is not None else None,
        error=outcome.error,
    )


def kind_of(outcome: Outcome) -> TrialKind:
    """Which set of layers a trial is of, by its name."""
    kinds: tuple[TrialKind, ...] = ("chosen", "all", "random")
    return next(kind for kind in kinds if outcome.name.endswith(f": LoRA on {kind} layers"))
