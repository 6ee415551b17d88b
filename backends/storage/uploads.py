"""Uploads in the bucket: announced first, then their bytes, checked as they come."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import redis
from pydantic import BaseModel

from backends.storage import key_names
from backends.storage.blobs import BlobStore, Part
from layerdrift.contract.errors import ConflictError, InputError, NotFoundError, RateError, TooLargeError
from layerdrift.contract.plain import STORED
from layerdrift.contract.upload import Upload, UploadRequest

SCHEME = "upload://"
INLINE_NAME = "inline.jsonl"
"""Of texts that came inside a request."""

MAX_WAITING = 200
LISTED = 300
"""Records that a list of uploads reads."""

WAITING_SECONDS = 24 * 3600
PART_BYTES = 8 << 20
"""What is sent to S3 at once; S3 takes no fewer than 5 MiB but for the last part."""


class _Stored(BaseModel):
    """What S3 keeps of an upload."""

    upload: Upload
    expected: UploadRequest


class WaitingUploads:
    """Uploads that were announced and whose bytes have not come: a tenant has MAX_WAITING of them at most."""

    def __init__(self, client: redis.Redis, uploads: UploadStore) -> None:
        self._redis = client
        self._uploads = uploads

    def admit(self, tenant: str) -> None:
        """RateError where as many as a tenant may have are waiting; those of WAITING_SECONDS ago are forgotten."""
        waiting = key_names.waiting_uploads(tenant)
        late: Any = self._redis.zrangebyscore(waiting, "-inf", time.time() - WAITING_SECONDS)
        for upload_id in (one.decode() for one in late):
            with suppress(NotFoundError):
                if self._uploads.get(tenant, upload_id).status == "waiting":
                    self._uploads.remove(tenant, upload_id)
            self.forget(tenant, upload_id)
        if int(self._redis.zcard(waiting)) >= MAX_WAITING:
            raise RateError(f"{MAX_WAITING} uploads are still waiting for their bytes; send them, or delete some", 60)

    def put(self, tenant: str, upload_id: str) -> None:
        """One that was announced."""
        self._redis.zadd(key_names.waiting_uploads(tenant), {upload_id: time.time()})

    def forget(self, tenant: str, upload_id: str) -> None:
        """Its bytes have come, or it was deleted."""
        self._redis.zrem(key_names.waiting_uploads(tenant), upload_id)


class UploadStore:
    """The uploads of one deployment. A tenant sees its own alone."""

    def __init__(self, blobs: BlobStore, max_bytes: int) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes

    def announce(self, tenant: str, asked: UploadRequest) -> Upload:
        """Makes an upload that waits for its bytes; TooLargeError where it says that it will be too large.

        The same announced sha256 under the same name is the same upload: its bytes need not come twice.
        """
        if asked.bytes is not None:
            self._check_size(asked.bytes)
        upload_id = _id(secrets.token_bytes(16))
        if asked.sha256 is not None:
            upload_id = _id(hashlib.sha256(f"{asked.sha256} {asked.filename}".encode()).digest())
            with suppress(NotFoundError):
                stored = self._read(tenant, upload_id)
                if stored.upload.status == "complete" or stored.expected == asked:
                    if stored.upload.status == "complete":
                        self._write(tenant, stored)  # it is used again: its age begins anew
                    return stored.upload
        upload = Upload(
            id=upload_id,
            uri=f"{SCHEME}{upload_id}",
            filename=asked.filename,
            status="waiting",
            created_at=datetime.now(UTC),
        )
        self._write(tenant, _Stored(upload=upload, expected=asked))
        return upload

    def get(self, tenant: str, upload_id: str) -> Upload:
        """An upload; NotFoundError where this tenant has none of this id."""
        return self._read(tenant, upload_id).upload

    def newest(self, tenant: str, count: int) -> list[Upload]:
        """A tenant's uploads, newest first, of LISTED at most; those that came inside requests are left out."""
        blobs = [one for one in self._blobs.list(key_names.uploads_prefix(tenant)) if one.key.endswith("/upload.json")]
        found: list[Upload] = []
        for blob in blobs[:LISTED]:
            with suppress(NotFoundError):
                found.append(self.get(tenant, blob.key.split("/")[-2]))
        shown = [one for one in found if one.filename != INLINE_NAME]
        return sorted(shown, key=lambda one: one.created_at, reverse=True)[:count]

    def remove(self, tenant: str, upload_id: str) -> None:
        """Forgets an upload and its bytes."""
        self._read(tenant, upload_id)
        self._blobs.delete(key_names.upload_object(tenant, upload_id))
        self._blobs.delete(key_names.upload_record(tenant, upload_id))

    def keep_inline(self, tenant: str, body: bytes, filename: str) -> Upload:
        """Keeps bytes that came inside a request; the same bytes have the same id."""
        digest = hashlib.sha256(body).hexdigest()
        upload_id = _id(bytes.fromhex(digest))
        try:
            stored = self._read(tenant, upload_id)
            self._write(tenant, stored)  # it is used again: its age begins anew
            return stored.upload
        except NotFoundError:
            self._blobs.put(key_names.upload_object(tenant, upload_id), body, "application/octet-stream")
        upload = Upload(
            id=upload_id,
            uri=f"{SCHEME}{upload_id}",
            filename=filename,
            status="complete",
            bytes=len(body),
            sha256=digest,
            created_at=datetime.now(UTC),
        )
        self._write(tenant, _Stored(upload=upload, expected=UploadRequest(filename=filename)))
        return upload

    def receive(self, tenant: str, upload_id: str) -> Receiver:
        """Takes the bytes of an upload that was announced."""
        return Receiver(self, self._blobs, tenant, self._read(tenant, upload_id))

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise TooLargeError(f"the upload is {size} bytes; the limit of this service is {self._max_bytes}")

    def _read(self, tenant: str, upload_id: str) -> _Stored:
        try:
            return _Stored.model_validate_json(
                self._blobs.get(key_names.upload_record(tenant, upload_id)), context=STORED
            )
        except NotFoundError as error:
            raise NotFoundError(f"there is no upload {upload_id}") from error

    def _write(self, tenant: str, stored: _Stored) -> None:
        body = stored.model_dump_json().encode()
        self._blobs.put(key_names.upload_record(tenant, stored.upload.id), body, "application/json")


