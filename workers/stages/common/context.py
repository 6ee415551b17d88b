"""The inputs that every stage of a job shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from layerdrift.contract.request import AnalysisRequest
from workers.stages.common.checkpointing import NO_CHECKPOINTING, Checkpointing
from workers.stages.common.finished_trainings import FinishedTrainings
from workers.stages.common.inputs import Checkpoint, Resolved
from workers.stages.common.progress import OnProgress


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What every stage is given.

    folder: the job's own, removed when it ends. scratch_bytes: what stages may write there.
    on_progress: of the stage that runs. checkpointing: where long trainings keep the states that a later worker needs.
    finished: where trainings of the base model lie that another analysis may take over; None: nowhere.
    """

    request: AnalysisRequest
    folder: Path
    scratch_bytes: float
    on_progress: OnProgress
    checkpointing: Checkpointing = NO_CHECKPOINTING
    finished: FinishedTrainings | None = None

    def part(self, on_progress: OnProgress) -> Self:
        """The same for a part of the stage."""
        return replace(self, on_progress=on_progress)

    def with_pair(self, resolved: Resolved, tuned: Checkpoint) -> PairContext:
        """The context of the stages after `resolve` and `finetune`."""
        return PairContext(
            request=self.request,
            folder=self.folder,
            scratch_bytes=self.scratch_bytes,
            on_progress=self.on_progress,
            checkpointing=self.checkpointing,
            finished=self.finished,
            resolved=resolved,
            tuned=tuned,
        )


@dataclass(frozen=True, kw_only=True)
class PairContext(StageContext):
    """A `StageContext` with both checkpoints.

    resolved: what stage `resolve` left. tuned: the checkpoint that was given, or that the fine-tune made.
    """

    resolved: Resolved
    tuned: Checkpoint
