"""Which pairs run in layers."""

from __future__ import annotations

from typing import Any

import pytest

from backends.estimates.execution import LAYERED_BYTES, runs_in_layers
from layerdrift.contract.request import AnalysisRequest

PAIR: dict[str, Any] = {"base": {"uri": "s3://m/a"}, "tuned": {"uri": "s3://m/b"}, "dataset": {"uri": "s3://d/x.csv"}}


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({"analysis": {"sae": None}}, LAYERED_BYTES + 1, True),
        ({"analysis": {"sae": None}}, LAYERED_BYTES, False),
        ({}, LAYERED_BYTES + 1, True),
        ({"analysis": {"sae": {"random_weights": True}}}, LAYERED_BYTES + 1, True),
        ({"tuned": None, "finetune": {}}, LAYERED_BYTES + 1, True),
        ({"tuned": None, "finetune": {"checkpoints": 2}}, LAYERED_BYTES + 1, False),
        ({"tuned": None, "finetune": {}, "analysis": {"noise_floors": ["reseed"]}}, LAYERED_BYTES + 1, False),
        ({"tuned": None, "finetune": {}, "analysis": {"freeze_sweep": {}}}, LAYERED_BYTES + 1, False),
    ],
    ids=["large", "small", "autoencoders", "a random model's", "fine-tune", "snapshots", "seeds", "sweep"],
)
def test_large_pairs_run_in_layers_where_nothing_needs_them_whole(
    changes: dict[str, Any], size: int, expected: bool
) -> None:
    assert runs_in_layers(AnalysisRequest.model_validate(PAIR | changes), size) is expected
