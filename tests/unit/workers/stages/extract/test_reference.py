"""Both models on general texts that the tuned one was not tuned on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from tests.builders.models import BLOCKS, HIDDEN, add_noise, tiny_bert, tiny_tokenizer
from tests.builders.texts import make_texts
from workers.models.states import StateReader
from workers.scratch import GroupStore
from workers.stages.common.model_pair import Pair
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.extract import reference as module
from workers.stages.extract.reference import reference_drift

ROWS = [Row(text, None) for text in make_texts(40, seed=3)]
ROOM = 2.0**28


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """The second block of the tuned model moved."""
    tuned = tiny_bert(0)
    add_noise(tuned, block=2)
    tokenization = TokenizationSpec(
        tiny_tokenizer(tmp_path), 64, False, StateReader(BLOCKS + 1, HIDDEN), units=(0,) * 9
    )
    return Pair(tiny_bert(0), tuned, tokenization)


def test_drift_is_told_by_layer_with_its_interval_and_texts_are_units_by_themselves(pair: Pair, tmp_path: Path) -> None:
    seen: list[float] = []
    found = reference_drift(pair, ROWS, tmp_path, ROOM, seen.append)
    assert [drift.value for drift in found.drift[:2]] == [0.0, 0.0]
    for drift in found.drift[2:]:
        assert drift.low is not None
        assert drift.high is not None
        assert drift.value is not None
        assert 0 < drift.low < drift.value < drift.high
    assert found.rows == ROWS
    assert found.tokens == sum(len(row.text.split()) for row in ROWS)
    assert found.tokenization.units is None
    assert seen[-1] == 1.0
    assert seen == sorted(seen)


def test_only_so_many_texts_are_read_as_have_the_tokens(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFERENCE_TOKENS", 100)
    found = reference_drift(pair, ROWS, tmp_path, ROOM, lambda _: None)
    counts = [len(row.text.split()) for row in found.rows]
    assert sum(counts[:-1]) < 100 <= sum(counts) == found.tokens
    assert found.rows == ROWS[: len(counts)]


def test_without_room_for_groups_there_is_a_number_without_an_interval(pair: Pair, tmp_path: Path) -> None:
    whole = reference_drift(pair, ROWS, tmp_path / "a", ROOM, lambda _: None)
    bare = reference_drift(pair, ROWS, tmp_path / "b", 0.0, lambda _: None)
    assert [drift.value for drift in bare.drift] == pytest.approx([drift.value for drift in whole.drift])
    assert {(drift.low, drift.high) for drift in bare.drift} == {(None, None)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "read every text of the reference differently"),
        ([Row("the good film", None)] * 6, "has 18 tokens to compare; at least 20 are needed"),
        ([Row("\u200b", None)] * 6, "has 0 tokens to compare"),
    ],
    ids=["no texts", "too few tokens", "texts without tokens"],
)
def test_a_reference_with_too_little_to_read_is_refused(
    pair: Pair, tmp_path: Path, rows: list[Row], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        reference_drift(pair, rows, tmp_path, ROOM, lambda _: None)
    assert raised.value.errors[0].pointer == "/dataset/reference"


def test_a_model_that_overflows_on_these_texts_is_named(pair: Pair, tmp_path: Path) -> None:
    broken = tiny_bert(0)
    bias = dict(broken.named_parameters())["encoder.layer.1.output.LayerNorm.bias"]
    with torch.no_grad():
        bias.fill_(torch.inf)
    with pytest.raises(InputError, match="of the tuned model are NaN or infinite at layer 2, on the texts") as raised:
        reference_drift(replace(pair, tuned=broken), ROWS, tmp_path, ROOM, lambda _: None)
    assert raised.value.errors[0].pointer == "/tuned/uri"


def test_nothing_is_left_on_disk(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.stages.common.moment_accumulator.TOKENS_IN_MEMORY", 0)
    scratch, clear = tmp_path / "scratch", GroupStore.clear
    written: list[int] = []

    def counted(store: GroupStore) -> None:
        written.append(len(list(scratch.rglob("*.safetensors"))))
        clear(store)

    monkeypatch.setattr(GroupStore, "clear", counted)
    reference_drift(pair, ROWS, scratch, ROOM, lambda _: None)
    assert written == [20]  # a file for each group of two texts
    assert list(scratch.rglob("*.safetensors")) == []
