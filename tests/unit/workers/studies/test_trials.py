"""Trials of adapters: which layers, which fine-tune, and what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.jobs.records import JobRecord, StudyRecord, TrialRecord
from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.request import FineTune
from layerdrift.contract.study import TrialKind
from layerdrift.contract.study_report import LoraLayer, StudyLora
from tests.builders.records import record
from tests.builders.stores import MemoryDeployment, MemoryStudies
from tests.builders.studies import STUDY_ID, made_study, member_report, outcomes, study_request
from tests.builders.study_records import study_record
from workers.results.text_scores import TextScores
from workers.studies.outcomes import Outcome
from workers.studies.trials import Trial, _trials, asked, begun, chosen, with_trials


def advice(*changes: float, rank: int | None = 8) -> StudyLora:
    layers = [
        LoraLayer(layer=layer, change=change, rank=rank, top8=0.95, top16=0.99) for layer, change in enumerate(changes)
    ]
    return StudyLora(members=["a"], layers=layers)


def study(**trial: Any) -> StudyRecord:
    made, _ = study_record((Status.SUCCEEDED, Status.SUCCEEDED))
    return made.model_copy(update={"request": study_request(lora_trial=trial)})


def test_the_layers_that_changed_most_all_and_as_many_others_are_tried() -> None:
    most, whole, drawn = chosen(study(), advice(9.0, 0.1, 0.5, 0.2, 0.4), blocks=4)
    assert most == Trial("chosen", (2, 4), 8)  # the embeddings, layer 0, have no adapters
    assert whole == Trial("all", (1, 2, 3, 4), 8)
    assert (drawn.kind, len(drawn.layers), drawn.rank) == ("random", 2, 8)
    assert drawn.layers != most.layers
    assert chosen(study(), advice(9.0, 0.1, 0.5, 0.2, 0.4), blocks=4)[2] == drawn


def test_the_request_may_name_how_many_and_which_rank() -> None:
    most, whole = chosen(study(layers=9, rank=3), advice(0.0, 0.1, 0.2), blocks=2)
    assert (most.layers, most.rank) == ((1, 2), 3)
    assert whole.kind == "all"  # with all layers chosen there are no others to draw
    assert chosen(study(), advice(0.0, 0.1, 0.2, rank=None), blocks=2)[0].rank == 16


def test_a_trial_is_the_full_fine_tune_by_lora_on_its_layers() -> None:
    request = study_request().analyses()[0].request
    full = FineTune(epochs=7, learning_rate=2e-5, freeze_first=2, checkpoints=3)
    found = asked(request, full, Trial("chosen", (2, 4), 8), "a trial")
    made = found.finetune
    assert made is not None
    assert (made.method, made.epochs, made.freeze_first, made.checkpoints) == ("lora", 7, 0, 0)
    assert made.learning_rate == pytest.approx(2e-4)
    assert made.lora is not None
    assert (made.lora.rank, made.lora.alpha, made.lora.layers) == (8, 16, [2, 4])
    assert (found.seed, found.dataset, found.analysis.sae) == (request.seed, request.dataset, None)


def standing(home: Path, **changes: Any) -> tuple[MemoryDeployment, StudyRecord, list[JobRecord]]:
    """A study of two tasks whose members have ended."""
    request = study_request(similarity=False, **changes)
    jobs = [
        record(analysis_id=f"an_{letter * 26}").model_copy(update={"status": Status.SUCCEEDED, "request": one.request})
        for letter, one in zip("abcd", request.analyses(), strict=True)
    ]
    base, _ = study_record((Status.SUCCEEDED, Status.SUCCEEDED))
    made = base.model_copy(update={"request": request, "status": Status.RUNNING, "attempts": 1})
    deployment = MemoryDeployment(home, *jobs)
    deployment.studies = MemoryStudies(made)
    return deployment, made, jobs


REPORTS = {name: member_report([0.0, 0.1, 0.2, 0.3]) for name in ("reviews-0", "reviews-1", "spam-0", "spam-1")}


def test_trials_are_submitted_once_for_each_task_and_the_study_waits_for_them(tmp_path: Path) -> None:
    deployment, made, jobs = standing(tmp_path, lora_trial={})
    done = outcomes(made.request, REPORTS)
    assert begun(deployment.given, made, done, jobs)
    waiting = deployment.studies.get(STUDY_ID)
    assert (waiting.status, waiting.attempts) == (Status.QUEUED, 0)
    assert [(one.task, one.kind) for one in waiting.trials] == [
        (task, kind) for task in ("reviews", "spam") for kind in ("chosen", "all", "random")
    ]
    assert deployment.queue.announced == [one.analysis_id for one in waiting.trials]
    assert len({one.analysis_id for one in waiting.trials}) == 6
    assert not begun(deployment.given, waiting, done, jobs)


def test_without_a_full_fine_tune_or_a_wish_there_are_no_trials(tmp_path: Path) -> None:
    deployment, made, jobs = standing(tmp_path)
    assert not begun(deployment.given, made, outcomes(made.request, REPORTS), jobs)
    deployment, made, jobs = standing(tmp_path, lora_trial={}, finetune={"method": "lora"})
    assert not begun(deployment.given, made, outcomes(made.request, REPORTS), jobs)
    assert deployment.queue.announced == []


def test_a_study_that_was_opened_again_meanwhile_gets_no_trials(tmp_path: Path) -> None:
    deployment, made, jobs = standing(tmp_path, lora_trial={})
    deployment.studies.records[STUDY_ID] = made.model_copy(update={"attempts": 0, "status": Status.QUEUED})
    assert not begun(deployment.given, made, outcomes(made.request, REPORTS), jobs)
    assert deployment.studies.get(STUDY_ID).trials == []
    assert {deployment.jobs.get(id_).status for id_ in deployment.queue.announced} == {Status.CANCELLED}


def test_a_worker_that_follows_a_lost_one_finds_its_trials(tmp_path: Path) -> None:
    deployment, made, jobs = standing(tmp_path, lora_trial={})
    done = outcomes(made.request, REPORTS)
    deployment.studies.fails = UnavailableError("the worker is gone")
    with pytest.raises(UnavailableError):
        begun(deployment.given, made, done, jobs)
    before = list(deployment.queue.announced)
    deployment.studies.fails = None
    assert begun(deployment.given, made, done, jobs)
    assert [one.analysis_id for one in deployment.studies.get(STUDY_ID).trials] == before
    assert deployment.queue.announced == before


@pytest.mark.parametrize("meanwhile", [{"cancel_requested": True}, {"status": Status.CANCELLED}])
def test_trials_of_a_study_that_is_cancelled_meanwhile_end_with_it(tmp_path: Path, meanwhile: dict[str, Any]) -> None:
    deployment, made, jobs = standing(tmp_path, lora_trial={})
    done = outcomes(made.request, REPORTS)
    posted_before = next(iter(_trials(made, done, jobs)))[1]
    deployment.jobs.records[posted_before.id] = posted_before
    deployment.studies.records[STUDY_ID] = made.model_copy(update=meanwhile)
    assert not begun(deployment.given, made, done, jobs)
    found = [deployment.jobs.get(id_).status for id_ in deployment.queue.announced]
    assert found == [Status.CANCELLED] * 5
    assert deployment.jobs.get(posted_before.id).status is Status.QUEUED


def tried(kind: TrialKind, task: str = "reviews") -> TrialRecord:
    return TrialRecord(name="x", task=task, kind=kind, layers=[2], rank=8, analysis_id=f"an_{kind}", made=True)


def test_a_trial_that_was_deleted_or_failed_is_named() -> None:
    failed = outcomes(study_request(), {})[0]
    report = with_trials(made_study(), [(tried("all"), None), (tried("chosen"), failed)])
    assert report.lora is not None
    assert [(one.kind, one.error, one.metric) for one in report.lora.trials] == [
        ("all", "its analysis was deleted", None),
        ("chosen", "the disk was full", None),
    ]


def test_what_became_of_the_trials_is_told_beside_all_layers() -> None:
    like = outcomes(study_request(), REPORTS)[0]
    trials: list[tuple[TrialRecord, Outcome | None]] = []
    given: tuple[tuple[TrialKind, int], ...] = (("chosen", 35), ("all", 40), ("random", 10))
    for kind, right in given:
        scores = TextScores(
            name="accuracy",
            texts=tuple(map(str, range(40))),
            units=tuple(range(40)),
            sums=tuple(float(number < right) for number in range(40)),
            counts=(1.0,) * 40,
        )
        trials.append((tried(kind), replace(like, scores=scores)))
    report = with_trials(made_study(), trials)
    assert report.lora is not None
    most, whole, drawn = report.lora.trials
    assert whole.against_all is None
    assert most.against_all is not None
    assert most.against_all.value == pytest.approx(-5 / 40)
    assert drawn.p is not None
    assert drawn.p < 0.001 < (most.p or 0.0)
