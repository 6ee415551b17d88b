from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from tests.builders.checkpoints import InMemory
from tests.builders.models import save_model, tiny_bert
from tests.builders.stages import resolved, stage_context
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.context import StageContext
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.progress import NO_NUMBERS, Numbers


def other_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
    """Another one than that of the builder."""


def test_the_context_of_a_pair_has_all_that_the_stages_before_had(tmp_path: Path) -> None:
    context = stage_context(
        tmp_path, scratch_bytes=123, on_progress=other_progress, checkpointing=Checkpointing(InMemory(), 7.0)
    )
    given = resolved(save_model(tiny_bert(blocks=1), tmp_path / "base"), texts=1)
    tuned = Checkpoint(tmp_path, "file:///tuned", "1" * 64)
    pair = context.with_pair(given, tuned)
    for field in fields(StageContext):
        assert getattr(pair, field.name) is getattr(context, field.name), field.name
    assert (pair.resolved, pair.tuned) == (given, tuned)


def test_a_part_of_a_stage_has_its_own_progress_and_leaves_the_stages(tmp_path: Path) -> None:
    context = stage_context(tmp_path)
    part = context.part(other_progress)
    assert part.on_progress is other_progress
    assert context.on_progress is not other_progress
    assert part.folder == context.folder
