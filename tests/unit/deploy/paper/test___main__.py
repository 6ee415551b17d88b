"""The study that the paper's page is made from."""

from __future__ import annotations

from pathlib import Path

from deploy.paper.__main__ import LARGE, SMALL, study
from deploy.paper.inputs import Task

TASKS = [Task("reviews", Path("/data/reviews.csv")), Task("mail", Path("/data/mail.csv"))]


def test_every_task_is_trained_by_both_methods_with_every_seed() -> None:
    asked = study(Path("/models/base"), TASKS, SMALL)
    analyses = asked.analyses()
    assert len(analyses) == 2 * 2 * SMALL.seeds
    assert {one.request.finetune.method for one in analyses if one.request.finetune} == {"full", "lora"}
    assert {one.request.seed for one in analyses} == set(range(SMALL.seeds))
    assert {one.member.task for one in analyses} == {"reviews", "mail"}


def test_a_large_study_has_no_more_members_than_studies_may_have() -> None:
    assert len(study(Path("/models/base"), [*TASKS, Task("tweets", Path("/data/t.csv"))], LARGE).members) == 18
