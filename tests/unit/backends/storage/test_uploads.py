"""Uploads on a bucket in memory. A real bucket, and uploads that wait, which Redis counts: test_api, test_requests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from backends.storage import key_names, uploads
from backends.storage.blobs import Part
from backends.storage.uploads import INLINE_NAME, UploadStore
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError, TooLargeError
from layerdrift.contract.upload import Upload, UploadRequest
from tests.builders.stores import MemoryBlobs

CONTENT = b"text,label\na,1\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class PartedBlobs(MemoryBlobs):
    """A bucket that takes objects in parts; `pending`: those that are neither complete nor aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: dict[str, list[bytes]] = {}

    def begin_parts(self, key: str) -> str:
        self.pending[key] = []
        return key

    def put_part(self, key: str, token: str, number: int, body: bytes) -> Part:
        self.pending[token].append(body)
        return Part(number, f"etag {number}")

    def complete_parts(self, key: str, token: str, parts: Sequence[Part]) -> None:
        assert [part.number for part in parts] == list(range(1, len(self.pending[token]) + 1))
        self.put(key, b"".join(self.pending.pop(token)), "")

    def abort_parts(self, key: str, token: str) -> None:
        del self.pending[token]


@pytest.fixture
def blobs() -> PartedBlobs:
    return PartedBlobs()


@pytest.fixture
def store(blobs: PartedBlobs) -> UploadStore:
    return UploadStore(blobs, max_bytes=100)


def announced(store: UploadStore, **asked: Any) -> Upload:
    return store.announce("default", UploadRequest(**{"filename": "x.csv"} | asked))


def send(store: UploadStore, upload: Upload, *chunks: bytes) -> Upload:
    receiver = store.receive("default", upload.id)
    for chunk in chunks:
        receiver.take(chunk)
    return receiver.finish()


def data(blobs: PartedBlobs) -> list[bytes]:
    """The bytes of all uploads that are in the bucket."""
    return [body for key, body in blobs.objects.items() if key.endswith("/data")]


def test_an_upload_waits_until_its_bytes_have_come(store: UploadStore, blobs: PartedBlobs) -> None:
    upload = announced(store)
    assert (upload.status, upload.uri, data(blobs)) == ("waiting", f"upload://{upload.id}", [])
    done = send(store, upload, CONTENT[:5], CONTENT[5:])
    assert (done.status, done.bytes, done.sha256) == ("complete", len(CONTENT), SHA256)
    assert store.get("default", upload.id) == done
    assert data(blobs) == [CONTENT]


def test_an_upload_may_be_empty(store: UploadStore, blobs: PartedBlobs) -> None:
    assert send(store, announced(store, bytes=0)).bytes == 0
    assert data(blobs) == [b""]


@pytest.mark.parametrize("size", [4, 5, 8, 9])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_parts_of_a_large_upload_make_the_whole_wherever_it_is_cut(
    store: UploadStore, blobs: PartedBlobs, monkeypatch: pytest.MonkeyPatch, size: int, chunk: int
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 4)
    content = bytes(range(size))
    receiver = store.receive("default", announced(store).id)
    for start in range(0, size, chunk):
        receiver.take(content[start : start + chunk])
    (parts,) = blobs.pending.values()
    assert {len(part) for part in parts} == {4}  # S3 takes no shorter part but the last
    receiver.finish()
    assert (data(blobs), blobs.pending) == ([content], {})


def test_an_upload_that_is_broken_off_leaves_no_parts_and_may_be_sent_again(
    store: UploadStore, blobs: PartedBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 4)
    upload = announced(store)
    receiver = store.receive("default", upload.id)
    receiver.take(b"half of it")
    assert blobs.pending
    receiver.abort()
    assert (blobs.pending, data(blobs)) == ({}, [])
    assert send(store, upload, CONTENT).status == "complete"


def test_the_limit_holds_when_an_upload_is_announced_and_while_it_comes(store: UploadStore, blobs: PartedBlobs) -> None:
    with pytest.raises(TooLargeError, match="is 101 bytes; the limit of this service is 100"):
        announced(store, bytes=101)
    assert blobs.objects == {}
    send(store, announced(store, bytes=100), b"x" * 100)
    with pytest.raises(TooLargeError, match="the limit of this service is 100"):
        send(store, announced(store), b"x" * 60, b"x" * 41)


