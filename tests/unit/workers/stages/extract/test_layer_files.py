"""States of layers on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

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
        assert files.put(layer(number))
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
    assert LayerFiles(tmp_path, room, 3).put(layer(0)) is fits


@pytest.mark.parametrize("at_first", [True, False])
def test_the_first_layer_decides_for_all_whatever_becomes_of_the_disk(
    at_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that is measured before those that wait would stand in another one's place."""
    free = iter([10**9 if at_first else 0, 0 if at_first else 10**9, 0])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
    files = LayerFiles(tmp_path / "layers", 3 * SIZE, 3)
    assert [files.put(layer(number)) for number in range(3)] == [at_first] * 3


def test_a_disk_that_is_full_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the pair would run whole, as where its blocks cannot run one at a time."""

    def save(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="the states of layer 0 could not be written"):
        LayerFiles(tmp_path / "layers", 3 * SIZE, 3).put(layer(0))
