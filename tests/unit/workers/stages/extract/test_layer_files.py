"""States of layers on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers.stages.extract.layer_files import LayerFiles
from workers.stages.extract.layer_walk import LayerStates


def layer(number: int) -> LayerStates:
    generator = torch.Generator().manual_seed(number)
    states = [torch.randn(2, length, 4, generator=generator).bfloat16() for length in (3, 5)]
    return LayerStates(number, states, [state + 1 for state in states], states[:1], "it overflows")


SIZE = 2 * 2 * (3 + 5) * 4 * 2 + 2 * 3 * 4 * 2
"""Bytes of a layer."""


def test_layers_come_back_in_order_as_they_were_and_leave_nothing(tmp_path: Path) -> None:
    files = LayerFiles(tmp_path / "layers", 3 * SIZE, 3)
    for number in range(3):
        assert files.fits(layer(number))
        files.put(layer(number))
    assert len(files) == 3
    for number, found in enumerate(files.each()):
        given = layer(number)
        assert (found.layer, found.random) == (number, "it overflows")
        for name in ("base", "tuned", "twin"):
            for one, other in zip(getattr(found, name), getattr(given, name), strict=True):
                assert torch.equal(one, other)
    assert list((tmp_path / "layers").iterdir()) == []
    files.clear()
    assert not (tmp_path / "layers").exists()


@pytest.mark.parametrize(("room", "fits"), [(3 * SIZE, True), (3 * SIZE - 1, False), (0, False)])
def test_layers_wait_on_disk_where_all_of_them_fit(tmp_path: Path, room: int, fits: bool) -> None:
    assert LayerFiles(tmp_path, room, 3).fits(layer(0)) is fits
