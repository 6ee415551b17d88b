"""Whole models, put together from heads and blocks, answer as those that were loaded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.families import made
from tests.stages.test_families import saved
from tests.stages.test_layered import with_head
from workers.models import assembled as module
from workers.models.assembled import assembled, fits_whole, weight_bytes
from workers.models.blockwise import BlockFiles
from workers.models.derived_blocks import PerturbedBlocks, perturbed_head
from workers.models.known_head import is_alone, load_head

DEVICE = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8]])


def loaded(folder: Path) -> tuple[Any, BlockFiles]:
    head = load_head(folder, "/base/uri", DEVICE, torch.float32)
    assert head is not None
    return head.model, BlockFiles(folder, "/base/uri", DEVICE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_is_that_of_its_files_and_its_head_stays_alone(family: str, tmp_path: Path) -> None:
    whole: Any = with_head(made(family, 0)).eval()
    head, blocks = loaded(saved(whole, tmp_path / "model"))
    found: Any = assembled(head, blocks, blocks.block)
    with torch.inference_mode():
        assert torch.equal(found(IDS).logits, whole(IDS).logits)
    assert is_alone(head)
    assert all(one.is_meta for one in blocks.blocks.parameters())
    assert not found.training


def test_random_changes_make_another_model_of_the_same_norm(tmp_path: Path) -> None:
    base, tuned = with_head(made("llama", 0)).eval(), with_head(made("llama", 1)).eval()
    head, blocks = loaded(saved(base, tmp_path / "base"))
    other_head, others = loaded(saved(tuned, tmp_path / "tuned"))
    changed = PerturbedBlocks(blocks, others, 4)

    class Both:
        def __init__(self, number: int) -> None:
            self.parts = [blocks.block(number), others.block(number), changed.block(number)]

        def __enter__(self) -> None:
            for part in self.parts:
                part.__enter__()

        def __exit__(self, *_: object) -> None:
            for part in reversed(self.parts):
                part.__exit__(None, None, None)

    found: Any = assembled(perturbed_head(head, other_head, 4), changed, Both)
    given, wanted = base.state_dict(), tuned.state_dict()
    for name, parameter in {n: p.detach() for n, p in found.named_parameters()}.items():
        assert not parameter.is_meta, name
        if parameter.ndim == 2:
            moved, asked = (parameter - given[name]).norm(), (wanted[name] - given[name]).norm()
            assert float(moved) == pytest.approx(float(asked), rel=1e-4), name


def test_size_is_that_of_all_weights_and_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = with_head(made("llama", 0))
    head, _ = loaded(saved(whole, tmp_path / "model"))
    assert weight_bytes(head) == sum(one.nbytes for one in whole.parameters())
    assert fits_whole(head)
    monkeypatch.setattr(module, "WRITTEN_BYTES", weight_bytes(head) - 1)
    assert not fits_whole(head)