def _id(digest: bytes) -> str:
    """An upload's id from 16 bytes or more."""
    return "up_" + base64.b32encode(digest[:16]).decode().lower().rstrip("=")


class Receiver:
    """Takes an upload's bytes as they come, and gives them to S3 a part at a time: no more than that is in memory."""

    def __init__(self, store: UploadStore, blobs: BlobStore, tenant: str, stored: _Stored) -> None:
        self._store = store
        self._blobs = blobs
        self._tenant = tenant
        self._stored = stored
        self._key = key_names.upload_object(tenant, stored.upload.id)
        self._digest = hashlib.sha256()
        self._size = 0
        self._pending = bytearray()
        self._upload: str | None = None
        self._parts: list[Part] = []

    def take(self, chunk: bytes) -> None:
        """Takes some bytes; TooLargeError where they are more than was announced or allowed."""
        self._size += len(chunk)
        self._store._check_size(self._size)
        expected = self._stored.expected.bytes
        if expected is not None and self._size > expected:
            raise TooLargeError(f"more than the announced {expected} bytes")
        self._digest.update(chunk)
        self._pending += chunk
        while len(self._pending) >= PART_BYTES and self._stored.upload.status == "waiting":
            self._send(bytes(self._pending[:PART_BYTES]))
            del self._pending[:PART_BYTES]
        if self._stored.upload.status == "complete":
            self._pending.clear()

    def finish(self) -> Upload:
        """All bytes have come: checks them, and makes the upload usable.

        Raises:
            InputError: size or sha256 are not those that were announced.
            ConflictError: other bytes have come before.
        """
        digest, expected = self._digest.hexdigest(), self._stored.expected
        upload = self._stored.upload
        if upload.status == "complete":
            if upload.sha256 != digest:
                raise ConflictError(f"{upload.id} already has its bytes, and these differ; announce another upload")
            return upload
        if expected.bytes not in (None, self._size):
            raise InputError(f"received {self._size} bytes, but {expected.bytes} were announced; send it again")
        if expected.sha256 not in (None, digest):
            raise InputError(f"the received bytes have the sha256 {digest}, not the one announced; send it again")
        if self._upload is None:
            self._blobs.put(self._key, bytes(self._pending), "application/octet-stream")
        else:
            if self._pending:
                self._send(bytes(self._pending))
            self._blobs.complete_parts(self._key, self._upload, self._parts)
            self._upload = None
        done = upload.model_copy(update={"status": "complete", "bytes": self._size, "sha256": digest})
        self._store._write(self._tenant, self._stored.model_copy(update={"upload": done}))
        return done

    def abort(self) -> None:
        """Forgets what has come; the bytes may be sent again."""
        if self._upload is not None:
            self._blobs.abort_parts(self._key, self._upload)
            self._upload = None

    def _send(self, part: bytes) -> None:
        if self._upload is None:
            self._upload = self._blobs.begin_parts(self._key)
        self._parts.append(self._blobs.put_part(self._key, self._upload, len(self._parts) + 1, part))
