"""Objects in S3, in a few verbs. Knows buckets and bytes, not what they mean."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from backends.settings import Settings
from backends.storage import key_names
from layerdrift.contract.errors import ConflictError, DeniedError, LayerdriftError, NotFoundError, UnavailableError

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_EXISTS = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_UNNAMEABLE = {"400", "InvalidRequest", "InvalidBucketName", "KeyTooLongError", "InvalidURI"}
_DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_HEADER_REFUSED = {400, 403, 405, 501}
"""HTTP statuses by which a store refuses `If-None-Match` where it takes the same write without that header."""


@dataclass(frozen=True)
class BlobInfo:
    """An object's key, size in bytes, ETag, and when it was written; None: not told."""

    key: str
    size: int
    etag: str
    written: datetime | None = field(default=None, compare=False)


class Unfinished(NamedTuple):
    """An object whose parts have begun to come: its key, token, and when it was begun."""

    key: str
    token: str
    begun: datetime


class Part(NamedTuple):
    """A part of an object that is being made of parts."""

    number: int
    etag: str


class Children(NamedTuple):
    """What lies directly under a prefix."""

    blobs: list[BlobInfo]
    folders: list[str]
    """Longer prefixes that have objects under them, each with a slash at its end."""


class BlobStore:
    """One bucket. Every verb raises UnavailableError when S3 cannot be reached, NotFoundError for what it lacks."""

    def __init__(self, client: Any, bucket: str, signer: Any = None) -> None:
        self._client = client
        self._signer = signer or client
        self._conditional: bool | None = None
        self.bucket = bucket

    @classmethod
    def connect(cls, settings: Settings) -> BlobStore:
        """A store on the bucket of the settings; sends nothing yet."""
        client = cls._made(settings, settings.s3_endpoint)
        public = settings.s3_public_endpoint
        return cls(client, settings.s3_bucket, cls._made(settings, public) if public else None)

    @staticmethod
    def _made(settings: Settings, endpoint: str | None) -> Any:
        secret = settings.s3_secret_key
        access = settings.s3_access_key
        return boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=access.get_secret_value() if access else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path" if endpoint else "auto"},
                # boto3 adds x-amz-checksum-* headers by default, which other makers' stores may refuse
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"mode": "standard", "max_attempts": 4},
                connect_timeout=5,
                read_timeout=60,
            ),
        )

    def of_bucket(self, bucket: str) -> BlobStore:
        """The same server and credentials, another bucket."""
        return BlobStore(self._client, bucket, self._signer)

    def ensure_bucket(self) -> None:
        """Makes the bucket where it is missing."""
        with self._translated(""):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if _code(error) not in _NOT_FOUND:
                    raise
                self._client.create_bucket(Bucket=self.bucket)

    def check(self) -> None:
        """Raises unless the bucket can be read."""
        with self._translated(""):
            self._client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)

    def put(self, key: str, body: bytes, media_type: str) -> None:
        """Writes an object, over an older one of the same key."""
        with self._translated(key):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=media_type)

    def put_new(self, key: str, body: bytes, media_type: str) -> bool:
        """Writes an object unless there is one of its key; of many who try at once, exactly one is told True.

        A store without conditional writes cannot promise that: callers that look before any of them has written are
        all told True, and the last write stays.
        """
        if not self.supports_conditional_writes():
            return self._put_if_missing(key, body, media_type)
        try:
            with self._translated(key):
                self._client.put_object(Bucket=self.bucket, Key=key, Body=body, ContentType=media_type, IfNoneMatch="*")
        except ConflictError:
            return False
        return True

    def _put_if_missing(self, key: str, body: bytes, media_type: str) -> bool:
        """Looks, then writes; others may write in between."""
        try:
            self.head(key)
        except NotFoundError:
            self.put(key, body, media_type)
            return True
        return False

    @property
    def conditional_writes(self) -> bool | None:
        """What `supports_conditional_writes` has found; None while nothing is known."""
        return self._conditional

    def supports_conditional_writes(self) -> bool:
        """Whether the store honours `If-None-Match: *`. The first call finds out by writing a probe object.

        Raises:
            UnavailableError: S3 is unavailable; the next call tries again.
        """
        if self._conditional is None:
            self._conditional = self._probe_conditional_writes()
        return self._conditional

    def _probe_conditional_writes(self) -> bool:
        key = f"{key_names.PROBES}{uuid.uuid4().hex}"
        try:
            self.put(key, b"", "text/plain")
        except DeniedError:  # these credentials write elsewhere only: nothing can be tried, and most stores have it
            return True
        try:
            with self._translated(key):
                return self._refuses_second_write(key)
        finally:
            with suppress(LayerdriftError):
                self.delete(key)

    def _refuses_second_write(self, key: str) -> bool:
        """Whether a conditional write fails because the object is there; not because of its header."""
        try:
            self._client.put_object(Bucket=self.bucket, Key=key, Body=b"", IfNoneMatch="*")
        except ClientError as error:
            if _code(error) in _EXISTS:
                return True
            if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _HEADER_REFUSED:
                return False
            raise
        return False

    def put_file(self, key: str, path: Path) -> None:
        """Uploads a file, in parts where it is large."""
        with self._translated(key):
            self._client.upload_file(str(path), self.bucket, key)

    def get_file(self, key: str, path: Path) -> None:
        """Downloads an object into a file, in parts where it is large."""
        with self._translated(key):
            self._client.download_file(self.bucket, key, str(path))

    def begin_parts(self, key: str) -> str:
        """Begins an object that comes in parts; its token."""
        with self._translated(key):
            answer = self._client.create_multipart_upload(Bucket=self.bucket, Key=key)
            return str(answer["UploadId"])

    def put_part(self, key: str, token: str, number: int, body: bytes) -> Part:
        """Sends a part, counted from 1."""
        with self._translated(key):
            answer = self._client.upload_part(Bucket=self.bucket, Key=key, UploadId=token, PartNumber=number, Body=body)
            return Part(number, str(answer["ETag"]))

    def complete_parts(self, key: str, token: str, parts: Sequence[Part]) -> None:
        """Makes the object of its parts."""
        listed = [{"PartNumber": part.number, "ETag": part.etag} for part in parts]
        with self._translated(key):
            self._client.complete_multipart_upload(
                Bucket=self.bucket, Key=key, UploadId=token, MultipartUpload={"Parts": listed}
            )

    def abort_parts(self, key: str, token: str) -> None:
        """Forgets the parts that have come."""
        with self._translated(key):
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=token)

    def unfinished(self) -> list[Unfinished]:
        """Objects whose parts have begun to come and that were neither made nor given up."""
        with self._translated(""):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket)
            return [
                Unfinished(str(item["Key"]), str(item["UploadId"]), item["Initiated"])
                for page in pages
                for item in page.get("Uploads", [])
            ]

    def link(self, key: str, seconds: int) -> str:
        """A URL that reads an object without a key for so long; asks nobody."""
        url: str = self._signer.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
        )
        return url

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of an object, or of a range of it."""
        end = "" if length is None else str(start + length - 1)
        byte_range = {} if not start and length is None else {"Range": f"bytes={start}-{end}"}
        with self._translated(key):
            try:
                body: bytes = self._client.get_object(Bucket=self.bucket, Key=key, **byte_range)["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] == "InvalidRange":  # an empty object, or one that ends before
                    return b""
                raise
            return body

    def chunks(self, key: str, size: int) -> Iterator[bytes]:
        """The bytes of an object, `size` at a time."""
        with self._translated(key):
            yield from self._client.get_object(Bucket=self.bucket, Key=key)["Body"].iter_chunks(size)

    def head(self, key: str) -> BlobInfo:
        """Size and ETag of an object."""
        with self._translated(key):
            answer = self._client.head_object(Bucket=self.bucket, Key=key)
            return BlobInfo(key, int(answer["ContentLength"]), str(answer["ETag"]).strip('"'))

    def delete(self, key: str) -> None:
        """Removes an object, if it is there."""
        with self._translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def list(self, prefix: str) -> list[BlobInfo]:
        """The objects under a prefix, by key."""
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return [_info(item) for page in pages for item in page.get("Contents", [])]

    def children(self, prefix: str) -> Children:
        """The objects and the folders directly under a prefix."""
        found = Children([], [])
        with self._translated(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                found.blobs.extend(_info(item) for item in page.get("Contents", []))
                found.folders.extend(str(item["Prefix"]) for item in page.get("CommonPrefixes", []))
        return found

    def folders(self, prefix: str) -> Sequence[str]:
        """What lies directly under a prefix and has more under it, with the prefix and a slash at the end."""
        return self.children(prefix).folders

    def delete_all(self, prefix: str) -> None:
        """Removes every object under a prefix."""
        for blob in self.list(prefix):
            self.delete(blob.key)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turns boto3's errors into ours, with the object's name in them."""
        where = f"s3://{self.bucket}/{key}"
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code in _NOT_FOUND:
                raise NotFoundError(f"{where} does not exist") from error
            if code in _DENIED:
                raise DeniedError(f"{where} cannot be read with the service's credentials ({code})") from error
            if code in _UNNAMEABLE:
                raise NotFoundError(f"{where} is not a name that this S3 server allows") from error
            if code in _EXISTS:
                raise ConflictError(f"{where} already exists") from error
            raise UnavailableError(f"S3 returned {code} for {where}") from error
        except ParamValidationError as error:
            raise NotFoundError(f"{where} is not a valid S3 name") from error
        except (BotoCoreError, Boto3Error, ConnectionError) as error:
            raise UnavailableError(f"S3 could not be reached for {where}: {error}") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _info(item: dict[str, Any]) -> BlobInfo:
    """An entry of a listing."""
    return BlobInfo(item["Key"], int(item["Size"]), str(item["ETag"]).strip('"'), item.get("LastModified"))
