"""Checkpoints of a real MLflow registry: pinned to a version, wherever its artifacts lie."""

from __future__ import annotations

import shutil
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr

from backends.settings import Settings
from backends.sources.checkpoint_files import fingerprint
from backends.sources.pinning import Pins, Sources
from backends.storage.blobs import BlobStore
from deploy.embedded.ports import LOOPBACK, choose
from layerdrift.contract.errors import InputError, UnavailableError
from layerdrift.contract.request import AnalysisRequest
from tests.builders.texts import make_texts
from tests.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow  # starts an MLflow server


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def settings(mlflow: MlflowServer, tmp_path: Path, roots: Path) -> Settings:
    return Settings(home=tmp_path, mlflow_url=mlflow.url, model_roots=[roots])


def sources(settings: Settings) -> Sources:
    return Sources(settings, BlobStore.connect(settings))


def pin(settings: Settings, base: str, tuned: str) -> Pins:
    texts = {"inline": {"texts": make_texts(30)}}
    request = AnalysisRequest.model_validate({"base": {"uri": base}, "tuned": {"uri": tuned}, "dataset": texts})
    return sources(settings).pin(request)


def test_an_alias_is_pinned_to_its_version_and_stays_so(
    mlflow: MlflowServer, settings: Settings, base_folder: Path, noised_folder: Path, tmp_path: Path
) -> None:
    assert mlflow.register("reviews", base_folder) == "1"
    assert mlflow.register("reviews", noised_folder) == "2"
    mlflow.alias("reviews", "champion", "1")
    mlflow.alias("reviews", "challenger", "2")
    pins = pin(settings, "mlflow://reviews@champion", "models:/reviews@challenger")
    assert pins.tuned is not None
    assert (pins.base.revision, pins.tuned.revision) == ("1", "2")
    by_number = pin(settings, "mlflow://reviews/1", "mlflow://reviews/@challenger")
    assert by_number.tuned is not None
    assert (by_number.base.files, by_number.tuned.files) == (pins.base.files, pins.tuned.files)
    mlflow.alias("reviews", "champion", "2")
    for pinned, folder, name in ((pins.base, base_folder, "base"), (pins.tuned, noised_folder, "tuned")):
        found = sources(settings).fetch_model(pinned, f"/{name}/uri", tmp_path / name, lambda _: None)
        assert found == fingerprint(folder)
    assert (tmp_path / "base" / "vocab.txt").exists() or (tmp_path / "base" / "tokenizer.json").exists()
    assert pin(settings, "mlflow://reviews@champion", "mlflow://reviews/2").base.revision == "2"


def test_the_layout_of_mlflow_transformers_is_read(
    mlflow: MlflowServer, settings: Settings, base_folder: Path, tmp_path: Path
) -> None:
    mlflow.register_as_mlflow_logs("logged", base_folder)
    pins = pin(settings, "mlflow://logged/1", "mlflow://logged/1")
    found = sources(settings).fetch_model(pins.base, "/base/uri", tmp_path / "fetched", lambda _: None)
    assert found == fingerprint(base_folder)
    assert {path.name for path in (tmp_path / "fetched").iterdir()} >= {"tokenizer_config.json", "config.json"}


def test_an_adapter_of_mlflow_transformers_is_an_adapter_with_its_tokenizer(
    mlflow: MlflowServer, settings: Settings, base_folder: Path, tmp_path: Path
) -> None:
    mlflow.register("base-of-adapter", base_folder)
    logged = tmp_path / "logged"
    for name in ("peft/adapter_config.json", "peft/adapter_model.safetensors", "components/tokenizer/tokenizer.json"):
        (logged / name).parent.mkdir(parents=True, exist_ok=True)
        (logged / name).write_text('{"peft_type": "LORA"}')
    (logged / "MLmodel").write_text("flavors:")
    mlflow.register_tree("adapter", logged)
    pins = pin(settings, "mlflow://base-of-adapter/1", "mlflow://adapter/1")
    assert pins.tuned is not None
    assert (pins.tuned.adapter, pins.tuned.folder) == (True, "peft")
    sources(settings).fetch_model(pins.tuned, "/tuned/uri", tmp_path / "fetched", lambda _: None)
    fetched = {path.name for path in (tmp_path / "fetched").iterdir()}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("where", ["", "0_Transformer"])
