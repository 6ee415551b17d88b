from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.settings import Settings
from backends.sources import file_cache
from backends.sources.pinning import Sources
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import InputError, StageError
from layerdrift.contract.request import AnalysisRequest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "data.csv").write_text("text,label\nhello,1\n")
    return folder


@pytest.fixture
def sources(root: Path) -> Sources:
    settings = Settings(model_roots=[root])
    return Sources(settings, BlobStore(None, settings.s3_bucket))


def checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "vocab.txt").write_text("[PAD]")
    return folder


def rewrite(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))


def pair(base: Path, tuned: Path, data: Path) -> AnalysisRequest:
    return AnalysisRequest.model_validate(
        {
            "base": {"uri": base.as_uri()},
            "tuned": {"uri": tuned.as_uri()},
            "dataset": {"uri": data.as_uri()},
        }
    )


def test_pins_hold_the_files_that_will_be_read_and_no_others(root: Path, sources: Sources) -> None:
    base = checkpoint(root / "a")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    (base / "modeling_evil.py").write_text("print('run')")
    pins = sources.pin(pair(base, base, root / "data.csv"))
    assert [file.name for file in pins.base.files] == ["config.json", "model.safetensors", "vocab.txt"]
    assert pins.dataset.file is not None
    assert pins.dataset.file.name == "data.csv"


def test_a_benign_fine_tune_is_pinned_beside_the_pair_and_refused_at_its_place(root: Path, sources: Sources) -> None:
    base, data = checkpoint(root / "a", num_hidden_layers=2), root / "data.csv"
    other, plain = checkpoint(root / "b", num_hidden_layers=3), checkpoint(root / "plain", num_hidden_layers=2)
    body = pair(base, base, data).model_dump(mode="json")
    for place, problem in (
        (plain, None),
        (base, "the benign fine-tune is the tuned model"),
        (other, "base 2, benign 3"),
        (root / "absent", "is not a folder"),
    ):
        body["analysis"]["learned"] = {"benign": {"uri": place.as_uri()}}
        asked = AnalysisRequest.model_validate(body)
        if problem is None:
            pinned = sources.pin(asked).benign
            assert pinned is not None
            assert pinned.uri == plain.as_uri()
            continue
        with pytest.raises(InputError, match=problem) as raised:
            sources.pin(asked)
        assert [one.pointer for one in raised.value.errors] == ["/analysis/learned/benign/uri"]
    assert sources.pin(pair(base, base, data)).benign is None


def test_a_changed_file_is_noticed_before_it_is_read(root: Path, sources: Sources, tmp_path: Path) -> None:
    base = checkpoint(root / "a")
    pins = sources.pin(pair(base, base, root / "data.csv"))
    (base / "model.safetensors").write_bytes(b"other weights")
    shares: list[float] = []
    with pytest.raises(InputError, match="changed after the request was accepted"):
        sources.fetch_model(pins.base, "/base/uri", tmp_path / "staged", shares.append)


def test_the_fingerprint_depends_on_the_weights_alone(root: Path, sources: Sources, tmp_path: Path) -> None:
    one, same, other = (checkpoint(root / name) for name in ("a", "b", "c"))
    (other / "model.safetensors").write_bytes(b"others!")
    found, shares = [], list[float]()
    for folder in (one, same, other):
        pins = sources.pin(pair(folder, folder, root / "data.csv"))
        found.append(sources.fetch_model(pins.base, "/base/uri", tmp_path / folder.name, shares.append))
    assert found[0] == found[1] != found[2]
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json of .* is not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "has no model_type"),
        (lambda folder: (folder / "config.json").write_bytes("{}".encode("utf-16")), "is not JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "\\ud800"}' * 2), "is not JSON"),
        (lambda folder: rewrite(folder, num_hidden_layers=100_000), "blocks is 100000; must be 1 to 1000"),
        (lambda folder: rewrite(folder, hidden_size=0), "hidden width is 0"),
        (lambda folder: rewrite(folder, num_hidden_layers="12"), "blocks is '12'"),
        (lambda folder: (folder / "vocab.txt").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "a.safetensors"), "model.safetensors"),
        (lambda folder: os.truncate(folder / "model.safetensors", 200 * 2**30), "the limit of this service is"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only pickled weights .*safe_serialization",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"w": "../../secret.safetensors"}})
            ),
            "lists files that are not in the folder",
        ),
    ],
)
def test_an_unusable_checkpoint_is_refused_at_once(root: Path, sources: Sources, break_it: Any, message: str) -> None:
    base = checkpoint(root / "a")
    break_it(base)
    with pytest.raises(InputError, match=message) as caught:
        sources.pin(pair(base, checkpoint(root / "b"), root / "data.csv"))
    assert [problem.pointer for problem in caught.value.errors] == ["/base/uri"]


