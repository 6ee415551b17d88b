"""Rows of members of studies: the same tokens in all, whole or block by block, whatever each was compared on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from layerdrift.contract.request import AnalysisRequest
from tests.builders.jobs import submitted
from tests.builders.models import BLOCKS, add_noise, save_model, tiny_bert
from tests.builders.texts import make_texts
from workers.job import run_job
from workers.models.loading import load_body
from workers.models.states import hidden_states
from workers.models.texts import batches
from workers.models.tokenizers import load_tokenizer
from workers.studies import shared_rows as module
from workers.studies.shared_rows import shared_rows


def analysed(deployment: Deployment, base: Path, tuned: Path, seed: int) -> JobRecord:
    request = {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": make_texts(30, seed=seed)}},
        "analysis": {"sae": None, "grafts": False},
    }
    made = submitted(deployment, AnalysisRequest.model_validate(request))
    run_job(deployment, made.id)
    return deployment.jobs.get(made.id)


@pytest.fixture
def members(deployment: Deployment, roots: Path, base_folder: Path, noised_folder: Path) -> list[JobRecord]:
    """Two fine-tunes, each compared on texts of its own."""
    other = tiny_bert(0)
    add_noise(other, block=3)
    second = save_model(other, roots / "noised-3")
    return [analysed(deployment, base_folder, noised_folder, 1), analysed(deployment, base_folder, second, 2)]


def test_rows_are_the_models_own_states_of_texts_of_both_data_sets(
    deployment: Deployment, members: list[JobRecord], base_folder: Path, noised_folder: Path, tmp_path: Path
) -> None:
    beats: list[int] = []
    rows = shared_rows(deployment, members, tmp_path / "rows", lambda: beats.append(1))
    assert (rows.layers, len(beats)) == (BLOCKS + 1, 2 * (BLOCKS + 1))
    assert 30 < rows.texts <= 60
    assert len(rows.kept) <= module.TOKENS
    base, tuned = rows.at(BLOCKS)
    assert base.shape == tuned.shape[1:] == (len(rows.kept), 32)
    assert not torch.equal(tuned[0], tuned[1])
    assert torch.equal(rows.at(1)[0], rows.at(1)[1][1])  # noise in block 3 leaves layer 1 as it was
    tokenizer = load_tokenizer(base_folder, "/base/uri")
    texts = make_texts(30, seed=1)
    (batch,) = batches(tokenizer, texts[:1], 8, 64)
    for folder, found in ((base_folder, base), (noised_folder, tuned[0])):
        own = hidden_states(load_body(folder, "", torch.device("cpu")), batch)[BLOCKS][0][batch.real[0]]
        nearest = (own[:, None] - found[None]).norm(dim=-1).min(1).values
        assert float(nearest.max()) < 1e-5


def test_block_by_block_they_are_the_same(
    deployment: Deployment, members: list[JobRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shared_rows(deployment, members, tmp_path / "whole", lambda: None)
    monkeypatch.setattr(module, "LAYERED_BYTES", 0)
    layered = shared_rows(deployment, members, tmp_path / "layered", lambda: None)
    assert torch.equal(whole.kept, layered.kept)
    for layer in range(whole.layers):
        for one, other in zip(whole.at(layer), layered.at(layer), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
