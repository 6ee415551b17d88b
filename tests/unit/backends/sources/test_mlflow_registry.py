"""The layouts of MLflow's flavours, on a registry whose server is made of folders. A real one: test_mlflow_sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.settings import Settings
from backends.sources import mlflow_registry
from backends.sources.pinning import PinnedModel, Sources
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import InputError, NotFoundError
from layerdrift.contract.request import AnalysisRequest

SERVED = "/api/2.0/mlflow-artifacts/artifacts"


class FakeRemote:
    """What a tracking server answers for models whose artifacts lie in folders of `root`, one for each name."""

    root = Path()
    scheme = "mlflow-artifacts:"

    def __init__(self, what: str, url: str, uri: str, *_: object) -> None:
        self._uri = uri

    def json(self, call: str, **params: str) -> dict[str, Any]:
        if call.endswith("/model-versions/get"):
            if not (self.root / params["name"]).is_dir():
                raise NotFoundError(f"{self._uri} does not exist")
            return {"model_version": {"name": params["name"], "version": params["version"], "creation_timestamp": 1}}
        if call.endswith("/get-download-uri"):
            return {"artifact_uri": f"{self.scheme}{self.root if self.scheme == 'file://' else ''}/{params['name']}"}
        assert call == SERVED
        folder = self.root / params["path"]
        if not folder.is_dir():
            raise NotFoundError(f"{self._uri} does not exist")
        return {
            "files": [
                {"path": path.name, "is_dir": path.is_dir(), "file_size": 0 if path.is_dir() else path.stat().st_size}
                for path in sorted(folder.iterdir())
            ]
        }

    def head(self, path: str, length: int) -> bytes:
        return (self.root / path.removeprefix(SERVED).lstrip("/")).read_bytes()[:length]

    def chunks(self, path: str) -> Iterator[bytes]:
        yield self.head(path, 1 << 30)


@pytest.fixture(params=["mlflow-artifacts:", "file://"])
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Where artifacts lie: served by the tracking server, or read from this disk."""
    folder = tmp_path / "artifacts"
    monkeypatch.setattr(FakeRemote, "root", folder)
    monkeypatch.setattr(FakeRemote, "scheme", request.param)
    monkeypatch.setattr(mlflow_registry, "Remote", FakeRemote)
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


MODEL = {"config.json": '{"model_type": "bert"}', "model.safetensors": "weights"}
ADAPTER = {"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": "adapter"}
TOKENIZER = {"components/tokenizer/tokenizer.json": "{}", "components/tokenizer/special_tokens_map.json": "{}"}


def inside(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def pinned(root: Path, name: str, tmp_path: Path) -> tuple[PinnedModel, dict[str, str]]:
    """What is pinned of a model as the tuned one, and its files when fetched."""
    write(root / "base", {**MODEL, "vocab.txt": "[PAD]"})
    sources = made(root)
    pins = sources.pin(asked("mlflow://base/1", f"mlflow://{name}/1"))
    assert pins.tuned is not None
    sources.fetch_model(pins.tuned, "/tuned/uri", tmp_path / "fetched", lambda _: None)
    return pins.tuned, {path.name: path.read_text() for path in (tmp_path / "fetched").iterdir()}


def made(root: Path) -> Sources:
    settings = Settings(mlflow_url="http://mlflow", model_roots=[root])
    return Sources(settings, BlobStore(None, settings.s3_bucket))


def asked(base: str, tuned: str) -> AnalysisRequest:
    texts = {"inline": {"texts": [f"text {number}" for number in range(30)]}}
    return AnalysisRequest.model_validate({"base": {"uri": base}, "tuned": {"uri": tuned}, "dataset": texts})


def test_a_plain_folder_is_the_checkpoint(root: Path, tmp_path: Path) -> None:
    write(root / "plain", {**MODEL, "MLmodel": "flavors:", "vocab.txt": "[PAD]"})
    model, files = pinned(root, "plain", tmp_path)
    assert (model.folder, model.revision, model.adapter) == ("", "1", False)
    assert files == {**MODEL, "vocab.txt": "[PAD]"}


@pytest.mark.parametrize("folder", ["model", "pipeline"])
def test_a_model_of_mlflow_transformers_has_its_tokenizer(root: Path, tmp_path: Path, folder: str) -> None:
    write(root / "logged", {"MLmodel": "flavors:", **inside(folder, MODEL), **TOKENIZER})
    model, files = pinned(root, "logged", tmp_path)
    assert model.folder == folder
    assert files == {**MODEL, "tokenizer.json": "{}", "special_tokens_map.json": "{}"}
    both = made(root).pin(asked("mlflow://logged/1", "mlflow://logged/1"))
    assert both.base.files == model.files


def test_a_peft_model_of_mlflow_transformers_is_an_adapter(root: Path, tmp_path: Path) -> None:
    write(root / "tuned", {"MLmodel": "flavors:", **inside("peft", ADAPTER), **TOKENIZER})
    model, files = pinned(root, "tuned", tmp_path)
    assert (model.folder, model.adapter) == ("peft", True)
    assert files == {**ADAPTER, "tokenizer.json": "{}", "special_tokens_map.json": "{}"}


def test_an_adapter_counts_before_the_base_that_mlflow_keeps_beside_it(root: Path, tmp_path: Path) -> None:
    write(root / "tuned", {"MLmodel": "flavors:", **inside("peft", ADAPTER), **inside("model", MODEL)})
    model, files = pinned(root, "tuned", tmp_path)
    assert (model.folder, model.adapter, files) == ("peft", True, ADAPTER)
    with pytest.raises(InputError, match="the base must be a full checkpoint"):
        made(root).pin(asked("mlflow://tuned/1", "mlflow://base/1"))


@pytest.mark.parametrize("where", ["model.sentence_transformer", "model.sentence_transformer/0_Transformer"])
def test_sentence_transformers_of_mlflow_are_read(root: Path, tmp_path: Path, where: str) -> None:
    files = inside(where, {**MODEL, "vocab.txt": "[PAD]"})
    layer = {"model.sentence_transformer/1_Pooling/config.json": json.dumps({"word_embedding_dimension": 4})}
    write(root / "st", {"MLmodel": "", "model.sentence_transformer/modules.json": "[]", **files, **layer})
    model, fetched = pinned(root, "st", tmp_path)
    assert (model.folder, fetched) == (where, {**MODEL, "vocab.txt": "[PAD]"})


def test_components_without_a_tokenizer_do_no_harm(root: Path, tmp_path: Path) -> None:
    write(root / "seen", {**inside("model", MODEL), "components/image_processor/preprocessor_config.json": "{}"})
    assert pinned(root, "seen", tmp_path)[1] == MODEL


def test_what_the_server_has_lost_since_is_an_input_error(root: Path, tmp_path: Path) -> None:
    write(root / "logged", {**inside("model", MODEL), **TOKENIZER})
    sources = made(root)
    model = sources.pin(asked("mlflow://logged/1", "mlflow://logged/1")).base
    (root / "logged").rename(root / "moved")
    with pytest.raises(InputError, match="mlflow://logged/1"):
        sources.fetch_model(model, "/base/uri", tmp_path / "fetched", lambda _: None)
