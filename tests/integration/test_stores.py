"""S3 stores that lack what AWS has, and checkpoints in folders of a bucket and of an uploaded zip."""

from __future__ import annotations

import io
import json
import logging
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import boto3
import httpx
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError
from fastapi import Response

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.settings import Settings
from backends.sources.checkpoint_files import fingerprint
from backends.sources.pinning import PinnedDataset, PinnedModel, Pins
from backends.storage import key_names
from backends.storage.blobs import BlobStore
from deploy.embedded.ports import LOOPBACK, choose
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.upload import UploadRequest
from service.routes.health import ready
from tests.builders.texts import make_texts
from tests.s3_proxy import Conditional, OtherStore, other_store


@pytest.fixture(params=get_args(Conditional))
def store(settings: Settings, deployment: Deployment, request: pytest.FixtureRequest) -> Iterator[OtherStore]:
    """A store that refuses checksum headers and takes `If-None-Match` in one of four ways."""
    with other_store(settings, request.param) as running:
        yield running


@pytest.fixture
def behind(store: OtherStore) -> Settings:
    return store.settings.model_copy(update={"s3_endpoint": store.url, "s3_public_endpoint": store.url})


def job() -> JobRecord:
    request = AnalysisRequest.model_validate(
        {"base": {"uri": "file:///a"}, "tuned": {"uri": "file:///b"}, "dataset": {"uri": "s3://d/x.csv"}}
    )
    model = PinnedModel(uri="file:///a", files=[])
    pins = Pins(base=model, tuned=model, dataset=PinnedDataset(source="s3://d/x.csv"))
    return JobRecord(id=f"an_{uuid.uuid4().hex[:26]}", created_at=datetime.now(UTC), request=request, pins=pins)


@pytest.mark.parametrize("store", ["honoured"], indirect=True)
def test_no_checksum_header_is_sent(store: OtherStore, behind: Settings, tmp_path: Path) -> None:
    blobs = BlobStore.connect(behind)
    large = b"x" * (9 << 20)
    (tmp_path / "large").write_bytes(large)
    blobs.put("sums/a", b"0123456789", "text/plain")
    blobs.put_file("sums/b", tmp_path / "large")
    token = blobs.begin_parts("sums/c")
    blobs.complete_parts("sums/c", token, [blobs.put_part("sums/c", token, 1, b"part")])
    blobs.get_file("sums/b", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large
    assert blobs.get("sums/a", start=2, length=3) == b"234"
    assert b"".join(blobs.chunks("sums/c", 2)) == b"part"
    assert httpx.get(blobs.link("sums/a", 60)).content == b"0123456789"
    blobs.delete_all("sums/")
    assert blobs.list("sums/") == []
    assert store.refused == []


@pytest.mark.parametrize("store", ["honoured"], indirect=True)
def test_the_other_store_refuses_what_boto3_sends_by_default(store: OtherStore, behind: Settings) -> None:
    """Else the test above would say nothing."""
    assert behind.s3_access_key is not None
    assert behind.s3_secret_key is not None
    client = boto3.client(
        "s3",
        endpoint_url=store.url,
        region_name=behind.s3_region,
        aws_access_key_id=behind.s3_access_key.get_secret_value(),
        aws_secret_access_key=behind.s3_secret_key.get_secret_value(),
        config=Config(s3={"addressing_style": "path"}),
    )
    with pytest.raises(ClientError, match="NotImplemented"):
        client.put_object(Bucket=behind.s3_bucket, Key="a", Body=b"x")
    assert store.refused


def test_conditional_writes_are_found_out_and_done_without(store: OtherStore, behind: Settings) -> None:
    blobs = BlobStore.connect(behind)
    assert blobs.conditional_writes is None
    assert blobs.supports_conditional_writes() is (store.conditional == "honoured")
    assert blobs.conditional_writes is (store.conditional == "honoured")
    assert blobs.list(key_names.PROBES) == []
    key = f"new/{uuid.uuid4().hex}"
    assert blobs.put_new(key, b"first", "text/plain")
    assert not blobs.put_new(key, b"second", "text/plain")
    assert blobs.get(key) == b"first"


def test_equal_submissions_make_one_job_on_any_store(store: OtherStore, behind: Settings, valkey: redis.Redis) -> None:
    record = job()
    stores = [Deployment.connect(behind).jobs for _ in range(32)]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda one: one.submit(record), stores))
    assert sum(to_run for _, to_run in answers) == 1
    assert {found.id for found, _ in answers} == {record.id}


