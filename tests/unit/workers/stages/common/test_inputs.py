"""A tuned checkpoint that is an adapter is merged when somebody asks for its weights, and once."""

from __future__ import annotations

from pathlib import Path

from workers.stages.common.inputs import Checkpoint, UnmergedAdapter


def test_a_whole_checkpoint_lies_in_its_folder(tmp_path: Path) -> None:
    found = Checkpoint(tmp_path, "file:///tuned", "1" * 64)
    assert found.folder == found.light == tmp_path


def test_an_adapter_is_merged_once_and_only_where_its_weights_are_asked_for(tmp_path: Path) -> None:
    merged: list[Path] = []

    def merge(into: Path) -> None:
        merged.append(into)
        (into / "model.safetensors").touch()

    found = Checkpoint(tmp_path, "file:///tuned", "1" * 64, UnmergedAdapter(tmp_path / "adapter", merge))
    assert found.light == tmp_path
    assert merged == []
    assert found.folder == found.folder == tmp_path
    assert merged == [tmp_path]
