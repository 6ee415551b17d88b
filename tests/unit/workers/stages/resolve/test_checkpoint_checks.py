"""Faults of a fine-tuned language model's files, each made by hand, and files that are sound."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AddedToken, AutoModelForCausalLM, PreTrainedTokenizerFast

from backends.sources.checkpoint_files import generation_config_of
from tests.builders.chats import TEMPLATE, language_model
from workers.models.tokenizers import load_tokenizer
from workers.stages.common.inputs import Checkpoint, UnmergedAdapter
from workers.stages.resolve.checkpoint_checks import about_checkpoint, doubled_bos


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = language_model(tmp_path_factory.mktemp("pair") / "base")
    tokenizer: Any = load_tokenizer(folder, "/base/uri")
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    _edit(folder / "config.json", eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return folder


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "tuned"))


def _edit(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | changes))


def checkpoint(folder: Path, adapter: UnmergedAdapter | None = None) -> Checkpoint:
    return Checkpoint(folder, folder.as_uri(), "0" * 64, adapter)


def codes(base: Path, tuned: Path, adapter: UnmergedAdapter | None = None) -> list[str]:
    return [one.code for one in about_checkpoint(checkpoint(base), checkpoint(tuned, adapter))]


def test_a_sound_checkpoint_gives_no_warning(base: Path, tuned: Path) -> None:
    _edit(generation_config_of(tuned), eos_token_id=[3, 2], pad_token_id=0)
    assert codes(base, tuned) == []


def test_a_generation_config_with_tokens_of_another_tokenizer_is_told(base: Path, tuned: Path) -> None:
    _edit(generation_config_of(tuned), eos_token_id=[3, 128009])
    (warning,) = about_checkpoint(checkpoint(base), checkpoint(tuned))
    assert warning.code == "generation_tokens"
    assert "eos_token_id 128009" in warning.message


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_files_that_disagree_on_the_end_token_are_told(base: Path, tuned: Path, file: str) -> None:
    _edit(tuned / file if file == "config.json" else generation_config_of(tuned), eos_token_id=5)
    (warning,) = about_checkpoint(checkpoint(base), checkpoint(tuned))
    assert warning.code == "special_tokens_differ"
    assert f"eos is 3 in the tokenizer and 5 in {file}" in warning.message


@pytest.mark.parametrize("template", [None, TEMPLATE + " "])
def test_another_chat_template_is_told(base: Path, tuned: Path, template: str | None) -> None:
    tokenizer: Any = load_tokenizer(tuned, "/tuned/uri")
    (tuned / "chat_template.jinja").unlink()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tuned)
    assert codes(base, tuned) == ["chat_template_changed"]


def _with_tokens(folder: Path, tokens: list[str]) -> Any:
    tokenizer: Any = load_tokenizer(folder, "/tuned/uri")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def test_added_tokens_that_no_training_moved_are_told(base: Path, tuned: Path) -> None:
    model = _with_tokens(tuned, ["<a>", "<b>", "<c>"])
    rows = model.get_input_embeddings().weight
    with torch.no_grad():
        rows[-3:] = torch.randn(1, rows.shape[1]).expand(3, -1)  # all alike, as some resizing leaves them
        rows[-1] += 0.1
    model.save_pretrained(tuned)
    (warning,) = about_checkpoint(checkpoint(base), checkpoint(tuned))
    assert warning.code == "untrained_tokens"
    assert "2 of 3 tokens" in warning.message
    assert "<a>, <b>" in warning.message


def test_a_padding_token_that_was_added_needs_no_training(base: Path, tuned: Path) -> None:
    model = _with_tokens(tuned, ["<pad>"])
    tokenizer: Any = load_tokenizer(tuned, "/tuned/uri")
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(tuned)
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] = 0
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(tuned)
    assert "untrained_tokens" not in codes(base, tuned)


def test_tokens_that_were_trained_are_not(base: Path, tuned: Path) -> None:
    model = _with_tokens(tuned, ["<a>", "<b>"])
    with torch.no_grad():
        model.get_input_embeddings().weight[-2:] += torch.tensor([[0.1], [0.2]])
    model.save_pretrained(tuned)
    assert codes(base, tuned) == []


@pytest.mark.parametrize(
    ("name", "expected"), [("layers.0.q_proj.lora_A", ["untrained_tokens"]), ("embed_tokens.lora_A", [])]
)
def test_an_adapter_that_leaves_the_embeddings_trains_no_token(
    base: Path, tuned: Path, name: str, expected: list[str], tmp_path: Path
) -> None:
    tokenizer: Any = load_tokenizer(tuned, "/tuned/uri")
    tokenizer.add_tokens(["<a>"])
    tokenizer.save_pretrained(tuned)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({name: torch.zeros(1)}, adapter / "adapter_model.safetensors")
    assert codes(base, tuned, UnmergedAdapter(adapter, lambda _: None)) == expected


def test_a_checkpoint_without_a_tokenizer_is_read_by_its_base(base: Path, tuned: Path) -> None:
    for path in tuned.glob("*token*"):
        path.unlink()
    for name in ("vocab.txt", "chat_template.jinja"):
        (tuned / name).unlink(missing_ok=True)
    assert codes(base, tuned) == []


def test_texts_that_spell_out_the_first_token_are_counted(base: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = copy.deepcopy(load_tokenizer(base, "/base/uri"))  # type: ignore[assignment]
    tokenizer.bos_token = "[CLS]"
    (warning,) = doubled_bos(tokenizer, ["[CLS] good", "good", "[CLS]bad"])
    assert warning.code == "double_bos"
    assert "2 of 3 texts" in warning.message
    assert doubled_bos(tokenizer, ["good"]) == []
