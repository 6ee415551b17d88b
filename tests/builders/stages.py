"""Inputs of the stages, on tiny real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.tables.reading import Row
from layerdrift.contract.request import AnalysisRequest
from tests.builders.texts import make_texts
from workers.models.tokenizers import load_tokenizer
from workers.stages.common.context import PairContext, StageContext
from workers.stages.common.inputs import Checkpoint, Resolved, Split
from workers.stages.common.progress import NO_NUMBERS, Numbers
from workers.stages.compare.stage import Compared, compare
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.stage import extract
from workers.stages.finetune.stage import FineTuned, finetune
from workers.stages.sae.rows import SaeRows, sae_rows

SCRATCH_BYTES = 2**28


def request(**changes: Any) -> AnalysisRequest:
    body: dict[str, Any] = {
        "base": {"uri": "file:///base"},
        "tuned": {"uri": "file:///tuned"},
        "dataset": {"uri": "file:///data.csv"},
        "analysis": {"sae": None},
    }
    return AnalysisRequest.model_validate(body | changes)


def on_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
    assert 0 <= fraction <= 1


def labelled(count: int, seed: int = 0) -> list[Row]:
    """Texts whose label is whether they praise."""
    praise = {"good", "great", "bright"}
    return [Row(text, "yes" if praise & set(text.split()) else "no") for text in make_texts(count, seed)]


def resolved(base: Path, texts: int = 120, spare: int = 0, train: int = 0) -> Resolved:
    rows = labelled(texts + spare + train)
    split = Split(rows[:texts], rows[texts : texts + train], rows[texts + train :])
    return Resolved(
        base=Checkpoint(base, "file:///base", "0" * 64),
        tuned=None,
        tokenizer=load_tokenizer(base, "/base/uri"),
        length=128,
        split=split,
        usable_rows=len(rows),
        dataset_sha256="0" * 64,
        warnings=[],
    )


def stage_context(folder: Path, asked: AnalysisRequest | None = None, **more: Any) -> StageContext:
    """Of a job that works in a folder; `more` is other fields than the defaults here."""
    fields: dict[str, Any] = {"scratch_bytes": SCRATCH_BYTES, "on_progress": on_progress} | more
    return StageContext(request=asked or request(), folder=folder, **fields)


def pair_context(
    given: Resolved, tuned: Path | Checkpoint, folder: Path, asked: AnalysisRequest | None = None, **more: Any
) -> PairContext:
    """The same with a base in `given` and a tuned checkpoint."""
    checkpoint = Checkpoint(tuned, "file:///tuned", "1" * 64) if isinstance(tuned, Path) else tuned
    return stage_context(folder, asked, **more).with_pair(given, checkpoint)


def fine_tuned(asked: AnalysisRequest, given: Resolved, folder: Path) -> FineTuned:
    """What stage `finetune` leaves in a folder."""
    return finetune(stage_context(folder, asked), given, folder, "s3://x")


def compared(base: Path, tuned: Path, folder: Path) -> tuple[Extracted, Compared]:
    context = pair_context(resolved(base), tuned, folder)
    extracted = extract(context, None)
    return extracted, compare(context, extracted)


def extracted_pair(
    given: Resolved, tuned: Path, folder: Path, asked: AnalysisRequest | None = None, **more: Any
) -> Extracted:
    return extract(pair_context(given, tuned, folder, asked, **more), None)


def rows_for_saes(
    given: Resolved,
    tuned: Path,
    folder: Path,
    asked: AnalysisRequest,
    extracted: Extracted | None = None,
    **more: Any,
) -> SaeRows:
    context = pair_context(given, tuned, folder, asked, **more)
    found = extracted or extract(context, None)
    assert found.heldout is not None
    return sae_rows(context, found.tokenization, found.heldout)


def tuning(**changes: Any) -> AnalysisRequest:
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, **changes}
    body = request().model_dump() | {"tuned": None, "finetune": settings}
    return AnalysisRequest.model_validate(body)
