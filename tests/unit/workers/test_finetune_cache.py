"""Fine-tunes that were made before: found again whole or not at all, and named by what their weights depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.sources.checkpoint_files import fingerprint
from backends.storage import key_names
from backends.storage.artifacts import Artifacts
from backends.storage.key_names import Owned
from backends.tables.reading import Row
from layerdrift.contract.errors import UnavailableError
from layerdrift.contract.request import AnalysisRequest
from tests.builders.models import tiny_tokenizer
from tests.builders.stages import tuning
from tests.builders.stores import MemoryBlobs
from workers.finetune_cache import FinetuneCache, finetune_name
from workers.results.training import FineTuneRun, TrainingPoint
from workers.stages.common.inputs import Checkpoint, Resolved, Split
from workers.stages.finetune.stage import FineTuned, Snapshot

FIRST, SECOND = Owned("acme", "an_1"), Owned("acme", "an_2")
RUN = FineTuneRun(
    method="full",
    precision="float32",
    trainable_parameters=10,
    steps=4,
    kept_step=4,
    final_loss=0.5,
    losses=[TrainingPoint(step=4, loss=0.5)],
    held_out_texts=0,
    held_out=[],
)


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


def checkpoint(folder: Path, weights: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def fine_tuned(folder: Path) -> FineTuned:
    """With a snapshot before the end and one null."""
    tuned, null = checkpoint(folder / "tuned", b"tuned"), checkpoint(folder / "null", b"null")
    return FineTuned(
        Checkpoint(tuned, "s3://x", fingerprint(tuned)),
        RUN,
        [Snapshot(2, checkpoint(folder / "two", b"two")), Snapshot(4, tuned)],
        {"reseed": Checkpoint(null, "null:reseed", fingerprint(null))},
    )


def keep(blobs: MemoryBlobs, made: FineTuned, owned: Owned = FIRST) -> None:
    FinetuneCache(blobs, owned).keep("name", made, Artifacts(blobs, owned))


def test_a_fine_tune_comes_back_with_its_snapshots_and_nulls(blobs: MemoryBlobs, tmp_path: Path) -> None:
    made, target = fine_tuned(tmp_path / "made"), tmp_path / "job" / "finetuned"
    keep(blobs, made)
    found = FinetuneCache(blobs, SECOND).find("name", target)
    assert found is not None
    assert found.run == RUN
    assert found.checkpoint == Checkpoint(
        target, f"s3://bucket/{key_names.checkpoint_prefix(SECOND)}", made.checkpoint.fingerprint
    )
    assert [snapshot.step for snapshot in found.snapshots] == [2, 4]
    assert found.snapshots[-1].folder == target
    assert (found.snapshots[0].folder / "model.safetensors").read_bytes() == b"two"
    assert list(found.retrained) == ["reseed"]
    assert found.retrained["reseed"].fingerprint == made.retrained["reseed"].fingerprint
    assert (found.retrained["reseed"].folder / "model.safetensors").read_bytes() == b"null"


def test_a_fine_tune_without_snapshots_comes_back_without(blobs: MemoryBlobs, tmp_path: Path) -> None:
    keep(blobs, replace(fine_tuned(tmp_path / "made"), snapshots=[], retrained={}))
    found = FinetuneCache(blobs, SECOND).find("name", tmp_path / "finetuned")
    assert found is not None
    assert (found.snapshots, found.retrained) == ([], {})


def test_the_name_is_written_after_all_files(blobs: MemoryBlobs, tmp_path: Path) -> None:
    keep(blobs, fine_tuned(tmp_path / "made"))
    assert blobs.written[-1] == key_names.finetune_object("acme", "name")
    assert len(blobs.written) == 7


def test_another_tenant_does_not_find_it(blobs: MemoryBlobs, tmp_path: Path) -> None:
    keep(blobs, fine_tuned(tmp_path / "made"))
    assert FinetuneCache(blobs, Owned("other", "an_3")).find("name", tmp_path / "finetuned") is None


@pytest.mark.parametrize("harm", ["changed", "deleted", "entry"])
def test_a_fine_tune_that_is_not_whole_any_more_is_not_found_and_leaves_no_files(
    blobs: MemoryBlobs, tmp_path: Path, harm: str
) -> None:
    keep(blobs, fine_tuned(tmp_path / "made"))
    key = key_names.checkpoint_prefix(FIRST) + "nulls/reseed/model.safetensors"
    if harm == "changed":
        blobs.objects[key] = b"evil"
    elif harm == "deleted":
        del blobs.objects[key]
    else:
        blobs.objects[key_names.finetune_object("acme", "name")] = b"{"
    target = tmp_path / "job" / "finetuned"
    assert FinetuneCache(blobs, SECOND).find("name", target) is None
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def test_a_store_that_is_away_is_an_error_and_not_a_miss(blobs: MemoryBlobs, tmp_path: Path) -> None:
    blobs.away = True
    with pytest.raises(UnavailableError):
        FinetuneCache(blobs, FIRST).find("name", tmp_path / "finetuned")


ROWS = [Row("a", "x"), Row("b", "y")]


@pytest.fixture
def given(tmp_path: Path) -> Resolved:
    return Resolved(
        base=Checkpoint(tmp_path, "file:///base", "0" * 64),
        tuned=None,
        tokenizer=tiny_tokenizer(tmp_path),
        length=32,
        split=Split([Row("z", "x")], ROWS, [], [Row("c", "x")]),
        usable_rows=4,
        dataset_sha256="0" * 64,
        warnings=[],
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"base": Checkpoint(Path("/elsewhere"), "file:///other", "0" * 64)},
        {"split": Split([Row("q", "y")], ROWS, [Row("s", None)], [Row("c", "x")])},
        {"dataset_sha256": "1" * 64},
        {"usable_rows": 9},
    ],
    ids=["the same base elsewhere", "other analysed rows", "another file", "other spare rows"],
)
def test_what_the_weights_do_not_depend_on_does_not_change_the_name(given: Resolved, changes: dict[str, Any]) -> None:
    asked = tuning()
    assert finetune_name(asked, replace(given, **changes)) == finetune_name(asked, given)


@pytest.mark.parametrize(
    "changes",
    [
        {"base": Checkpoint(Path("/base"), "file:///base", "1" * 64)},
        {"length": 31},
        {"split": Split([], ROWS[::-1], [], [Row("c", "x")])},
        {"split": Split([], [Row("a", "y"), ROWS[1]], [], [Row("c", "x")])},
        {"split": Split([], [Row("a", "x", "p"), ROWS[1]], [], [Row("c", "x")])},
        {"split": Split([], ROWS, [], [Row("d", "x")])},
        {"split": Split([], [*ROWS, Row("c", "x")], [], [])},
    ],
    ids=["base", "length", "order", "label", "second text", "held-out text", "held-out row moved"],
)
def test_what_the_weights_depend_on_changes_the_name(given: Resolved, changes: dict[str, Any]) -> None:
    asked = tuning()
    assert finetune_name(asked, replace(given, **changes)) != finetune_name(asked, given)


def test_settings_seed_and_further_fine_tunes_change_the_name_and_nulls_without_training_do_not(
    given: Resolved,
) -> None:
    def asked(**changes: Any) -> AnalysisRequest:
        return AnalysisRequest.model_validate(tuning().model_dump() | changes)

    def analysis(*noise_floors: str) -> dict[str, Any]:
        return {"analysis": {"sae": None, "noise_floors": noise_floors}}

    plain = asked(**analysis())
    names = [
        finetune_name(one, given)
        for one in (plain, asked(seed=1, **analysis()), tuning(epochs=5), asked(**analysis("reseed")))
    ]
    assert len(set(names)) == 4
    assert finetune_name(asked(**analysis("numerical")), given) == names[0]
    both = [
        finetune_name(asked(**analysis(*order)), given)
        for order in (("reseed", "label_shuffle"), ("label_shuffle", "reseed"))
    ]
    assert both[0] == both[1]