@pytest.mark.parametrize(
    ("tuned", "message"),
    [({"num_hidden_layers": 3}, "differ in blocks: base 2, tuned 3"), ({"hidden_size": 5}, "differ in hidden width")],
)
def test_two_shapes_are_refused_at_once(root: Path, sources: Sources, tuned: dict[str, int], message: str) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 4}
    base, other = checkpoint(root / "a", **shape), checkpoint(root / "b", **{**shape, **tuned})
    with pytest.raises(InputError, match=message):
        sources.pin(pair(base, other, root / "data.csv"))


def test_all_that_is_wrong_is_said_at_once(root: Path, sources: Sources) -> None:
    with pytest.raises(InputError) as caught:
        sources.pin(pair(root / "none", Path("/etc"), root / "none.csv"))
    assert [problem.pointer for problem in caught.value.errors] == ["/base/uri", "/tuned/uri", "/dataset/uri"]


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/",
        "file:///{root}/../",
        "file://host/x",
        "file:relative",
        "gs://b/k",
        "file://[x",
        "file://{root}/%00",
        "file://{root}/%ff",
        "file://{root}/" + "n" * 300,
        "file://{root}/loop",
        "file://{root}/a?.csv",
        "file://{root}/a#.csv",
    ],
)
def test_a_uri_that_leads_elsewhere_is_refused(root: Path, sources: Sources, uri: str) -> None:
    request = pair(checkpoint(root / "a"), root / "a", root / "data.csv")
    os.symlink(root / "loop", root / "loop")
    bad = request.model_copy(update={"base": request.base.model_copy(update={"uri": uri.replace("{root}", str(root))})})
    with pytest.raises(InputError) as caught:
        sources.pin(bad)
    assert caught.value.errors[0].pointer == "/base/uri"


def test_a_link_out_of_the_roots_is_not_followed(root: Path, sources: Sources, tmp_path: Path) -> None:
    outside = checkpoint(tmp_path / "outside")
    os.symlink(outside, root / "link")
    with pytest.raises(InputError, match="outside the folders"):
        sources.pin(pair(root / "link", root / "link", root / "data.csv"))
    inside = checkpoint(root / "a")
    (inside / "model.safetensors").unlink()
    os.symlink(outside / "model.safetensors", inside / "model.safetensors")
    with pytest.raises(InputError, match="has neither"):
        sources.pin(pair(inside, inside, root / "data.csv"))


def test_the_services_own_bucket_is_closed_but_for_checkpoints(root: Path, sources: Sources) -> None:
    base = checkpoint(root / "a")
    request = pair(base, base, root / "data.csv")
    stolen = request.dataset.model_copy(update={"uri": "s3://layerdrift/jobs/an_x.jsonl"})
    with pytest.raises(InputError, match="own bucket"):
        sources.pin(request.model_copy(update={"dataset": stolen}))


def fetched(sources: Sources, base: Path, target: Path) -> Path:
    root = base.parent
    sources.fetch_model(sources.pin(pair(base, base, root / "data.csv")).base, "/base/uri", target, lambda _: None)
    return target / "model.safetensors"


def test_weights_are_fetched_once_for_all_jobs_of_a_machine(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_cache, "SMALLEST", 1)
    settings = Settings(model_roots=[root], home=tmp_path / "home")
    sources = Sources(settings, BlobStore(None, settings.s3_bucket))
    base = checkpoint(root / "a")
    one, other = (fetched(sources, base, tmp_path / name) for name in ("one", "other"))
    assert one.samefile(other)
    assert not one.samefile(base / "model.safetensors")
    assert not (tmp_path / "one" / "config.json").samefile(tmp_path / "other" / "config.json")
    of_another = fetched(sources.of("another"), base, tmp_path / "theirs")
    assert not of_another.samefile(one)
    (base / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(base / "model.safetensors", (1, 1))
    changed = fetched(sources, base, tmp_path / "changed")
    assert (changed.read_bytes(), one.read_bytes()) == (b"WEIGHTS", b"weights")


def test_a_full_disk_takes_the_kept_files_first(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_cache, "SMALLEST", 1)
    settings = Settings(model_roots=[root], home=tmp_path / "home")
    sources = Sources(settings, BlobStore(None, settings.s3_bucket))
    fetched(sources, checkpoint(root / "a"), tmp_path / "one")
    assert list(settings.checkpoint_cache.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3))
    with pytest.raises(StageError, match="No space left"):
        fetched(sources, checkpoint(root / "b"), tmp_path / "two")
    assert list(settings.checkpoint_cache.iterdir()) == []
