"""Trainings in a bucket: of unfinished ones the last whole state counts; finished ones serve other analyses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from backends.storage import key_names
from backends.storage.key_names import Owned
from layerdrift.contract.errors import UnavailableError
from tests.builders.stores import MemoryBlobs
from workers import training_states
from workers.training_states import BucketCheckpoints, BucketTrainings

OWNED = Owned("acme", "an_1")
PREFIX = key_names.unfinished_prefix(OWNED)


@pytest.fixture
def blobs() -> MemoryBlobs:
    return MemoryBlobs()


@pytest.fixture
def checkpoints(blobs: MemoryBlobs) -> BucketCheckpoints:
    return BucketCheckpoints(blobs, OWNED)


def part(value: float) -> dict[str, Tensor]:
    return {"weights": torch.full((2, 3), value), "done": torch.tensor(int(value))}


def loaded(checkpoints: BucketCheckpoints, run: str = "sae") -> list[dict[str, Tensor]]:
    found = checkpoints.load(run)
    assert found is not None
    return list(found)


def test_a_run_that_was_never_saved_has_no_state(checkpoints: BucketCheckpoints) -> None:
    checkpoints.save("other", 1, [part(1.0)])
    assert checkpoints.load("sae") is None


def test_parts_come_back_in_their_order_whatever_their_memory_layout(checkpoints: BucketCheckpoints) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    checkpoints.save("sae", 12, [part(1.0), {"turned": turned}, part(3.0)])
    first, second, third = loaded(checkpoints)
    assert torch.equal(first["weights"], part(1.0)["weights"])
    assert torch.equal(second["turned"], turned)
    assert int(third["done"]) == 3


def test_a_later_state_takes_the_place_of_an_earlier_one_of_its_run_alone(
    checkpoints: BucketCheckpoints, blobs: MemoryBlobs
) -> None:
    checkpoints.save("sae", 1, [part(1.0), part(1.0)])
    checkpoints.save("crosscoder", 1, [part(9.0)])
    checkpoints.save("sae", 2, [part(2.0)])
    (only,) = loaded(checkpoints)
    assert int(only["done"]) == 2
    assert int(loaded(checkpoints, "crosscoder")[0]["done"]) == 9
    assert [key for key in blobs.objects if key.startswith(f"{PREFIX}sae/")] == [
        f"{PREFIX}sae/latest.json",
        f"{PREFIX}sae/000000002/00000.safetensors",
    ]


def test_a_state_that_was_cut_off_half_way_leaves_the_earlier_one(
    checkpoints: BucketCheckpoints, blobs: MemoryBlobs
) -> None:
    checkpoints.save("sae", 1, [part(1.0), part(1.0)])

    def parts() -> Iterator[dict[str, Tensor]]:
        yield part(2.0)
        blobs.away = True
        yield part(2.0)

    checkpoints.save("sae", 2, parts())
    blobs.away = False
    assert [int(one["done"]) for one in loaded(checkpoints)] == [1, 1]


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_a_part_that_is_missing_or_corrupt_is_said_when_it_is_reached(
    checkpoints: BucketCheckpoints, blobs: MemoryBlobs, damage: str
) -> None:
    checkpoints.save("sae", 1, [part(1.0), part(2.0)])
    key = f"{PREFIX}sae/000000001/00001.safetensors"
    if damage == "missing":
        del blobs.objects[key]
    else:
        blobs.objects[key] = blobs.objects[key][:-4]
    parts = checkpoints.load("sae")
    assert parts is not None
    assert int(next(parts)["done"]) == 1
    with pytest.raises(UnavailableError, match=r"00001\.safetensors is missing or corrupt"):
        next(parts)


def test_a_store_that_is_away_is_an_error_for_who_loads(checkpoints: BucketCheckpoints, blobs: MemoryBlobs) -> None:
    blobs.away = True
    with pytest.raises(UnavailableError):
        checkpoints.load("sae")


def test_clearing_takes_away_the_states_of_this_job_alone(checkpoints: BucketCheckpoints, blobs: MemoryBlobs) -> None:
    others = BucketCheckpoints(blobs, Owned("acme", "an_2"))
    others.save("sae", 1, [part(1.0)])
    checkpoints.save("sae", 1, [part(1.0)])
    checkpoints.save("crosscoder", 1, [part(1.0)])
    checkpoints.clear()
    assert checkpoints.load("sae") is None
    assert checkpoints.load("crosscoder") is None
    assert len(loaded(others)) == 1


@pytest.fixture
def trainings(blobs: MemoryBlobs) -> BucketTrainings:
    return BucketTrainings(blobs, OWNED)


def test_a_finished_training_is_found_by_another_analysis_of_the_tenant_alone(
    trainings: BucketTrainings, blobs: MemoryBlobs
) -> None:
    trainings.keep("name", [part(1.0), part(2.0)])
    found = BucketTrainings(blobs, Owned("acme", "an_2")).find("name")
    assert found is not None
    assert [int(one["done"]) for one in found] == [1, 2]
    assert torch.equal(found[1]["weights"], part(2.0)["weights"])
    assert trainings.find("another") is None
    assert BucketTrainings(blobs, Owned("other", "an_3")).find("name") is None


def test_a_training_goes_with_the_analysis_that_made_it(trainings: BucketTrainings, blobs: MemoryBlobs) -> None:
    trainings.keep("name", [part(1.0)])
    blobs.delete_all(key_names.artifact_prefix(OWNED))
    assert trainings.find("name") is None


@pytest.mark.parametrize("body", [b"", b"nonsense"])
def test_a_training_whose_file_was_changed_is_made_again(
    trainings: BucketTrainings, blobs: MemoryBlobs, body: bytes
) -> None:
    trainings.keep("name", [part(1.0), part(2.0)])
    last = max(blob.key for blob in blobs.list(key_names.training_prefix(OWNED, "name")))
    blobs.put(last, body, "application/octet-stream")
    assert trainings.find("name") is None


def test_a_training_that_is_too_large_leaves_nothing(
    trainings: BucketTrainings, blobs: MemoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_states, "MOST_KEPT", 70)
    trainings.keep("name", [part(1.0), part(2.0), part(3.0)])
    assert trainings.find("name") is None
    assert not list(blobs.list(key_names.artifact_prefix(OWNED)))


def test_without_the_bucket_a_training_is_not_kept_and_nothing_fails(
    trainings: BucketTrainings, blobs: MemoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise UnavailableError("S3 is away")

    monkeypatch.setattr(blobs, "put", away)
    trainings.keep("name", [part(1.0)])
    monkeypatch.undo()
    assert trainings.find("name") is None
