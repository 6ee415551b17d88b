"""Advice for all members: the least depth, and where the weights changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from layerdrift.contract.report import Report
from tests.builders.studies import member_report, outcomes, study_request
from workers.studies.advice import freezing, lora


def advising(depth: int, basis: str = "predicted") -> Report:
    return member_report([0, 0.1, 0.2, 0.3], recommendation={"freeze_first": depth, "basis": basis, "evidence": "e"})


def weighed(top8: float | None, top16: float | None = 0.95, norm: float = 0.1, drifts: int = 3) -> Report:
    body = member_report([0.1] * drifts).model_dump()
    part = {"relative_frobenius": norm, "effective_rank": 3.0, "top8_share": top8, "top16_share": top16}
    for layer in body["layers"]:
        layer["weights"] = {} if layer["index"] == 0 else {"mlp": part}
    return Report.model_validate(body)


def test_the_common_depth_is_the_least_and_tells_what_each_member_forgoes() -> None:
    found = freezing(outcomes(study_request(), {"reviews-0": advising(3), "spam-0": advising(1)}))
    assert found is not None
    assert found.depth == 1
    assert [(one.name, one.own, one.forgone) for one in found.members] == [("reviews-0", 3, 2), ("spam-0", 1, 0)]
    assert found.members[0].cost is not None
    assert found.members[0].cost.value == pytest.approx(0.1)  # of the base's layers up to 1, as the builder has it
    assert found.members[0].own_cost is not None
    assert found.members[0].own_cost.value == pytest.approx(0.3)


def test_members_without_advice_are_named_and_do_not_decide() -> None:
    found = freezing(outcomes(study_request(), {"reviews-0": advising(3), "spam-0": advising(0, "none")}))
    assert found is not None
    assert (found.depth, found.without_advice) == (3, ["spam-0"])


def test_nothing_frozen_costs_nothing() -> None:
    found = freezing(outcomes(study_request(), {"reviews-0": advising(0)}))
    assert found is not None
    assert found.members[0].cost is not None
    assert found.members[0].cost.value == 0.0


def test_without_any_advice_there_is_none_in_common() -> None:
    assert freezing(outcomes(study_request(), {"reviews-0": advising(0, "none")})) is None


@pytest.mark.parametrize(("shares", "rank"), [((0.95, 0.99), 8), ((0.5, 0.95), 16), ((0.5, 0.6), None)])
def test_the_rank_is_what_holds_every_members_change(shares: tuple[float, float], rank: int | None) -> None:
    reports = {"reviews-0": weighed(0.99, 0.99), "spam-0": weighed(*shares, norm=0.3)}
    found = lora(outcomes(study_request(), reports))
    assert found is not None
    assert [one.layer for one in found.layers] == [1, 2]
    assert {one.rank for one in found.layers} == {rank}
    assert found.layers[0].change == pytest.approx(0.2)


def test_low_rank_fine_tunes_say_nothing_of_the_rank_that_is_needed() -> None:
    changes: dict[str, Any] = {"finetune": {"method": "lora"}}
    assert lora(outcomes(study_request(**changes), {"reviews-0": weighed(0.99)})) is None


def test_adapters_say_nothing_of_the_rank_that_is_needed() -> None:
    members = [
        {"name": name, "tuned": {"uri": f"s3://m/{name}"}, "dataset": {"uri": "s3://d/a.csv"}} for name in ("a", "b")
    ]
    whole, adapter = outcomes(study_request(members=members), {"a": weighed(0.5, 0.6), "b": weighed(0.99)})
    found = lora([whole, replace(adapter, adapter=True)])
    assert found is not None
    assert found.members == ["a"]


def test_weights_that_did_not_move_have_no_rank() -> None:
    assert lora(outcomes(study_request(), {"reviews-0": weighed(None, None)})) is None