def test_more_bytes_than_were_announced_are_refused_as_soon_as_they_come(store: UploadStore) -> None:
    receiver = store.receive("default", announced(store, bytes=3).id)
    receiver.take(b"abc")
    with pytest.raises(TooLargeError, match="more than the announced 3 bytes"):
        receiver.take(b"d")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bytes": len(CONTENT) + 1}, f"received {len(CONTENT)} bytes, but {len(CONTENT) + 1} were announced"),
        ({"sha256": "0" * 64}, f"have the sha256 {SHA256}, not the one announced"),
    ],
)
def test_bytes_that_are_not_those_announced_leave_the_upload_waiting(
    store: UploadStore, blobs: PartedBlobs, asked: dict[str, Any], message: str
) -> None:
    upload = announced(store, **asked)
    with pytest.raises(InputError, match=message):
        send(store, upload, CONTENT)
    assert store.get("default", upload.id).status == "waiting"
    assert data(blobs) == []


def test_the_same_bytes_may_come_twice_and_others_may_not(store: UploadStore, blobs: PartedBlobs) -> None:
    upload = announced(store)
    done = send(store, upload, CONTENT)
    assert send(store, upload, CONTENT) == done
    with pytest.raises(ConflictError, match="already has its bytes, and these differ"):
        send(store, upload, b"others")
    assert data(blobs) == [CONTENT]


def test_a_known_sha256_under_the_same_name_is_the_same_upload(store: UploadStore) -> None:
    first = announced(store, sha256=SHA256)
    assert announced(store, sha256=SHA256).id == first.id
    done = send(store, first, CONTENT)
    assert announced(store, sha256=SHA256) == done
    assert announced(store, sha256=SHA256, filename="y.csv").status == "waiting"
    assert announced(store).id != announced(store).id
    assert store.announce("other", UploadRequest(filename="x.csv", sha256=SHA256)).status == "waiting"


def test_a_size_that_was_announced_wrong_can_be_corrected(store: UploadStore) -> None:
    first = announced(store, sha256=SHA256, bytes=len(CONTENT) - 1)
    second = announced(store, sha256=SHA256, bytes=len(CONTENT))
    assert second.id == first.id
    assert send(store, second, CONTENT).status == "complete"


def test_a_tenant_sees_and_removes_its_own_uploads_alone(store: UploadStore, blobs: PartedBlobs) -> None:
    upload = announced(store)
    send(store, upload, CONTENT)
    for act in (store.get, store.receive, store.remove):
        with pytest.raises(NotFoundError, match=f"there is no upload {upload.id}"):
            act("other", upload.id)
    assert store.newest("other", 10) == []
    store.remove("default", upload.id)
    assert blobs.objects == {}
    with pytest.raises(NotFoundError):
        store.remove("default", upload.id)


def test_texts_of_a_request_are_kept_once_and_stand_in_no_list(store: UploadStore, blobs: PartedBlobs) -> None:
    kept = store.keep_inline("default", CONTENT, INLINE_NAME)
    written = len(blobs.written)
    assert store.keep_inline("default", CONTENT, INLINE_NAME) == kept
    assert blobs.written[written:] == [key_names.upload_record("default", kept.id)]  # used again, it is no old one
    assert (kept.status, kept.bytes, kept.sha256, data(blobs)) == ("complete", len(CONTENT), SHA256, [CONTENT])
    assert store.newest("default", 10) == []


def test_uploads_are_listed_newest_first(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [announced(store, filename=f"{number}.csv") for number in range(4)]
    ages = {upload.id: upload.created_at - timedelta(hours=number * 7 % 4) for number, upload in enumerate(made)}
    get = store.get
    monkeypatch.setattr(store, "get", lambda tenant, id_: get(tenant, id_).model_copy(update={"created_at": ages[id_]}))
    assert [upload.filename for upload in store.newest("default", 3)] == ["0.csv", "3.csv", "2.csv"]