def test_a_store_without_them_is_warned_of_and_shows_in_readiness(
    store: OtherStore, behind: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    made = Deployment.connect(behind)
    has_them = store.conditional == "honoured"
    with caplog.at_level(logging.WARNING, "layerdrift"):
        assert made.probe_store() is has_them
    assert ("does not support conditional writes" in caplog.text) is not has_them
    answer = ready(made, Response())
    assert (answer.s3, answer.s3_conditional_writes) == ("ok", has_them)


@pytest.mark.parametrize("store", ["honoured"], indirect=True)
def test_a_store_that_is_away_is_asked_again_when_it_is_back(
    store: OtherStore, behind: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"http://{LOOPBACK}:{choose({'nobody': 0})['nobody']}"
    away = Deployment.connect(behind.model_copy(update={"s3_endpoint": nobody}))
    with caplog.at_level(logging.WARNING, "layerdrift"):
        assert away.probe_store() is None
    assert "could not check yet" in caplog.text
    answer = ready(away, Response())
    assert (answer.ready, answer.s3_conditional_writes) == (False, None)
    back = Deployment.connect(behind)  # started without a probe, as where S3 was away
    assert ready(back, Response()).s3_conditional_writes is True


def request_of(base: str, tuned: str) -> AnalysisRequest:
    texts = {"inline": {"texts": make_texts(30)}}
    return AnalysisRequest.model_validate({"base": {"uri": base}, "tuned": {"uri": tuned}, "dataset": texts})


@pytest.fixture
def bucket(deployment: Deployment) -> BlobStore:
    """Another bucket than the service's own, empty."""
    made = deployment.blobs.of_bucket("models")
    made.ensure_bucket()
    made.delete_all("")
    return made


def upload_folder(bucket: BlobStore, folder: Path, prefix: str) -> None:
    for path in folder.iterdir():
        bucket.put(f"{prefix}{path.name}", path.read_bytes(), "application/octet-stream")


def test_the_checkpoint_below_a_prefix_is_found_and_fetched(
    deployment: Deployment, bucket: BlobStore, base_folder: Path, tmp_path: Path
) -> None:
    upload_folder(bucket, base_folder, "st/0_Transformer/")
    bucket.put("st/1_Pooling/config.json", b"{}", "application/json")
    bucket.put("st/modules.json", b"[]", "application/json")
    bucket.put("st/.DS_Store", b"", "application/octet-stream")
    pinned = deployment.sources.pin(request_of("s3://models/st", "s3://models/st/0_Transformer/")).base
    assert pinned.folder == "0_Transformer"
    found = deployment.sources.fetch_model(pinned, "/base/uri", tmp_path / "fetched", lambda _: None)
    assert found == fingerprint(base_folder)


def test_a_prefix_with_nothing_but_folders_of_checkpoints_asks_for_one(
    deployment: Deployment, bucket: BlobStore, base_folder: Path
) -> None:
    for step in (500, 1000):
        upload_folder(bucket, base_folder, f"run/checkpoint-{step}/")
    with pytest.raises(InputError, match="contains 2 checkpoints") as raised:
        deployment.sources.pin(request_of("s3://models/run/", "s3://models/run/checkpoint-500"))
    assert [problem.pointer for problem in raised.value.errors] == ["/base/uri"]
    assert "s3://models/run/checkpoint-1000/" in raised.value.detail
    with pytest.raises(InputError, match="contains no objects"):
        deployment.sources.pin(request_of("s3://models/absent", "s3://models/run/checkpoint-500"))


def test_an_uploaded_zip_of_the_finder_is_read_from_the_bucket(
    deployment: Deployment, base_folder: Path, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in base_folder.iterdir():
            archive.write(path, f"model/best/{path.name}")
            archive.writestr(f"__MACOSX/model/best/._{path.name}", b"junk")
        archive.writestr("model/.DS_Store", b"junk")
        archive.writestr("model/runs/events", json.dumps({}))
    announced = deployment.uploads.announce("default", UploadRequest(filename="model.zip"))
    receiver = deployment.uploads.receive("default", announced.id)
    receiver.take(buffer.getvalue())
    uri = receiver.finish().uri
    pinned = deployment.sources.pin(request_of(uri, uri)).base
    assert pinned.folder == "best"
    found = deployment.sources.fetch_model(pinned, "/base/uri", tmp_path / "fetched", lambda _: None)
    assert found == fingerprint(base_folder)
