"""Which folder is the checkpoint, on folders of this disk; other schemes in test_uploaded and test_mlflow_registry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from backends.settings import Settings
from backends.sources.checkpoint_folder import MAX_FOLDERS, find_checkpoint
from backends.sources.file_folder import Folder
from backends.sources.pinning import Pins, Sources
from backends.storage.blobs import BlobStore
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest


def write_checkpoint(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "vocab.txt").write_text("[PAD]")
    return folder


def write_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    return folder


def write_layer(folder: Path) -> None:
    """A layer of sentence-transformers: a config.json that names no model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"in_features": 4}))
    (folder / "model.safetensors").write_bytes(b"dense")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def sources(root: Path) -> Sources:
    settings = Settings(model_roots=[root])
    return Sources(settings, BlobStore(None, settings.s3_bucket))


def pin(sources: Sources, base: Path, tuned: Path) -> Pins:
    texts = {"inline": {"texts": [f"text {number}" for number in range(30)]}}
    models = {"base": {"uri": base.as_uri()}, "tuned": {"uri": tuned.as_uri()}}
    return sources.pin(AnalysisRequest.model_validate(models | {"dataset": texts}))


def found(top: Path, root: Path) -> str:
    return find_checkpoint(Folder(top, [root]), top.as_uri(), "/base/uri")


def refusal(top: Path, root: Path) -> str:
    with pytest.raises(InputError) as raised:
        found(top, root)
    assert [problem.pointer for problem in raised.value.errors] == ["/base/uri"]
    return raised.value.detail


def test_the_top_wins_whatever_lies_below(root: Path) -> None:
    top = write_checkpoint(root / "a")
    write_checkpoint(top / "checkpoint-500")
    write_layer(top / "1_Pooling")
    (top / "runs").mkdir()
    assert found(top, root) == ""


def test_a_config_at_the_top_that_names_no_model_is_still_the_one_meant(root: Path) -> None:
    top = root / "a"
    write_checkpoint(top / "checkpoint-500")
    (top / "config.json").write_text("{}")
    assert found(top, root) == ""


def test_the_transformer_of_sentence_transformers_is_found_among_its_layers(root: Path) -> None:
    top = root / "st"
    write_checkpoint(top / "0_Transformer")
    write_layer(top / "1_Pooling")
    write_layer(top / "2_Dense")
    (top / "modules.json").write_text("[]")
    assert found(top, root) == "0_Transformer"
    (top / "config.json").write_text(json.dumps({"__version__": "1.0.0"}))  # as its first versions wrote it
    assert found(top, root) == "0_Transformer"
    (top / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert found(top, root) == ""


def test_the_shallowest_checkpoint_counts(root: Path) -> None:
    write_checkpoint(root / "a/out/best")
    write_checkpoint(root / "a/out/best/checkpoint-1")
    write_checkpoint(root / "a/other/more/checkpoint-2")
    assert found(root / "a", root) == "out/best"


def test_three_levels_are_searched_and_no_more(root: Path) -> None:
    write_checkpoint(root / "a/1/2/3/4")
    assert found(root / "a", root) == ""
    write_checkpoint(root / "a/1/2/3")
    assert found(root / "a", root) == "1/2/3"


def test_several_at_one_depth_are_named_and_one_is_to_be_chosen(root: Path) -> None:
    top = root / "run"
    for step in (500, 1000, 1500, 2000, 2500, 3000):
        write_checkpoint(top / f"checkpoint-{step}")
    said = refusal(top, root)
    named = "checkpoint-500, checkpoint-1000, checkpoint-1500, checkpoint-2000, checkpoint-2500 and 1 more"
    assert f"contains 6 checkpoints ({named})" in said
    assert said.endswith(f"choose one of them: {top.as_uri()}/checkpoint-3000/")
    assert found(top / "checkpoint-3000", root) == ""


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("s3://bucket/my%20runs/", "choose one of them: s3://bucket/my%20runs/step%202/"),
        ("upload://up_x", "upload a zip with only one of them"),
        ("hf://org/model", "move one of them to its own repository"),
        ("mlflow://model/1", "register only one of them"),
    ],
)
def test_the_advice_fits_the_scheme(root: Path, uri: str, advice: str) -> None:
    write_checkpoint(root / "run/step 1")
    write_checkpoint(root / "run/step 2")
    with pytest.raises(InputError) as raised:
        find_checkpoint(Folder(root / "run", [root]), uri, "/tuned/uri")
    assert advice in raised.value.detail


def test_a_tree_of_too_many_folders_is_not_searched(root: Path) -> None:
    top = root / "runs"
    for number in range(MAX_FOLDERS):
        (top / str(number)).mkdir(parents=True)
    assert found(top, root) == ""
    (top / "one more").mkdir()
    assert f"more than {MAX_FOLDERS} folders" in refusal(top, root)


