"""What is sent to S3 and what its answers mean, with answers from botocore's own stub; a real server: test_backends."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

from backends.settings import Settings
from backends.storage import key_names
from backends.storage.blobs import BlobInfo, BlobStore, Children
from layerdrift.contract.errors import (
    ConflictError,
    DeniedError,
    LayerdriftError,
    NotFoundError,
    UnavailableError,
)

NOWHERE = "http://s3.invalid"
AN_OBJECT = {"Bucket": "bucket", "Key": "dir/a"}


@pytest.fixture(scope="module")
def client() -> Any:
    return boto3.client(
        "s3", region_name="us-east-1", endpoint_url=NOWHERE, aws_access_key_id="id", aws_secret_access_key="secret"
    )


@pytest.fixture
def s3(client: Any) -> Iterator[Any]:
    """The answers that S3 will give, in their order; each must be asked for."""
    with Stubber(client) as stub:
        yield stub
        stub.assert_no_pending_responses()


@pytest.fixture
def blobs(client: Any) -> BlobStore:
    return BlobStore(client, "bucket")


def body(content: bytes) -> dict[str, Any]:
    return {"Body": StreamingBody(io.BytesIO(content), len(content))}


@pytest.mark.parametrize(
    ("code", "status", "error", "message"),
    [
        ("NoSuchKey", 404, NotFoundError, "s3://bucket/dir/a does not exist"),
        ("NoSuchBucket", 404, NotFoundError, "does not exist"),
        ("AccessDenied", 403, DeniedError, r"cannot be read with the service's credentials \(AccessDenied\)"),
        ("SignatureDoesNotMatch", 403, DeniedError, "SignatureDoesNotMatch"),
        ("KeyTooLongError", 400, NotFoundError, "not a name that this S3 server allows"),
        ("PreconditionFailed", 412, ConflictError, "already exists"),
        ("SlowDown", 503, UnavailableError, "S3 returned SlowDown for s3://bucket/dir/a"),
    ],
)
def test_what_s3_refuses_becomes_an_error_with_the_name_of_the_object(
    s3: Any, blobs: BlobStore, code: str, status: int, error: type[LayerdriftError], message: str
) -> None:
    s3.add_client_error("get_object", code, http_status_code=status)
    with pytest.raises(error, match=message):
        blobs.get("dir/a")


@pytest.mark.parametrize("bucket", ["two words", "", "a/b"])
def test_a_bucket_that_cannot_be_called_so_does_not_exist(client: Any, bucket: str) -> None:
    with pytest.raises(NotFoundError, match="is not a valid S3 name"):
        BlobStore(client, bucket).get("a")


@pytest.mark.parametrize(
    ("start", "length", "asked"),
    [
        (0, None, {}),
        (0, 10, {"Range": "bytes=0-9"}),
        (2, 3, {"Range": "bytes=2-4"}),
        (2, 1, {"Range": "bytes=2-2"}),
        (2, None, {"Range": "bytes=2-"}),
    ],
)
def test_a_part_of_an_object_is_asked_for_by_its_first_and_its_last_byte(
    s3: Any, blobs: BlobStore, start: int, length: int | None, asked: dict[str, str]
) -> None:
    s3.add_response("get_object", body(b"some"), AN_OBJECT | asked)
    assert blobs.get("dir/a", start, length) == b"some"


def test_an_empty_object_has_an_empty_head(s3: Any, blobs: BlobStore) -> None:
    s3.add_client_error("get_object", "InvalidRange", http_status_code=416)
    assert blobs.get("dir/a", length=10) == b""


def test_an_etag_is_the_same_from_a_listing_and_from_the_object(s3: Any, blobs: BlobStore) -> None:
    item = {"Key": "dir/a", "Size": 3, "ETag": '"e1"'}
    s3.add_response("head_object", {"ContentLength": 3, "ETag": '"e1"'}, AN_OBJECT)
    s3.add_response("list_objects_v2", {"Contents": [item]}, {"Bucket": "bucket", "Prefix": "dir/"})
    assert [blobs.head("dir/a")] == blobs.list("dir/") == [BlobInfo("dir/a", 3, "e1")]


def test_a_listing_of_several_pages_is_read_to_its_end(s3: Any, blobs: BlobStore) -> None:
    asked = {"Bucket": "bucket", "Prefix": "dir/", "Delimiter": "/"}
    first = {"Key": "dir/a", "Size": 1, "ETag": '"a"'}
    last = {"Key": "dir/z", "Size": 2, "ETag": '"z"'}
    s3.add_response(
        "list_objects_v2",
        {"Contents": [first], "IsTruncated": True, "NextContinuationToken": "more"},
        asked,
    )
    s3.add_response(
        "list_objects_v2",
        {"CommonPrefixes": [{"Prefix": "dir/b/"}], "IsTruncated": True, "NextContinuationToken": "still more"},
        asked | {"ContinuationToken": "more"},
    )
    s3.add_response("list_objects_v2", {"Contents": [last]}, asked | {"ContinuationToken": "still more"})
    found = blobs.children("dir/")
    assert found == Children([BlobInfo("dir/a", 1, "a"), BlobInfo("dir/z", 2, "z")], ["dir/b/"])


def test_nothing_under_a_prefix_is_an_empty_listing(s3: Any, blobs: BlobStore) -> None:
    s3.add_response("list_objects_v2", {}, {"Bucket": "bucket", "Prefix": "dir/"})
    s3.add_response("list_objects_v2", {}, {"Bucket": "bucket", "Prefix": "dir/"})
    assert blobs.list("dir/") == []
    blobs.delete_all("dir/")


@pytest.mark.parametrize(("code", "made"), [("404", True), ("NoSuchBucket", True), ("403", False)])
def test_a_bucket_is_made_where_it_is_missing_and_not_where_it_is_another_owners(
    s3: Any, blobs: BlobStore, code: str, made: bool
) -> None:
    s3.add_client_error("head_bucket", code)
    if made:
        s3.add_response("create_bucket", {}, {"Bucket": "bucket"})
        blobs.ensure_bucket()
    else:
        with pytest.raises(DeniedError):
            blobs.ensure_bucket()


def expect_probe(s3: Any, code: str, status: int) -> None:
    """A probe object is written, written again on condition, which S3 answers so (200: it takes it), and removed."""
    probe = {"Bucket": "bucket", "Key": ANY, "Body": b""}
    s3.add_response("put_object", {}, probe | {"ContentType": "text/plain"})
    if status == 200:
        s3.add_response("put_object", {}, probe | {"IfNoneMatch": "*"})
    else:
        s3.add_client_error("put_object", code, http_status_code=status, expected_params=probe | {"IfNoneMatch": "*"})
    s3.add_response("delete_object", {}, {"Bucket": "bucket", "Key": ANY})


@pytest.mark.parametrize(
    ("code", "status", "supported"),
    [
        ("PreconditionFailed", 412, True),
        ("ConditionalRequestConflict", 409, True),
        ("", 200, False),  # the header is not looked at
        ("NotImplemented", 501, False),
        ("InvalidArgument", 400, False),
        ("MethodNotAllowed", 405, False),
    ],
)
def test_a_second_write_on_condition_shows_whether_the_store_honours_it(
    s3: Any, blobs: BlobStore, code: str, status: int, supported: bool
) -> None:
    assert blobs.conditional_writes is None
    expect_probe(s3, code, status)
    assert blobs.supports_conditional_writes() is supported
    assert blobs.supports_conditional_writes() is supported  # and is not asked again
    assert blobs.conditional_writes is supported


def test_a_store_that_is_away_while_it_is_probed_is_probed_again_later(s3: Any, blobs: BlobStore) -> None:
    expect_probe(s3, "ServiceUnavailable", 503)
    with pytest.raises(UnavailableError, match=f"s3://bucket/{key_names.PROBES}"):
        blobs.supports_conditional_writes()
    assert blobs.conditional_writes is None
    expect_probe(s3, "PreconditionFailed", 412)
    assert blobs.supports_conditional_writes()


def test_credentials_that_may_write_no_probe_count_as_those_of_a_store_with_conditions(
    s3: Any, blobs: BlobStore
) -> None:
    s3.add_client_error("put_object", "AccessDenied", http_status_code=403)
    assert blobs.supports_conditional_writes()


def test_of_two_writes_on_condition_the_second_is_told_that_it_came_late(s3: Any, blobs: BlobStore) -> None:
    expect_probe(s3, "PreconditionFailed", 412)
    given = AN_OBJECT | {"Body": b"x", "ContentType": "text/plain", "IfNoneMatch": "*"}
    s3.add_response("put_object", {}, given)
    s3.add_client_error("put_object", "PreconditionFailed", http_status_code=412, expected_params=given)
    assert [blobs.put_new("dir/a", b"x", "text/plain") for _ in range(2)] == [True, False]


def test_a_store_without_conditions_is_looked_at_before_it_is_written(s3: Any, blobs: BlobStore) -> None:
    expect_probe(s3, "NotImplemented", 501)
    s3.add_client_error("head_object", "404", http_status_code=404, expected_params=AN_OBJECT)
    s3.add_response("put_object", {}, AN_OBJECT | {"Body": b"x", "ContentType": "text/plain"})
    s3.add_response("head_object", {"ContentLength": 1, "ETag": '"x"'}, AN_OBJECT)
    assert [blobs.put_new("dir/a", b"x", "text/plain") for _ in range(2)] == [True, False]


def test_links_name_the_public_address_and_another_bucket_keeps_it() -> None:
    keys = {"s3_access_key": "id", "s3_secret_key": "secret"}
    settings = Settings.model_validate(keys | {"s3_endpoint": NOWHERE, "s3_public_endpoint": "https://files.example"})
    made = BlobStore.connect(settings)
    assert made.link("dir/a b", 60).startswith("https://files.example/layerdrift/dir/a%20b?")
    assert made.of_bucket("other").link("a", 60).startswith("https://files.example/other/a?")
    inside = BlobStore.connect(settings.model_copy(update={"s3_public_endpoint": None}))
    assert inside.link("a", 60).startswith(f"{NOWHERE}/layerdrift/a?")
