"""Whether drift over all tokens is that of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from layerdrift.contract.names import ViewName
from workers.results.measured import Measured
from workers.results.similarity import Similarity
from workers.stages.compare.roles import role_warnings


def views(**drift: float) -> dict[Any, Similarity]:
    nothing = Measured(value=0.0)
    return {
        view: Similarity(
            cosine=nothing,
            cosine_centred=nothing,
            relative_l2=nothing,
            relative_l2_centred=nothing,
            cka=Measured(value=1 - value),
            cka_standardized=nothing,
            procrustes=nothing,
        )
        for view, value in drift.items()
    }


def test_a_template_that_moved_alone_is_told_where_it_moved_most() -> None:
    layers = [views(token=0.0, assistant=0.0), views(token=0.1, assistant=0.02, template=0.4, user=0.05)]
    (warning,) = role_warnings([*layers, views(token=0.05, assistant=0.02, template=0.1)])
    assert warning.code == "drift_of_other_roles"
    assert "at layer 1" in warning.message
    assert "mostly that of the chat template's tokens (0.400)" in warning.message


def test_roles_that_moved_against_each_other_are_told_so() -> None:
    (warning,) = role_warnings([views(token=0.068, assistant=0.031, template=0.033, user=0.046)])
    assert "no role alone drifts as much" in warning.message
    assert "mostly" not in warning.message


@pytest.mark.parametrize(
    "layer",
    [
        views(token=0.1, assistant=0.1, template=0.1),
        views(token=0.1, assistant=0.2),
        views(token=0.012, assistant=0.004),
        views(token=0.5),
    ],
)
def test_else_nothing_is_said(layer: dict[ViewName, Similarity]) -> None:
    assert role_warnings([layer]) == []
