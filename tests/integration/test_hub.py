"""Models of a Hugging Face hub, here one of our own on loopback: pinned to a commit, private ones, and outages."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse
from pydantic import SecretStr

from backends.settings import Settings
from backends.sources.checkpoint_files import fingerprint
from backends.sources.pinning import Sources
from backends.storage.blobs import BlobStore
from deploy.embedded.ports import LOOPBACK, choose
from layerdrift.contract.errors import InputError, UnavailableError
from layerdrift.contract.request import AnalysisRequest
from tests.builders.texts import make_texts

TOKEN = "hf_token"


@dataclass
class Hub:
    """A hub's two calls that are needed, over folders by (repository, commit); weights lie on another host."""

    url: str = ""
    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    seen_elsewhere: list[str | None] = field(default_factory=list)

    def app(self) -> FastAPI:
        made = FastAPI()

        def check(name: str, request: Request) -> None:
            if name not in self.repositories:
                raise HTTPException(404)
            if name in self.private and request.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise HTTPException(401)

        @made.get("/api/models/{owner}/{model}/revision/{revision}")
        def info(owner: str, model: str, revision: str, request: Request, blobs: bool = False) -> dict[str, Any]:
            name = f"{owner}/{model}"
            check(name, request)
            commit = self.branches.get((name, revision), revision)
            folder = self.repositories[name].get(commit)
            if folder is None or not blobs:
                raise HTTPException(404)
            files = [
                {
                    "rfilename": path.relative_to(folder).as_posix(),
                    "size": path.stat().st_size,
                    "blobId": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
            return {"id": name, "sha": commit, "siblings": [*files, {"rfilename": "onnx/model.onnx", "size": 1}]}

        @made.get("/{owner}/{model}/resolve/{commit}/{file:path}", response_model=None)
        def resolve(
            owner: str, model: str, commit: str, file: str, request: Request
        ) -> FileResponse | RedirectResponse:
            name = f"{owner}/{model}"
            check(name, request)
            if file.endswith(".safetensors"):
                elsewhere = self.url.replace(LOOPBACK, "localhost")
                return RedirectResponse(f"{elsewhere}/storage/{name}/{commit}/{file}")
            return FileResponse(self.repositories[name][commit] / file)

        @made.get("/storage/{owner}/{model}/{commit}/{file:path}")
        def storage(owner: str, model: str, commit: str, file: str, request: Request) -> FileResponse:
            self.seen_elsewhere.append(request.headers.get("Authorization"))
            return FileResponse(self.repositories[f"{owner}/{model}"][commit] / file)

        return made


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    found = Hub()
    port = choose({"hub": 0})["hub"]
    server = uvicorn.Server(uvicorn.Config(found.app(), host=LOOPBACK, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    found.url = f"http://{LOOPBACK}:{port}"
    yield found
    server.should_exit = True
    thread.join()


@pytest.fixture
def settings(hub: Hub, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, hf_endpoint=hub.url)


def sources(settings: Settings) -> Sources:
    return Sources(settings, BlobStore.connect(settings))


def request(base: str, tuned: str) -> AnalysisRequest:
    texts = {"inline": {"texts": make_texts(30)}}
    return AnalysisRequest.model_validate({"base": {"uri": base}, "tuned": {"uri": tuned}, "dataset": texts})


def test_a_branch_is_pinned_to_its_commit_and_stays_so(
    hub: Hub, settings: Settings, base_folder: Path, noised_folder: Path, tmp_path: Path
) -> None:
    old, new = "a" * 40, "b" * 40
    hub.repositories["org/model"] = {old: base_folder, new: noised_folder}
    hub.branches["org/model", "main"] = old
    hub.branches["org/model", "v2"] = new
    pins = sources(settings).pin(request("hf://org/model", "hf://org/model@v2"))
    assert pins.tuned is not None
    assert (pins.base.revision, pins.tuned.revision) == (old, new)
    assert {file.name for file in pins.base.files} >= {"config.json", "model.safetensors", "vocab.txt"}
    assert pins == sources(settings).pin(request("hf://org/model", "hf://org/model@v2"))
    by_commit = sources(settings).pin(request("hf://org/model", f"hf://org/model@{new}"))
    assert by_commit.tuned is not None
    assert by_commit.tuned.files == pins.tuned.files
    hub.branches["org/model", "main"] = new
    heard: list[float] = []
    found = sources(settings).fetch_model(pins.base, "/base/uri", tmp_path / "fetched", heard.append)
    assert found == fingerprint(tmp_path / "fetched")
    assert (tmp_path / "fetched" / "model.safetensors").read_bytes() == (base_folder / "model.safetensors").read_bytes()
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
    moved = sources(settings).pin(request("hf://org/model", "hf://org/model@v2"))
    assert moved.base.revision == new


def test_the_checkpoint_in_a_folder_of_a_repository_is_read(
    hub: Hub, settings: Settings, base_folder: Path, tmp_path: Path
) -> None:
    commit, repository = "d" * 40, tmp_path / "repository"
    shutil.copytree(base_folder, repository / "0_Transformer")
    (repository / "1_Pooling").mkdir()
    (repository / "1_Pooling" / "config.json").write_text("{}")
    (repository / "modules.json").write_text("[]")
    (repository / ".gitattributes").write_text("")
    hub.repositories["org/st"] = {commit: repository}
    hub.branches["org/st", "main"] = commit
    pinned = sources(settings).pin(request("hf://org/st", "hf://org/st")).base
    assert (pinned.folder, pinned.revision) == ("0_Transformer", commit)
    found = sources(settings).fetch_model(pinned, "/base/uri", tmp_path / "fetched", lambda _: None)
    assert found == fingerprint(base_folder)
    shutil.copytree(base_folder, repository / "other")
    with pytest.raises(
        InputError, match=r"contains 2 checkpoints \(0_Transformer, other\); move one of them to its own"
    ):
        sources(settings).pin(request("hf://org/st", "hf://org/st"))


def test_private_models_need_the_services_token_which_goes_nowhere_else(
    hub: Hub, settings: Settings, base_folder: Path, tmp_path: Path
) -> None:
    commit = "c" * 40
    hub.repositories["org/private"] = {commit: base_folder}
    hub.branches["org/private", "main"] = commit
    hub.private.add("org/private")
    asked = request("hf://org/private", "hf://org/private")
    with pytest.raises(
        InputError, match="hf://org/private@main is private or gated; set LAYERDRIFT_HF_TOKEN to credentials"
    ):
        sources(settings).pin(asked)
    opened = settings.model_copy(update={"hf_token": SecretStr(TOKEN)})
    pins = sources(opened).pin(asked)
    hub.seen_elsewhere.clear()
    sources(opened).fetch_model(pins.base, "/base/uri", tmp_path / "fetched", lambda _: None)
    assert hub.seen_elsewhere == [None]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://org/absent", "hf://org/absent@main does not exist on http"),
        ("hf://org/model@absent", "hf://org/model@absent does not exist on http"),
        ("hf://org/model/deeper", "write hf://owner/name"),
        ("hf://../etc", "write hf://owner/name"),
        ("hf://org/model?x=1", "queries and fragments are not supported"),
    ],
)
def test_what_the_hub_does_not_have_is_refused_at_once(hub: Hub, settings: Settings, uri: str, message: str) -> None:
    with pytest.raises(InputError, match="hf:") as raised:
        sources(settings).pin(request(uri, uri))
    assert message in raised.value.errors[0].detail
    assert {error.pointer for error in raised.value.errors} == {"/base/uri", "/tuned/uri"}


def test_a_hub_that_is_away_is_no_fault_of_the_request(settings: Settings) -> None:
    nobody = settings.model_copy(update={"hf_endpoint": f"http://{LOOPBACK}:{choose({'nobody': 0})['nobody']}"})
    with pytest.raises(UnavailableError, match="the hub could not be reached for hf://org/model@main"):
        sources(nobody).pin(request("hf://org/model", "hf://org/model"))


def test_the_endpoint_is_the_one_that_huggingface_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert Settings().hf_endpoint == "http://hub.example"
    monkeypatch.delenv("HF_ENDPOINT")
    assert Settings().hf_endpoint == "https://huggingface.co"
