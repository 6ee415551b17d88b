from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from backends.deployment import Deployment
from backends.settings import Settings
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import InputError, TooLargeError, UnavailableError
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.upload import UploadRequest


class Probed(BlobStore):
    """A bucket that answers the probe so, or cannot be asked."""

    def __init__(self, answer: bool | None) -> None:
        super().__init__(None, "bucket")
        self._answer = answer

    def supports_conditional_writes(self) -> bool:
        if self._answer is None:
            raise UnavailableError("S3 could not be reached")
        return self._answer


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """One whose servers there are nowhere."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"), redis_url="redis://redis.invalid:6379/0", s3_endpoint="http://s3.invalid"
    )
    return Deployment.connect(settings)


def test_a_process_starts_while_its_servers_are_away(deployment: Deployment) -> None:
    assert deployment.blobs.conditional_writes is None  # nothing has been asked yet


@pytest.mark.parametrize(
    ("answer", "warning"),
    [
        (True, ""),
        (False, "does not support conditional writes (If-None-Match)"),
        (None, "could not check yet whether S3 supports conditional writes: S3 could not be reached"),
    ],
)
def test_a_store_that_may_make_a_job_twice_is_warned_of(
    deployment: Deployment, answer: bool | None, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    probed = dataclasses.replace(deployment, blobs=Probed(answer))
    with caplog.at_level(logging.WARNING, "backends.deployment"):
        assert probed.probe_store() is answer
    assert len(caplog.records) == bool(warning)
    assert warning in caplog.text


def test_limits_and_folders_of_the_settings_hold_in_its_parts(deployment: Deployment, tmp_path: Path) -> None:
    changes = {"max_upload_bytes": 5, "model_roots": [tmp_path], "s3_bucket": "elsewhere"}
    made = Deployment.connect(deployment.settings.model_copy(update=changes))
    with pytest.raises(TooLargeError, match="the limit of this service is 5"):
        made.uploads.announce("default", UploadRequest(filename="x.csv", bytes=6))
    outside = {"base": {"uri": "file:///a"}, "tuned": {"uri": "s3://elsewhere/b"}, "dataset": {"uri": "file:///x.csv"}}
    with pytest.raises(InputError) as raised:
        made.sources.pin(AnalysisRequest.model_validate(outside))
    said = {one.pointer: one.detail for one in raised.value.errors}
    assert f"may read ({tmp_path.resolve()})" in said["/base/uri"]
    assert "in the service's own bucket only" in said["/tuned/uri"]
