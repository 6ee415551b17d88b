"""Pinned checkpoints fetched, made plain and checked; where they come from is a folder here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertModel

from backends.sources.checkpoint_files import fingerprint
from backends.sources.pair_checks import BENIGN
from backends.sources.pinning import PinnedDataset, PinnedModel, Pins, Sources
from layerdrift.contract.errors import InputError
from tests.builders.models import save_model, tiny_bert
from workers.models.loading import load_body
from workers.stages.common.progress import NO_NUMBERS, Numbers
from workers.stages.resolve.fetching import fetch_checkpoints

LIMIT = 10**6


class FolderSources(Sources):
    """Copies the folder that a pinned model names."""

    def __init__(self) -> None:
        self.pointers: list[str] = []

    def fetch_model(self, pinned: PinnedModel, pointer: str, target: Path, on_progress: Callable[[float], None]) -> str:
        self.pointers.append(pointer)
        on_progress(0.5)
        shutil.copytree(pinned.uri, target)
        on_progress(1.0)
        return fingerprint(target)


def pins(base: Path, tuned: Path | None, adapter: bool = False) -> Pins:
    return Pins(
        base=PinnedModel(uri=str(base), files=[]),
        tuned=None if tuned is None else PinnedModel(uri=str(tuned), files=[], adapter=adapter),
        dataset=PinnedDataset(source="inline"),
    )


class Heard:
    def __init__(self) -> None:
        self.fractions: list[float] = []

    def __call__(self, fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS, /) -> None:
        self.fractions.append(fraction)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tiny_bert(0), tmp_path / "origin" / "base")


def test_both_checkpoints_lie_in_the_jobs_folder_with_where_they_came_from(base: Path, tmp_path: Path) -> None:
    tuned, heard, sources = save_model(tiny_bert(1), tmp_path / "origin" / "tuned"), Heard(), FolderSources()
    found = fetch_checkpoints(pins(base, tuned), sources, tmp_path / "job", LIMIT, heard)
    assert found.tuned is not None
    assert [found.base.uri, found.tuned.uri] == [str(base), str(tuned)]
    assert [found.base.folder, found.tuned.folder] == [tmp_path / "job" / "base", tmp_path / "job" / "tuned"]
    assert found.base.fingerprint == fingerprint(base)
    assert found.warnings == []
    assert sources.pointers == ["/base/uri", "/tuned/uri"]
    assert heard.fractions == pytest.approx([0.0, 0.2, 0.4, 0.4, 0.6, 0.8])


def test_without_a_tuned_checkpoint_the_base_is_fetched_alone(base: Path, tmp_path: Path) -> None:
    found = fetch_checkpoints(pins(base, None), FolderSources(), tmp_path / "job", LIMIT, Heard())
    assert found.tuned is None
    assert not (tmp_path / "job" / "tuned").exists()


def test_the_fingerprint_is_of_the_files_as_they_came_and_the_copy_is_made_plain(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text()) | {"auto_map": {}}
    (base / "config.json").write_text(json.dumps(config))
    found = fetch_checkpoints(pins(base, None), FolderSources(), tmp_path / "job", LIMIT, Heard())
    assert found.base.fingerprint == fingerprint(base) != fingerprint(found.base.folder)
    assert "auto_map" not in json.loads((found.base.folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("tuned", "words"),
    [(lambda: tiny_bert(1, blocks=2), "blocks"), (lambda: tiny_bert(1, hidden=16), "hidden width")],
)
def test_models_of_other_shapes_are_refused_before_they_are_loaded(
    base: Path, tmp_path: Path, tuned: Callable[[], BertModel], words: str
) -> None:
    other = save_model(tuned(), tmp_path / "origin" / "tuned")
    with pytest.raises(InputError, match=words) as raised:
        fetch_checkpoints(pins(base, other), FolderSources(), tmp_path / "job", LIMIT, Heard())
    assert raised.value.errors[0].pointer == "/tuned/uri"


def test_a_model_that_is_too_large_is_refused_at_its_own_place(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the limit of this service is 10") as raised:
        fetch_checkpoints(pins(base, None), FolderSources(), tmp_path / "job", 10, Heard())
    assert raised.value.errors[0].pointer == "/base/uri"


def test_a_benign_fine_tune_lies_beside_and_its_errors_point_at_it(base: Path, tmp_path: Path) -> None:
    tuned, benign = (save_model(tiny_bert(seed), tmp_path / "origin" / str(seed)) for seed in (1, 2))
    sources = FolderSources()
    asked = pins(base, tuned).model_copy(update={"benign": PinnedModel(uri=str(benign), files=[])})
    found = fetch_checkpoints(asked, sources, tmp_path / "job", LIMIT, Heard())
    assert found.benign is not None
    assert found.benign.folder == tmp_path / "job" / "benign"
    assert sources.pointers == ["/base/uri", "/tuned/uri", BENIGN]
    narrow = save_model(tiny_bert(1, hidden=16), tmp_path / "origin" / "narrow")
    asked = asked.model_copy(update={"benign": PinnedModel(uri=str(narrow), files=[])})
    with pytest.raises(InputError, match="benign 16") as raised:
        fetch_checkpoints(asked, sources, tmp_path / "other", LIMIT, Heard())
    assert raised.value.errors[0].pointer == BENIGN


def test_an_adapter_is_merged_into_its_base_and_fingerprinted_as_the_whole_model(base: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(tiny_bert(0), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    adapter = tmp_path / "origin" / "adapter"
    wrapped.save_pretrained(str(adapter))
    found = fetch_checkpoints(pins(base, adapter, adapter=True), FolderSources(), tmp_path / "job", LIMIT, Heard())
    assert found.tuned is not None
    assert found.tuned.uri == str(adapter)
    assert found.tuned.fingerprint == fingerprint(found.tuned.folder)
    cpu = torch.device("cpu")
    merged = dict(load_body(found.tuned.folder, "/tuned/uri", cpu).named_parameters())
    moved = {name for name, value in tiny_bert(0).named_parameters() if not torch.equal(value, merged[name])}
    assert moved == {f"encoder.layer.{block}.attention.self.query.weight" for block in range(3)}
