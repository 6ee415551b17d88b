from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import pytest

from backends.sources.checkpoint_files import GENERATION_CONFIG, TOKENIZER_FILES
from layerdrift.contract.errors import InputError
from layerdrift.sdk.files import prepared

MODEL, PART = '{"model_type": "bert"}', '{"in_features": 8}'


def write(folder: Path, **files: str) -> Path:
    """Files by their names, where `__` stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def sent(folder: Path) -> tuple[str, list[str]]:
    """The name of the upload and what is in it."""
    with prepared(folder) as one, zipfile.ZipFile(one.path) as archive:
        return one.announced.filename, [f"{name}:{archive.read(name).decode()}" for name in archive.namelist()]


def test_a_folder_becomes_the_same_zip_whatever_its_times_and_without_pickles(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "pytorch_model.bin", "README.md"):
        (folder / name).write_text(name)
    with prepared(folder) as one:
        first = one.announced
        with zipfile.ZipFile(one.path) as archive:
            assert archive.namelist() == ["config.json", "model.safetensors", "vocab.txt"]
    time.sleep(0.01)
    os.utime(folder / "config.json", (1, 1))
    with prepared(folder) as two:
        assert two.announced == first
    assert not two.path.exists()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"contains no \.safetensors file"), prepared(folder):
        pass
    with pytest.raises(InputError, match="neither a file nor a folder"), prepared(tmp_path / "absent"):
        pass


def test_a_checkpoint_below_the_folder_is_found_with_its_own_name(tmp_path: Path) -> None:
    write(tmp_path / "run" / "final", config__json=MODEL, model__safetensors="weights")
    write(tmp_path / "run" / "final" / "checkpoint-500", config__json=MODEL, model__safetensors="older")
    name, files = sent(tmp_path / "run")
    assert name == "final.zip"
    assert "model.safetensors:weights" in files


def test_a_snapshot_is_never_sent_in_place_of_the_model_around_it(tmp_path: Path) -> None:
    """The model has pickled weights alone: its snapshot is another model, and would give other numbers."""
    folder = write(tmp_path / "run", config__json=MODEL, pytorch_model__bin="pickled")
    write(folder / "checkpoint-500", config__json=MODEL, model__safetensors="older")
    with pytest.raises(InputError, match=r"run contains no \.safetensors file"), prepared(folder):
        pass


def test_of_several_checkpoints_one_must_be_named(tmp_path: Path) -> None:
    for step in (500, 1000):
        write(tmp_path / "run" / f"checkpoint-{step}", config__json=MODEL, model__safetensors=str(step))
    with (
        pytest.raises(InputError, match=r"several checkpoints; name one of them: .*checkpoint-1000"),
        prepared(tmp_path / "run"),
    ):
        pass


def test_of_sentence_transformers_the_model_is_sent_and_not_its_parts(tmp_path: Path) -> None:
    folder = write(tmp_path / "sbert", modules__json="[]")
    write(folder / "0_Transformer", config__json=MODEL, model__safetensors="weights")
    write(folder / "2_Dense", config__json=PART, model__safetensors="dense")
    assert sent(folder)[0] == "0_Transformer.zip"
    whole = write(tmp_path / "flat", modules__json="[]", config__json=MODEL, model__safetensors="weights")
    write(whole / "2_Dense", config__json=PART, model__safetensors="dense")
    assert "model.safetensors:weights" in sent(whole)[1]


def test_an_adapter_is_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path / "out" / "adapter", adapter_config__json="{}", adapter_model__safetensors="lora")
    assert sent(tmp_path / "out")[0] == "adapter.zip"


@pytest.mark.parametrize("hidden", [".git", "__MACOSX"])
def test_what_tools_leave_beside_a_checkpoint_is_none(tmp_path: Path, hidden: str) -> None:
    write(tmp_path / "out" / "final", config__json=MODEL, model__safetensors="weights")
    write(tmp_path / "out" / hidden, config__json=MODEL, model__safetensors="junk")
    assert sent(tmp_path / "out")[0] == "final.zip"


def test_every_file_that_the_service_reads_is_sent(tmp_path: Path) -> None:
    wanted = {*TOKENIZER_FILES, GENERATION_CONFIG, "config.json", "model.safetensors"}
    for name in wanted:
        (tmp_path / name).write_text('{"model_type": "x"}')
    with prepared(tmp_path) as made, zipfile.ZipFile(made.path) as archive:
        assert set(archive.namelist()) == wanted