@pytest.mark.parametrize("junk", ["__MACOSX", ".git", ".ipynb_checkpoints", "._model"])
def test_junk_is_no_checkpoint(root: Path, junk: str) -> None:
    write_checkpoint(root / "a/model")
    write_checkpoint(root / "a" / junk)
    (root / "a/.DS_Store").write_bytes(b"")
    assert found(root / "a", root) == "model"


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": 3}', "[" * 100_000])
def test_a_broken_config_below_is_passed_over(root: Path, content: str) -> None:
    write_checkpoint(root / "a/good")
    write_checkpoint(root / "a/bad")
    (root / "a/bad/config.json").write_text(content)
    assert found(root / "a", root) == "good"


def test_links_out_of_the_roots_are_not_followed(root: Path, tmp_path: Path) -> None:
    outside = write_checkpoint(tmp_path / "outside")
    (root / "a").mkdir()
    os.symlink(outside, root / "a/link")
    os.symlink(root / "a", root / "a/loop")
    assert found(root / "a", root) == ""
    write_checkpoint(root / "elsewhere")
    os.symlink(root / "elsewhere", root / "a/inside")
    assert found(root / "a", root) == "inside"


def test_a_folder_that_cannot_be_listed_is_an_input_error(root: Path) -> None:
    assert "cannot be read" in refusal(root / "absent", root)


def test_the_same_folder_is_fetched_later(root: Path, sources: Sources, tmp_path: Path) -> None:
    run = root / "run"
    write_checkpoint(run / "best", b"best weights")
    pins = pin(sources, write_checkpoint(root / "base"), run)
    assert pins.tuned is not None
    assert (pins.base.folder, pins.tuned.folder) == ("", "best")
    write_checkpoint(run / "later")  # would be ambiguous by now
    sources.fetch_model(pins.tuned, "/tuned/uri", tmp_path / "fetched", lambda _: None)
    assert (tmp_path / "fetched/model.safetensors").read_bytes() == b"best weights"
    assert {path.name for path in (tmp_path / "fetched").iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    (run / "best").rename(run / "worst")
    with pytest.raises(InputError, match="no longer available"):
        sources.fetch_model(pins.tuned, "/tuned/uri", tmp_path / "again", lambda _: None)


def test_an_adapter_below_the_top_is_an_adapter(root: Path, sources: Sources) -> None:
    write_adapter(root / "run/checkpoint-10")
    pins = pin(sources, write_checkpoint(root / "base"), root / "run")
    assert pins.tuned is not None
    assert (pins.tuned.adapter, pins.tuned.folder) == (True, "checkpoint-10")


def test_an_adapter_is_pinned_with_its_tokenizer_and_nothing_else(root: Path, sources: Sources) -> None:
    adapter = write_adapter(root / "adapter")
    own = {"tokenizer.json", "added_tokens.json", "spm.model", "bpe.codes", "vocab.bpe", "chat_template.jinja"}
    for name in [*own, "config.json", "README.md", "optimizer.pt"]:
        (adapter / name).write_text("{}")
    pins = pin(sources, write_checkpoint(root / "base"), adapter)
    assert pins.tuned is not None
    assert pins.tuned.adapter
    assert {file.name for file in pins.tuned.files} == own | {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("vocabulary", ["spm.model", "spiece.model", "bpe.codes"])
def test_a_vocabulary_alone_is_a_tokenizer(root: Path, sources: Sources, vocabulary: str) -> None:
    base = write_checkpoint(root / "base")
    (base / "vocab.txt").rename(base / vocabulary)
    pins = pin(sources, base, base)
    assert vocabulary in {file.name for file in pins.base.files}


@pytest.mark.parametrize("pointer", ["/base/uri", "/tuned/uri"])
def test_a_model_and_an_adapter_in_one_folder_are_ambiguous(root: Path, sources: Sources, pointer: str) -> None:
    both, plain = write_adapter(write_checkpoint(root / "both")), write_checkpoint(root / "plain")
    with pytest.raises(
        InputError, match=r"both a model \(model.safetensors\) and an adapter \(adapter_model"
    ) as raised:
        pin(sources, *((both, plain) if pointer == "/base/uri" else (plain, both)))
    assert [problem.pointer for problem in raised.value.errors] == [pointer]
    (both / "adapter_model.safetensors").unlink()
    pins = pin(sources, both, both)
    assert "adapter_config.json" not in {file.name for file in pins.base.files}


def test_an_adapter_is_no_base(root: Path, sources: Sources) -> None:
    adapter = write_adapter(root / "adapter")
    with pytest.raises(InputError, match="the base must be a full checkpoint") as raised:
        pin(sources, adapter, adapter)
    assert [problem.pointer for problem in raised.value.errors] == ["/base/uri"]


def test_a_pickled_adapter_is_refused(root: Path, sources: Sources) -> None:
    adapter = write_adapter(root / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled adapters are refused"):
        pin(sources, write_checkpoint(root / "base"), adapter)