def test_the_layout_of_mlflow_sentence_transformers_is_read(
    mlflow: MlflowServer, settings: Settings, base_folder: Path, tmp_path: Path, where: str
) -> None:
    model = tmp_path / "logged" / "model.sentence_transformer"
    shutil.copytree(base_folder, model / where)
    (model / "modules.json").write_text("[]")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    name = f"st-{where or 'top'}"
    mlflow.register_tree(name, tmp_path / "logged")
    pins = pin(settings, f"mlflow://{name}/1", f"mlflow://{name}/1")
    found = sources(settings).fetch_model(pins.base, "/base/uri", tmp_path / "fetched", lambda _: None)
    assert found == fingerprint(base_folder)


def test_artifacts_beside_the_server_are_read_under_the_rules_of_the_service(
    mlflow: MlflowServer, settings: Settings, base_folder: Path, roots: Path, tmp_path: Path
) -> None:
    mlflow.register_beside("beside", base_folder, roots / "mlflow")
    assert pin(settings, "mlflow://beside/1", "mlflow://beside/1").base.revision == "1"
    outside = settings.model_copy(update={"model_roots": [tmp_path / "elsewhere"]})
    with pytest.raises(InputError, match="is outside the folders that this service may read"):
        pin(outside, "mlflow://beside/1", "mlflow://beside/1")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlflow://absent/1", "mlflow://absent/1 does not exist on http"),
        ("mlflow://known/99", "mlflow://known/99 does not exist on http"),
        ("mlflow://known@absent", "mlflow://known@absent does not exist; aliases of known: @here"),
        ("mlflow://known", "write mlflow://name/3 or mlflow://name@alias"),
        ("mlflow://known/latest", "write mlflow://name/3 or mlflow://name@alias"),
        ("mlflow://known/../1", "write mlflow://name/3 or mlflow://name@alias"),
    ],
)
def test_what_the_registry_does_not_have_is_refused_at_once(
    mlflow: MlflowServer, settings: Settings, base_folder: Path, uri: str, message: str
) -> None:
    if not mlflow.has("known"):
        mlflow.alias("known", "here", mlflow.register("known", base_folder))
    with pytest.raises(InputError) as raised:
        pin(settings, uri, uri)
    assert message in raised.value.errors[0].detail
    assert {error.pointer for error in raised.value.errors} == {"/base/uri", "/tuned/uri"}


def test_without_a_server_the_setting_is_named(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"mlflow_url": None})
    with pytest.raises(InputError, match="set LAYERDRIFT_MLFLOW_URL"):
        pin(nowhere, "mlflow://reviews/1", "mlflow://reviews/1")


def test_a_server_that_is_away_is_no_fault_of_the_request(settings: Settings) -> None:
    nobody = settings.model_copy(update={"mlflow_url": f"http://{LOOPBACK}:{choose({'nobody': 0})['nobody']}"})
    with pytest.raises(UnavailableError, match="the MLflow server could not be reached for mlflow://reviews/1"):
        pin(nobody, "mlflow://reviews/1", "mlflow://reviews/1")


def test_the_servers_password_opens_it(settings: Settings) -> None:
    class Locked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            right = b64encode(b"layerdrift:secret").decode()
            self.send_response(404 if self.headers.get("Authorization") == f"Basic {right}" else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer((LOOPBACK, 0), Locked) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        closed = settings.model_copy(update={"mlflow_url": f"http://{LOOPBACK}:{server.server_port}"})
        with pytest.raises(
            InputError, match="set LAYERDRIFT_MLFLOW_TOKEN or LAYERDRIFT_MLFLOW_USERNAME to credentials"
        ):
            pin(closed, "mlflow://reviews/1", "mlflow://reviews/1")
        opened = closed.model_copy(update={"mlflow_username": "layerdrift", "mlflow_password": SecretStr("secret")})
        with pytest.raises(InputError, match="mlflow://reviews/1 does not exist"):
            pin(opened, "mlflow://reviews/1", "mlflow://reviews/1")
        server.shutdown()
        thread.join()
