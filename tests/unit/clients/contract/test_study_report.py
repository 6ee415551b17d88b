"""The report of a study as documents hold it."""

from __future__ import annotations

import pytest

from layerdrift.contract.report import Measured
from layerdrift.contract.study_report import MetricName, StudyMetric, StudyReport
from tests.builders.studies import made_study


def test_a_report_survives_being_stored() -> None:
    made = made_study()
    assert StudyReport.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize(
    ("name", "higher"),
    [("accuracy", True), ("preferences_accuracy", True), ("answers_perplexity", False), ("perplexity", False)],
)
def test_of_perplexities_the_smaller_one_is_better(name: MetricName, higher: bool) -> None:
    assert StudyMetric(name=name, value=Measured(value=1.0)).higher_is_better is higher
