"""A training that is ended and taken up again gives the weights of one that was not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from layerdrift.contract.request import AnalysisRequest
from tests.builders.chats import language_model, resolved_chats
from tests.builders.models import save_model, tiny_bert
from tests.builders.stages import request, resolved, stage_context
from workers.stages.common import checkpointing
from workers.stages.common.checkpointing import Checkpointing
from workers.stages.common.inputs import Resolved
from workers.stages.common.progress import NO_NUMBERS, Numbers
from workers.stages.finetune.stage import FineTuned, finetune


class Ended(Exception):
    """A worker that is gone."""


class Kept:
    """States by run, copied as a bucket would."""

    def __init__(self) -> None:
        self.states: dict[str, list[dict[str, Tensor]]] = {}
        self.numbers: list[int] = []

    def load(self, run: str) -> Iterator[dict[str, Tensor]] | None:
        return iter(self.states[run]) if run in self.states else None

    def save(self, run: str, number: int, parts: Iterable[dict[str, Tensor]]) -> None:
        self.states[run] = [{name: one.clone() for name, one in part.items()} for part in parts]
        self.numbers.append(number)


def asking(**settings: Any) -> AnalysisRequest:
    return AnalysisRequest.model_validate(request().model_dump() | {"tuned": None, "finetune": settings})


def made(asked: AnalysisRequest, given: Resolved, folder: Path, kept: Kept, ends_at: int | None = None) -> FineTuned:
    def on_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
        if numbers.get("step") == ends_at:
            raise Ended

    context = stage_context(folder, asked, on_progress=on_progress, checkpointing=Checkpointing(kept, 0.0))
    return finetune(context, given, folder / "tuned", "s3://x")


@pytest.fixture(autouse=True)
def after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long saving takes."""
    monkeypatch.setattr(checkpointing, "SAVING_SHARE", 1.0)


CHATTY = {"learning_rate": 5e-3, "precision": "float32", "epochs": 2, "batch_size": 16}
TRAININGS: dict[str, dict[str, Any]] = {
    "classifier": {"learning_rate": 3e-3, "precision": "float32", "epochs": 2, "batch_size": 16, "checkpoints": 3},
    "frozen": {"learning_rate": 3e-3, "precision": "float32", "epochs": 2, "batch_size": 16, "freeze_first": 1},
    "sft": {"objective": "sft", "method": "lora", "lora": {"dropout": 0.2}, **CHATTY},
    "cosine": {"objective": "sft", "schedule": "cosine", "warmup": 0.3, **CHATTY},
    "dpo": {"objective": "dpo", **CHATTY},
}


@pytest.mark.parametrize("kind", TRAININGS)
@pytest.mark.parametrize("ends_at", [2, 6])
def test_a_later_worker_ends_with_the_same_weights(kind: str, ends_at: int, tmp_path: Path) -> None:
    asked = asking(**TRAININGS[kind])
    if kind in ("classifier", "frozen"):
        given = resolved(save_model(tiny_bert(0), tmp_path / "base"), texts=40, train=64)
    else:
        given = resolved_chats(language_model(tmp_path / "base"), texts=20, train=64, preferences=kind == "dpo")
    whole = made(asked, given, tmp_path / "whole", Kept())
    kept = Kept()
    with pytest.raises(Ended):
        made(asked, given, tmp_path / "first", kept, ends_at)
    assert kept.numbers == list(range(1, ends_at + 1))
    kept.numbers.clear()
    again = made(asked, given, tmp_path / "second", kept)
    assert kept.numbers[0] == ends_at + 1  # it began where the other had ended
    assert again.checkpoint.fingerprint == whole.checkpoint.fingerprint
    assert [one.loss for one in again.run.losses] == [one.loss for one in whole.run.losses]
    assert again.run.held_out == whole.run.held_out
    assert [one.step for one in again.snapshots] == [one.step for one in whole.snapshots]


def test_a_training_that_had_ended_is_only_exported(tmp_path: Path) -> None:
    asked = asking(**TRAININGS["sft"])
    given, kept = resolved_chats(language_model(tmp_path / "base"), texts=20, train=64), Kept()
    one = made(asked, given, tmp_path / "one", kept)
    kept.numbers.clear()
    other = made(asked, given, tmp_path / "other", kept)
    assert kept.numbers == []
    assert one.checkpoint.fingerprint == other.checkpoint.fingerprint
