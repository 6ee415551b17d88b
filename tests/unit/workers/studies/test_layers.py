"""Layers over all members."""

from __future__ import annotations

import numpy as np
import pytest

from tests.builders.studies import made_study, member_report, study_request


def test_a_layer_is_general_for_a_task_if_it_is_in_all_of_its_members() -> None:
    reports = {
        "reviews-0": member_report([0, 0.05, 0.08, 0.3]),
        "reviews-1": member_report([0, 0.05, 0.12, 0.3]),
        "spam-0": member_report([0, 0.15, 0.2, 0.3]),
        "spam-1": member_report([0, 0.15, 0.2, 0.3]),
    }
    layers = made_study(reports=reports).layers
    assert [layer.general for layer in layers] == ["all", "some", "none", "none"]
    assert layers[1].general_for == ["reviews"]
    assert (layers[2].mixed_for, layers[2].changed_for) == (["reviews"], ["spam"])


def test_a_drift_whose_interval_has_the_ceiling_inside_is_neither_general_nor_changed() -> None:
    drifts = {"reviews-0": 0.085, "reviews-1": 0.095, "spam-0": 0.105, "spam-1": 0.115}
    layer = made_study(reports={name: member_report([0, drift]) for name, drift in drifts.items()}).layers[1]
    assert (layer.general_for, layer.mixed_for, layer.changed_for) == ([], ["reviews", "spam"], [])


def test_a_layer_that_did_not_move_is_general_in_whatever_zone_it_lies() -> None:
    reports = {name: member_report([0, 0.5, 0.6], general=0) for name in ("reviews-0", "spam-0")}
    study = made_study(reports=reports)
    assert study.members[0].measured[0].zone != "general"
    assert [layer.general for layer in study.layers] == ["all", "none", "none"]


def test_members_that_failed_have_no_say() -> None:
    reports = {"reviews-0": member_report([0, 0.05]), "spam-0": member_report([0, 0.2])}
    layers = made_study(reports=reports).layers
    assert [layer.general for layer in layers] == ["all", "some"]
    assert layers[1].seed_sd.value is None
    assert layers[1].seed_sd.undefined


def test_the_spread_over_seeds_and_tasks_is_by_hand() -> None:
    drifts = {"reviews-0": 0.1, "reviews-1": 0.2, "spam-0": 0.5, "spam-1": 0.7}
    layer = made_study(reports={name: member_report([0, drift]) for name, drift in drifts.items()}).layers[1]
    within = ((0.05**2) * 2 + (0.1**2) * 2) / 2
    between = np.var([0.15, 0.6], ddof=1) - within / 2
    assert layer.seed_sd.value == pytest.approx(np.sqrt(within))
    assert layer.task_sd.value == pytest.approx(np.sqrt(between))
    assert layer.task_share.value == pytest.approx(between / (between + within))
    assert layer.reseeding == pytest.approx(4.302653 * np.sqrt(2 * within))


def test_one_task_tells_of_seeds_alone() -> None:
    members = [one.model_dump() for one in study_request().members[:2]]
    reports = {"reviews-0": member_report([0, 0.1]), "reviews-1": member_report([0, 0.2])}
    layer = made_study(study_request(members=members), reports).layers[1]
    assert layer.seed_sd.value is not None
    assert (layer.task_share.value, layer.task_p) == (None, None)
    assert layer.task_share.undefined is not None
    assert layer.task_share.undefined.startswith("no recipe has two repeats in each of two tasks")


def test_two_data_sets_of_one_task_are_no_two_tasks() -> None:
    members = [
        {"name": f"{size}-{seed}", "task": "reviews", "seed": seed, "dataset": {"uri": f"s3://data/{size}.csv"}}
        for size in ("small", "large")
        for seed in (0, 1)
    ]
    drifts = {"small-0": 0.1, "small-1": 0.11, "large-0": 0.5, "large-1": 0.51}
    reports = {name: member_report([0, drift]) for name, drift in drifts.items()}
    layer = made_study(study_request(members=members), reports).layers[1]
    assert layer.seed_sd.value == pytest.approx(0.01 / np.sqrt(2))
    assert (layer.task_p, layer.task_share.value) == (None, None)


def test_a_task_without_a_report_is_not_counted_among_all() -> None:
    report = made_study(reports={name: member_report([0, 0.05]) for name in ("reviews-0", "reviews-1")})
    assert [layer.general for layer in report.layers] == ["some", "some"]
    assert report.best is None
