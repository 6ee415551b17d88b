from __future__ import annotations

import pytest

from workers.stages.common.progress import NO_NUMBERS, Numbers, Spans


class Heard:
    """What a stage reported."""

    def __init__(self) -> None:
        self.fractions: list[float] = []
        self.details: list[str] = []

    def __call__(self, fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS, /) -> None:
        self.fractions.append(fraction)
        self.details.append(detail)


def test_parts_take_their_share_in_the_order_of_their_plan() -> None:
    heard = Heard()
    spans = Spans(heard, {"reading": 1.0, "training": 3.0})
    spans.span("reading")(1.0)
    spans.span("training")(0.5, "step 5")
    spans.span("training")(1.0)
    assert heard.fractions == pytest.approx([0.25, 0.625, 1.0])
    assert heard.details == ["reading", "step 5", "training"]


def test_a_part_that_nobody_planned_shows_its_detail_and_moves_nothing() -> None:
    heard = Heard()
    spans = Spans(heard, {"reading": 1.0, "training": 1.0})
    spans.span("reading")(1.0)
    spans.span("added later")(0.9, "half way")
    spans.span("training")(1.0)
    assert heard.fractions == pytest.approx([0.5, 0.5, 1.0])
    assert heard.details[1] == "half way"


def test_a_planned_part_that_does_not_run_is_passed_over() -> None:
    heard = Heard()
    spans = Spans(heard, {"reading": 1.0, "skipped": 2.0, "training": 1.0})
    spans.span("reading")(1.0)
    spans.span("training")(0.0)
    assert heard.fractions == pytest.approx([0.25, 0.75])


def test_progress_never_goes_back_nor_beyond_its_part() -> None:
    heard = Heard()
    spans = Spans(heard, {"one": 1.0, "other": 1.0})
    spans.span("one")(7.0)
    spans.span("one")(0.1)
    assert heard.fractions == pytest.approx([0.5, 0.5])


def test_a_stage_of_parts_that_cost_nothing_has_no_progress_to_show() -> None:
    heard = Heard()
    Spans(heard, {"nothing": 0.0}).span("nothing")(1.0)
    assert heard.fractions == [0.0]
