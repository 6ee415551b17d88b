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
from backends.jobs.studies import cancel_made, ready
from layerdrift.contract.analysis import Progress, Status
from layerdrift.contract.request import AnalysisRequest, FineTune
from layerdrift.contract.study import TrialKind
from layerdrift.contract.study_report import LoraTrialResult, StudyLora, StudyReport
from workers.studies.advice import lora
from workers.studies.outcomes import DELETED, Outcome, metric
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
    """Submits the trials that a study asks for and does not have yet; whether it now waits for them.

    The analyses are stored first: a worker that dies in between is followed by one that finds them.
    """
    if study.request.lora_trial is None or study.trials:
        return False
    trials = [_submitted(deployment, trial, job) for trial, job in _trials(study, outcomes, jobs)]
    if not trials:
        return False

    def waiting(found: StudyRecord) -> StudyRecord:
        if found.status.final or found.cancel_requested or found.attempts != study.attempts:
            return found
        return found.model_copy(update={"trials": trials, "status": Status.QUEUED, "attempts": 0})

    stored = deployment.studies.update(study.id, waiting)
    if stored.trials != trials:  # it was cancelled, or opened again
        cancel_made(deployment.jobs, trials, study.tenant)
        return False
    if ready(deployment.jobs, stored):  # all of them were there already
        deployment.queue.announce(stored)
    logger.info("%s: %d trials of adapters were submitted", study.id, len(trials))
    return True


def _submitted(deployment: Deployment, trial: TrialRecord, job: JobRecord) -> TrialRecord:
    record, to_run = deployment.jobs.submit(job)
    if to_run:
        deployment.queue.announce(record)
    return trial.model_copy(update={"made": to_run})


def _trials(
    study: StudyRecord, outcomes: Sequence[Outcome], jobs: Sequence[JobRecord | None]
) -> Iterator[tuple[TrialRecord, JobRecord]]:
    """For each task, from its first full fine-tune that has a report."""
    advice = lora(outcomes)
    if advice is None:
        return
    done: set[str] = set()
    for outcome, job in zip(outcomes, jobs, strict=True):
        finetune, report = outcome.request.finetune, outcome.report
        if job is None or report is None or finetune is None or finetune.method != "full" or outcome.task in done:
            continue
        done.add(outcome.task)
        for trial in chosen(study, advice, len(report.layers) - 1):
            name = f"{outcome.name}: LoRA on {trial.kind} layers"
            made = _job(study, job, asked(job.request, finetune, trial, name))
            record = TrialRecord(
                name=name,
                task=outcome.task,
                kind=trial.kind,
                layers=list(trial.layers),
                rank=trial.rank,
                analysis_id=made.id,
                made=False,
            )
            yield record, made


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


def with_trials(report: StudyReport, trials: Sequence[tuple[TrialRecord, Outcome | None]]) -> StudyReport:
    """The report with what became of the trials; None: somebody deleted the analysis."""
    if report.lora is None or not trials:
        return report
    whole = {trial.task: outcome for trial, outcome in trials if trial.kind == "all"}
    results = [_result(trial, outcome, whole.get(trial.task)) for trial, outcome in trials]
    return report.model_copy(update={"lora": report.lora.model_copy(update={"trials": results})})


def _result(trial: TrialRecord, outcome: Outcome | None, whole: Outcome | None) -> LoraTrialResult:
    missing = LoraTrialResult(
        task=trial.task,
        kind=trial.kind,
        layers=trial.layers,
        rank=trial.rank,
        analysis_id=trial.analysis_id,
        error=outcome.error if outcome is not None else DELETED,
    )
    if outcome is None or outcome.report is None:
        return missing
    test = None if whole is None or whole is outcome else next(tested(trial.task, whole, outcome), None)
    trained = outcome.report.finetune
    found = {
        "trainable_parameters": trained.trainable_parameters if trained is not None else None,
        "metric": metric(outcome.report),
        "against_all": test.difference if test is not None else None,
        "p": test.p if test is not None else None,
    }
    return missing.model_copy(update=found)
