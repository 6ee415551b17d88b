"""Which URIs are opened, and as what. Hubs, registries and buckets behind them: tests/integration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.settings import Settings
from backends.sources import uri_resolver
from backends.sources.file_folder import Folder
from backends.sources.locations import Location
from backends.sources.uri_resolver import Opener, at_revision
from backends.storage.blobs import BlobInfo, BlobStore, Children
from backends.storage.uploads import UploadStore
from layerdrift.contract.errors import DeniedError, InputError, NotFoundError
from layerdrift.contract.upload import UploadRequest
from tests.builders.stores import MemoryBlobs

OWN = "tenants/team/checkpoints/an_x/"


class AnyBlobs(MemoryBlobs):
    """A bucket in which every prefix has one object, `config.json`, but `absent` has nothing and `denied` is closed."""

    def of_bucket(self, bucket: str) -> BlobStore:
        if bucket == "denied":
            raise DeniedError("s3://denied/ cannot be read")
        return self

    def children(self, prefix: str) -> Children:
        return Children([] if "absent" in prefix else [BlobInfo(f"{prefix}config.json", 2, "e")], [])

    def head(self, key: str) -> BlobInfo:
        if "absent" in key:
            raise NotFoundError(f"{key} does not exist")
        return BlobInfo(key, 2, "e")


class FakeRemote:
    """An MLflow registry with these models."""

    models: ClassVar[dict[str, list[str]]] = {}

    def __init__(self, *_: object) -> None:
        """Knows its server already."""

    def json(self, call: str, **params: str) -> dict[str, Any]:
        assert call.endswith("/registered-models/search")
        named = list(self.models.items())[: int(params["max_results"])]
        return {
            "registered_models": [
                {"name": name, "latest_versions": [{"version": one} for one in versions]}
                if versions
                else {"name": name}
                for name, versions in named
            ]
        }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "model").mkdir(parents=True)
    (folder / "data.csv").write_text("text\na\n")
    return folder.resolve()


@pytest.fixture
def make(root: Path) -> Callable[..., Opener]:
    def made(tenant: str = "team", **settings: Any) -> Opener:
        given = Settings(model_roots=[root], readable_buckets=["models", "shared/public/"], mlflow_url=None)
        return Opener(given.model_copy(update=settings), AnyBlobs(), tenant)

    return made


def opened(opener: Opener, uri: str, folder: bool = True) -> Location:
    return opener.open(uri, "/base/uri", folder)


def refusal(opener: Opener, uri: str, folder: bool = True) -> str:
    with pytest.raises(InputError) as raised:
        opened(opener, uri, folder)
    assert [one.pointer for one in raised.value.errors] == ["/base/uri"]
    return raised.value.detail


@pytest.mark.parametrize(
    ("uri", "folder", "message"),
    [
        ("gs://b/k", True, "the scheme must be file:, s3:, upload:, hf: or mlflow:"),
        ("bert-base-uncased", True, "the scheme must be"),
        ("", True, "the scheme must be"),
        ("hf://org/data", False, "the scheme must be file:, s3: or upload:"),
        ("mlflow://model/1", False, "the scheme must be file:, s3: or upload:"),
        ("s3://models/a?versionId=1", True, "write ? as %3F"),
        ("s3://models/a#b", True, "# as %23"),
        ("s3://models", True, "write s3://bucket/key"),
        ("s3:///key", True, "write s3://bucket/key"),
        ("s3://models/%ff", True, "cannot be read"),
        ("s3://models/absent", True, "contains no objects"),
        ("s3://models/absent.csv", False, "does not exist"),
        ("upload://up_short", True, "write upload://up_..."),
        ("upload://up_" + "A" * 26, True, "write upload://up_..."),
        ("upload://up_" + "a" * 26, True, "there is no upload"),
        ("hf://a/b/c", True, "write hf://owner/name"),
        ("hf://-a/b", True, "write hf://owner/name"),
        ("hf://", True, "write hf://owner/name"),
        ("mlflow://model/1", True, "set LAYERDRIFT_MLFLOW_URL"),
    ],
)
def test_a_uri_that_cannot_be_opened_says_how_to_write_it(
    make: Callable[..., Opener], uri: str, folder: bool, message: str
) -> None:
    assert message in refusal(make(), uri, folder)


@pytest.mark.parametrize("uri", ["mlflow://model", "mlflow://model/latest", "mlflow://a/b/1", "models:/model/-1"])
def test_a_registered_model_has_a_version_or_an_alias(make: Callable[..., Opener], uri: str) -> None:
    assert "write mlflow://name/3 or mlflow://name@alias" in refusal(make(mlflow_url="http://mlflow.invalid"), uri)


def test_a_tracking_server_that_is_a_folder_is_none(make: Callable[..., Opener]) -> None:
    assert "this service has no MLflow server" in refusal(make(mlflow_url="file:///mlruns"), "mlflow://model/1")


@pytest.mark.parametrize(
    "place",
    ["models/a", "models/a/b/", "shared/public/a", f"layerdrift/{OWN}"],
)
def test_readable_buckets_and_own_checkpoints_are_opened(make: Callable[..., Opener], place: str) -> None:
    assert [file.name for file in opened(make(), f"s3://{place}").files()] == ["config.json"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("modelsx/a", "LAYERDRIFT_READABLE_BUCKETS"),
        ("model/s/a", "LAYERDRIFT_READABLE_BUCKETS"),
        ("shared/private/a", "LAYERDRIFT_READABLE_BUCKETS"),
        ("shared/publicity", "LAYERDRIFT_READABLE_BUCKETS"),
        ("layerdrift/tenants/team/jobs/an_x.json", "in the service's own bucket only tenants/team/checkpoints/"),
        ("layerdrift/tenants/other/checkpoints/an_x/", "in the service's own bucket only"),
        ("layerdrift/keys/x.json", "in the service's own bucket only"),
        ("layerdrift/tenants/team/checkpoints/../../other/checkpoints/an_x/", "cannot contain the parts . and .."),
        (
            "layerdrift/tenants/team/checkpoints/%2e%2e/%2E./other/checkpoints/an_x/",
            "cannot contain the parts . and ..",
        ),
        ("shared/public/./../private/a", "cannot contain the parts . and .."),
    ],
)
@pytest.mark.parametrize("folder", [True, False])
def test_other_objects_are_not_opened(make: Callable[..., Opener], place: str, message: str, folder: bool) -> None:
    assert message in refusal(make(), f"s3://{place}", folder)


def test_a_star_opens_all_buckets_but_the_services_own(make: Callable[..., Opener]) -> None:
    opener = make(readable_buckets=["*"])
    assert opened(opener, "s3://any/a").files()
    assert "own bucket" in refusal(opener, "s3://layerdrift/keys/x.json")


def test_what_the_credentials_may_not_read_is_an_input_error(make: Callable[..., Opener]) -> None:
    assert "cannot be read" in refusal(make(readable_buckets=["*"]), "s3://denied/a")


@pytest.mark.parametrize(
    ("uri", "name"),
    [("s3://models/x.csv", "x.csv"), ("s3://models/a%20b/%3Fx.csv", "?x.csv"), ("s3://models/a/b", "b")],
)
def test_a_data_set_in_a_bucket_is_its_one_object(make: Callable[..., Opener], uri: str, name: str) -> None:
    assert [file.name for file in opened(make(), uri, folder=False).files()] == [name]


def test_a_data_set_on_this_disk_is_its_one_file(make: Callable[..., Opener], root: Path) -> None:
    for start in ("file://", "file://localhost"):
        location = opened(make(), f"{start}{root}/data.csv", folder=False)
        assert [file.name for file in location.files()] == ["data.csv"]
    assert isinstance(opened(make(), f"file://{root}/model/"), Folder)


def test_a_file_is_no_checkpoint_and_what_is_outside_names_the_setting(make: Callable[..., Opener], root: Path) -> None:
    assert "is not a folder" in refusal(make(), f"file://{root}/data.csv")
    assert f"may read ({root}); see LAYERDRIFT_MODEL_ROOTS" in refusal(make(), f"file://{root}x/model")
    assert "outside the folders" in refusal(make(), f"file://{root}/model/%2e%2e/%2e%2e")
    assert "write file:///absolute/path" in refusal(make(), "file://host/model")


def test_an_upload_is_opened_by_its_tenant_alone() -> None:
    blobs = MemoryBlobs()
    settings = Settings()
    kept = UploadStore(blobs, settings.max_upload_bytes).keep_inline("team", b"text\na\n", "x.csv")
    assert [file.name for file in opened(Opener(settings, blobs, "team"), kept.uri, folder=False).files()] == ["x.csv"]
    assert "there is no upload" in refusal(Opener(settings, blobs, "other"), kept.uri, folder=False)
    assert "not a readable zip" in refusal(Opener(settings, blobs, "team"), kept.uri)


def test_an_upload_without_bytes_is_told_where_to_send_them() -> None:
    blobs = MemoryBlobs()
    settings = Settings()
    waiting = UploadStore(blobs, settings.max_upload_bytes).announce("team", UploadRequest(filename="m.zip"))
    opener = Opener(settings, blobs, "team")
    assert f"has no bytes yet; PUT them to /v1/uploads/{waiting.id}" in refusal(opener, waiting.uri)


def test_registered_models_are_named_with_their_newest_version(
    make: Callable[..., Opener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uri_resolver, "Remote", FakeRemote)
    monkeypatch.setattr(FakeRemote, "models", {"a": ["1", "3"], "without versions": [], "b": ["2"], "c": ["1"]})
    assert make(mlflow_url="http://mlflow.invalid").registered_models(3) == ["a/3", "b/2"]
    assert make(mlflow_url=None).registered_models(3) == []


@pytest.mark.parametrize(
    ("uri", "revision", "pinned"),
    [
        ("file:///m", None, "file:///m"),
        ("hf://org/model", "abc", "hf://org/model@abc"),
        ("hf://org/model@main", "abc", "hf://org/model@abc"),
        ("hf://org/model@feature/x", "abc", "hf://org/model@abc"),
        ("mlflow://model/3", "3", "mlflow://model/3"),
        ("mlflow://model@champion", "3", "mlflow://model/3"),
        ("models:/model@champion", "3", "mlflow://model/3"),
        ("models:/model/3", "3", "mlflow://model/3"),
        ("mlflow://my%20model@champion", "3", "mlflow://my%20model/3"),
    ],
)
def test_a_pinned_uri_names_what_was_found_whatever_its_branch_or_alias_says_later(
    uri: str, revision: str | None, pinned: str
) -> None:
    assert at_revision(uri, revision) == pinned
