"""Fine-tunes: their losses, their evaluations, and the drift along them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """Training loss at one step of the fine-tune."""

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class Evaluation(TrainingPoint):
    """Evaluation of the fine-tune on held-out rows."""

    accuracy: float


@dataclass(frozen=True, kw_only=True)
class FineTuneRun:
    """Results of the fine-tuning run."""

    objective: Literal["classification", "sft", "dpo"] = "classification"
    method: str
    precision: Literal["float32", "bfloat16"]
    trainable_parameters: int
    rows: int | None = None
    steps: int
    kept_step: int
    final_loss: float
    losses: list[TrainingPoint]
    held_out_texts: int
    held_out: list[Evaluation]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Drift from the base during the fine-tune; the last entry is the tuned model."""

    steps: list[int]
    drift: list[list[float]]
    relative_l2: list[list[float]]
    tokens: int
