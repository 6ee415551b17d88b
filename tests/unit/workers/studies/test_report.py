"""The report of a study as a whole: holes, warnings, training curves."""

from __future__ import annotations

from typing import Any

import pytest

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import Report
from tests.builders.studies import made_study, member_report, study_request

FOUR = ("reviews-0", "reviews-1", "spam-0", "spam-1")


def codes(reports: dict[str, Report], **changes: Any) -> list[str]:
    return [warning.code for warning in made_study(study_request(**changes), reports).warnings]


def test_members_stay_in_order_and_a_hole_is_named() -> None:
    report = made_study(reports={name: member_report([0, 0.1]) for name in FOUR[1:]})
    assert [member.name for member in report.members] == list(FOUR)
    assert report.warnings[0].code == "members_missing"
    assert "reviews-0" in report.warnings[0].message


def test_without_any_report_there_is_none() -> None:
    with pytest.raises(InputError, match="no member of the study has a report"):
        made_study(reports={"nobody": member_report([0, 0.1])})


def test_reports_of_other_depths_are_refused() -> None:
    with pytest.raises(InputError, match="different numbers of layers: reviews-0 2, spam-0 3"):
        made_study(reports={"reviews-0": member_report([0, 0.1]), "spam-0": member_report([0, 0.1, 0.2])})


def test_other_texts_are_warned_of_and_for_one_task_its_ranking_is() -> None:
    other = member_report([0, 0.1], dataset=member_report([0, 0.1]).dataset.model_copy(update={"sha256": "e" * 64}))
    same = member_report([0, 0.1])
    assert "drift_on_other_texts" in codes({"reviews-0": same, "spam-0": other})
    assert "metrics_on_other_texts" not in codes({"reviews-0": same, "spam-0": other})
    assert "metrics_on_other_texts" in codes({"reviews-0": same, "reviews-1": other})
    assert "metrics_on_other_texts" in codes(dict.fromkeys(FOUR, same))  # a seed draws the texts too
    data = {"uri": "s3://d/a.csv"}
    members = [{"name": name, "tuned": {"uri": f"s3://m/{name}"}, "dataset": data} for name in FOUR]
    assert codes(dict.fromkeys(FOUR, same), members=members) == []


def test_other_settings_are_warned_of_by_name() -> None:
    own = member_report([0, 0.1])
    request = own.request.model_copy(update={"analysis": own.request.analysis.model_copy(update={"max_tokens": 500})})
    other = own.model_copy(update={"request": request})
    report = made_study(reports={"reviews-0": own, "spam-0": other})
    (warning,) = [one for one in report.warnings if one.code == "settings_differ"]
    assert "analysis.max_tokens" in warning.message


def test_few_repeats_are_warned_of_and_many_are_not() -> None:
    reports = {name: member_report([0, 0.1 + place / 100]) for place, name in enumerate(FOUR)}
    assert "few_repeats" in codes(reports)
    members = [{"name": str(seed), "task": "t", "seed": seed, "dataset": {"uri": "s3://d/a.csv"}} for seed in range(6)]
    many = {str(seed): member_report([0, 0.1 + seed / 100]) for seed in range(6)}
    assert codes(many, members=members) == ["drift_on_other_texts", "metrics_on_other_texts"]


def test_curves_are_of_fine_tunes_with_snapshots_and_of_checkpoints_of_one_run() -> None:
    trajectory = {"steps": [5, 10], "drift": [[0, 0.1], [0, 0.2]], "relative_l2": [[0, 0.1]] * 2, "tokens": 100}
    data = {"uri": "s3://d/a.csv"}
    members = [{"name": "tuned here", "dataset": data}] + [
        {
            "name": f"step {step}",
            "tuned": {"uri": f"s3://models/{step}"},
            "dataset": data,
            "snapshot": {"run": "elsewhere", "step": step},
        }
        for step in (200, 100)
    ]
    reports = {
        "tuned here": member_report([0, 0.2], trajectory=trajectory),
        "step 200": member_report([0, 0.6]),
        "step 100": member_report([0, 0.3]),
    }
    report = made_study(study_request(members=members), reports)
    assert [(curve.run, curve.steps) for curve in report.training] == [
        ("tuned here", [5, 10]),
        ("elsewhere", [100, 200]),
    ]
    assert report.training[1].drift == [[0, 0.3], [0, 0.6]]


def test_the_best_is_of_the_only_task() -> None:
    assert made_study().best is None
