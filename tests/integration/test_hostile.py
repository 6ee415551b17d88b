"""Checkpoints and data that mean harm: refused with the reason, before memory or disk is taken for them."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backends.deployment import Deployment
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.upload import UploadRequest
from tests.builders.models import save_model, tiny_bert
from tests.builders.stages import stage_context
from tests.builders.texts import make_texts
from workers.models.loading import load_body
from workers.stages.resolve.stage import resolve

MEMORY_KB = 400_000
"""What a refusal may take beyond what the process had: the test models are tiny."""


def changed_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")


def outside_index(folder: Path) -> None:
    shards = {"embeddings.word_embeddings.weight": "../../secret.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def linked_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.symlink("/etc/passwd", folder / "model.safetensors")


def huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 100 * 10**9) + b"{}" + b" " * 1000)


def far_offsets(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, "only pickled weights"),
    "auto_map": (
        lambda folder: changed_config(folder, model_type="evil", auto_map={"AutoModel": "evil.Model"}),
        "needs code from its repository",
    ),
    "index outside": (outside_index, "lists files that are not in the folder"),
    "link outside": (linked_weights, "has neither model.safetensors"),
    "a trillion parameters": (
        lambda folder: changed_config(folder, hidden_size=65_536, intermediate_size=10**7, num_hidden_layers=999),
        "parameters; the limit of this service is",
    ),
    "width beyond all": (lambda folder: changed_config(folder, hidden_size=10**9), "must be 1 to 65536"),
    "no number": (lambda folder: changed_config(folder, num_hidden_layers="12"), "blocks is '12'; must be 1 to 1000"),
    "a header of 100 GB": (huge_header, "could not be loaded"),
    "tensors of 4 TB": (far_offsets, "could not be loaded"),
    "deep JSON": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "is not JSON"),
}


def request(base: str, dataset: str) -> AnalysisRequest:
    return AnalysisRequest.model_validate({"base": {"uri": base}, "tuned": {"uri": base}, "dataset": {"uri": dataset}})


@pytest.fixture
def texts(roots: Path) -> str:
    path = roots / "hostile.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(30)))
    return path.as_uri()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_checkpoints_are_refused_with_the_reason(
    deployment: Deployment, roots: Path, texts: str, tmp_path: Path, case: str
) -> None:
    harm, message = HOSTILE[case]
    folder = save_model(tiny_bert(), roots / f"hostile-{case.replace(' ', '-')}")
    harm(folder)
    asked = request(folder.as_uri(), texts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read() -> None:
        pins = deployment.sources.pin(asked)
        limit = deployment.settings.max_parameters
        resolved = resolve(stage_context(tmp_path / "job", asked), pins, deployment.sources, limit)
        load_body(resolved.base.folder, "/base/uri", torch.device("cpu"))

    (tmp_path / "job").mkdir()
    with pytest.raises(InputError) as raised:
        read()
    assert message in raised.value.detail
    assert raised.value.errors[0].pointer in ("/base/uri", "/tuned/uri")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KB


def long_line(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b'{"text": "short"}\n{"text": "')
        for _ in range(1024):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n')


DATA: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a line of 1 GB": ("long.jsonl", long_line, "has a line of 8388608 characters or more"),
    "one line of 1 GB": (
        "first.csv",
        lambda path: path.write_bytes(b"x" * (900 << 20)),
        "no line break in its first",
    ),
    "NUL bytes": ("nul.csv", lambda path: path.write_bytes(b"text\n" + b"\0" * 100 + b"\n"), ""),
    "no UTF-8": ("latin.csv", lambda path: path.write_bytes(b"text\ncaf\xe9\n" * 30), "is not UTF-8"),
    "no UTF-8 far down": (
        "late.csv",
        lambda path: path.write_bytes(b"text\n" + b"a fine film\n" * 200_000 + b"caf\xe9\n"),
        "is not UTF-8",
    ),
    "a million columns": (
        "wide.csv",
        lambda path: path.write_text(",".join(f"c{number}" for number in range(10**6)) + "\n" + "," * (10**6 - 1)),
        "no line break in its first",
    ),
    "a field without end": (
        "open.csv",
        lambda path: path.write_text('text\n"open' + "x\n" * (2 << 20)),
        "lines 2 to",
    ),
    "deep JSON": ("deep.jsonl", lambda path: path.write_text("[" * 100_000 + "\n"), "not JSON"),
    "no rows": ("none.csv", lambda path: path.write_text("text\n"), "has no rows"),
    "nothing": ("empty.csv", lambda path: path.write_text(""), "is empty"),
}


@pytest.mark.parametrize("case", DATA)
def test_hostile_data_are_refused_with_the_reason_or_read_as_they_are(
    deployment: Deployment, roots: Path, base_folder: Path, tmp_path: Path, case: str
) -> None:
    name, harm, message = DATA[case]
    path = roots / name
    harm(path)
    limited = deployment.settings.model_copy(update={"max_dataset_bytes": 2 << 30})
    sources = Deployment.connect(limited).sources
    asked = request(base_folder.as_uri(), path.as_uri())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "job").mkdir()

    def read() -> None:
        pins = sources.pin(asked)
        resolve(stage_context(tmp_path / "job", asked), pins, sources, 10**9)

    try:
        with pytest.raises(InputError) as raised:
            read()
    finally:
        path.unlink()
    assert message in raised.value.detail
    assert raised.value.errors[0].pointer.startswith("/dataset")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KB


def upload(deployment: Deployment, content: bytes) -> str:
    made = deployment.uploads.announce("default", UploadRequest(filename="model.zip"))
    receiver = deployment.uploads.receive("default", made.id)
    receiver.take(content)
    return receiver.finish().uri


def bomb(declared: int | None) -> bytes:
    """A zip whose weights are a gigabyte of zeros in a megabyte; `declared`: the size that it says they have."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps({"model_type": "bert"}))
        archive.writestr("vocab.txt", "[PAD]\n")
        with archive.open("model.safetensors", "w") as stream:
            for _ in range(1024):
                stream.write(b"\0" * (1 << 20))
    content = buffer.getvalue()
    if declared is not None:
        content = content.replace(struct.pack("<I", 1 << 30), struct.pack("<I", declared))
    return content


def test_a_zip_that_swells_is_refused_by_what_it_says(deployment: Deployment, texts: str) -> None:
    asked = request(upload(deployment, bomb(None)), texts)
    with pytest.raises(InputError, match=r"\d+ times the size of the zip"):
        deployment.sources.pin(asked)


def test_a_zip_that_lies_about_its_size_stops_where_it_said(deployment: Deployment, texts: str, tmp_path: Path) -> None:
    asked = request(upload(deployment, bomb(1000)), texts)
    pins = deployment.sources.pin(asked)
    with pytest.raises(InputError, match="zip"):
        deployment.sources.fetch_model(pins.base, "/base/uri", tmp_path / "model", lambda _: None)
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 1 << 20
