"""How often states of trainings are saved."""

from __future__ import annotations

import pytest

from tests.builders.checkpoints import InMemory
from workers.stages.common.checkpointing import Checkpointing


@pytest.mark.parametrize(
    ("took", "pause"), [(0.0, 120.0), (6.0, 120.0), (60.0, 1140.0)], ids=["none yet", "quickly", "slowly"]
)
def test_saving_takes_no_more_than_a_twentieth_of_the_time(took: float, pause: float) -> None:
    assert Checkpointing(InMemory(), 120).pause(took) == pytest.approx(pause)
