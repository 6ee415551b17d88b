from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.models import tiny_tokenizer
from tests.builders.stages import request, stage_context
from workers.analysis.streams import Rows
from workers.models.states import StateReader
from workers.models.texts import batches
from workers.scratch import ActivationStore
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.extract.contexts import Contexts
from workers.stages.extract.heldout_rows import (
    CONTROL_BYTES,
    HELDOUT_ROWS,
    HeldoutRows,
    heldout_rows,
    row_store,
    sae_bytes,
)

LAYERS, WIDTH = 3, 8
ROW_BYTES = 2 * LAYERS * WIDTH * 2
"""Of both models in bfloat16."""


@pytest.fixture
def tokenization(tmp_path: Path) -> TokenizationSpec:
    return TokenizationSpec(tiny_tokenizer(tmp_path), 32, False, StateReader(LAYERS, WIDTH), units=(4, 4, 5))


@pytest.mark.parametrize(
    ("wanted", "limit", "rows"),
    [(10, 1e9, 10), (10, 7 * ROW_BYTES, 7), (10, 7 * ROW_BYTES - 1, 6), (10, ROW_BYTES / 2, 0)],
)
def test_a_store_has_as_many_rows_as_are_wanted_or_fit(tmp_path: Path, wanted: int, limit: float, rows: int) -> None:
    assert row_store((LAYERS, WIDTH), tmp_path / "rows", wanted, limit).max_rows == rows


@pytest.mark.parametrize(("sae", "share"), [(None, 1.0), ({}, 1.0), ({"random_weights": True}, 1 / CONTROL_BYTES)])
def test_a_third_model_leaves_less_room_for_the_pair(sae: dict[str, Any] | None, share: float) -> None:
    assert sae_bytes(request(analysis={"sae": sae}), 900.0) == pytest.approx(900.0 * share)


def test_without_autoencoders_nothing_is_set_aside(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    context = stage_context(tmp_path, request(analysis={"sae": None}))
    assert heldout_rows(context, tokenization, []) is None


def test_a_tenth_of_the_scratch_is_for_held_out_rows(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    asked = request(analysis={"sae": {}})
    found = heldout_rows(stage_context(tmp_path, asked, scratch_bytes=1000 * ROW_BYTES), tokenization, ["a", "b", "c"])
    assert found is not None
    assert found.rows.max_rows == 100
    much = heldout_rows(stage_context(tmp_path, asked, scratch_bytes=1e12), tokenization, ["a", "b", "c"])
    assert much is not None
    assert much.rows.max_rows == HELDOUT_ROWS


def test_rows_and_their_words_are_taken_until_there_are_enough(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    tokenizer = tokenization.tokenizer
    contexts = Contexts(tokenizer, ["a", "b", "c"], tokenization.units)
    found = HeldoutRows(ActivationStore(tmp_path / "rows", max_rows=4), contexts, [0, 2])
    given = []
    for batch in batches(tokenizer, ["the good film", "bad plot", "sad story"], 1, 32):
        count = int(batch.real.sum())
        base = torch.full((LAYERS, count, WIDTH), float(batch.indices[0]))
        base[1] = torch.nan  # a layer without autoencoders
        given.append((batch.indices[0], count))
        found.add(batch, Rows(base, base + 0.5))
    (rows,) = found.rows.shards()
    assert rows.shape == (2 * 2, 4, WIDTH)
    texts = [text for text, count in given for _ in range(count)][:4]
    assert rows[0, :, 0].tolist() == [float(text) for text in texts]  # the base model's layers first
    assert rows[2, :, 0].tolist() == [text + 0.5 for text in texts]
    assert contexts.texts(4).tolist() == texts
    assert len(contexts.texts(99)) == sum(count for _, count in given[:2])  # the third batch came too late
