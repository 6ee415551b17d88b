"""Pages of a file of weights go and come again."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from workers.models.mapped_pages import give_pages_back

MIB = 2**20


def resident_file_pages() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssFile:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) * 1024


def test_pages_of_a_file_are_given_back_and_the_weights_stay(tmp_path: Path) -> None:
    weights = torch.arange(16 * MIB, dtype=torch.float32).view(4096, -1)
    save_file({"weights": weights}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        view = file.get_slice("weights")[:]
    assert torch.equal(view, weights)  # reads every page
    before = resident_file_pages()
    given = give_pages_back([view])
    assert given > 63 * MIB
    assert before - resident_file_pages() > 60 * MIB
    assert torch.equal(view, weights)


def test_tensors_of_no_file_are_left_alone() -> None:
    weights = torch.full((4 * MIB,), 7.0)
    assert give_pages_back([weights, torch.empty(3, device="meta")]) == 0
    assert bool((weights == 7.0).all())
