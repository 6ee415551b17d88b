"""An analysis as clients read it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from layerdrift.contract.analysis import Analysis, Progress, Status
from tests.builders.analyses import analysis


@pytest.mark.parametrize(
    ("status", "final"),
    [("queued", False), ("running", False), ("succeeded", True), ("failed", True), ("cancelled", True)],
)
def test_an_analysis_that_has_ended_stays_as_it_is(status: str, final: bool) -> None:
    assert analysis(status).status.final is final


def test_every_status_is_tried_above() -> None:
    assert [one.value for one in Status] == ["queued", "running", "succeeded", "failed", "cancelled"]


def test_fields_of_a_later_service_are_passed_over() -> None:
    body = analysis().model_dump(mode="json") | {"moons": 3}
    assert Analysis.model_validate(body) == analysis()


def test_what_a_service_of_before_did_not_send_has_a_default() -> None:
    body = analysis().model_dump(mode="json")
    for later in ("compared", "drift", "report", "verdict", "submitted_by", "queued_before", "error"):
        del body[later]
    read = Analysis.model_validate(body)
    assert (read.report, read.verdict, read.queued_before, read.compared) == ("none", None, None, "")


@pytest.mark.parametrize("progress", [{"fraction": 1.01}, {"fraction": -0.1}, {"seconds_left": -1}])
def test_progress_lies_between_nothing_and_all(progress: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Progress.model_validate(progress)


def test_a_status_that_is_not_known_is_refused_rather_than_waited_for() -> None:
    with pytest.raises(ValidationError, match="status"):
        analysis("paused")
