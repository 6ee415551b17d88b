"""What chance gives: nulls on tiny models, and how often rounding is called drift."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from layerdrift.contract.report import ReportWarning
from tests.benchmarks.measures import rounded
from tests.conftest import BLOCKS, HIDDEN, add_noise, make_texts, save_model, tiny_bert, tiny_tokenizer
from tests.unit.workers.test_stages import SCRATCH_BYTES, compared, resolved, tick, tuning
from workers.models.states import StateReader, hidden_states
from workers.models.texts import Batch, batches
from workers.stages.compare import compare
from workers.stages.extract import extract
from workers.stages.finetune import finetune
from workers.stages.gather import Reading
from workers.stages.nulls import MeasuredNull, measured_null, numerical_twin


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tiny_bert(0), tmp_path / "base")


def test_the_twin_gives_the_same_states_up_to_the_rounding_of_bfloat16(tmp_path: Path) -> None:
    model = tiny_bert(0)
    twin = numerical_twin(StateReader.of(model, ""), model)
    for batch in batches(tiny_tokenizer(tmp_path), make_texts(33), 16, 64):
        for one, other in zip(hidden_states(model, batch), twin(batch), strict=True):
            real = batch.attention_mask.bool()
            difference = float((one[real] - other[real]).norm() / one[real].norm())
            assert 1e-4 < difference < 0.05


@pytest.mark.slow
def test_of_twenty_pairs_that_rounding_tells_apart_no_layer_is_called_drifted(base: Path, tmp_path: Path) -> None:
    """Rounded to float16, to bfloat16, and eighteen times at random to one of the two nearest bfloat16."""
    drifted = []
    for number in range(20):
        tuned = save_model(rounded(tiny_bert(0), number), tmp_path / f"rounded{number}")
        _, found = compared(base, tuned, tmp_path / f"scratch{number}")
        assert max(found.drift) > 0
        drifted += [(number, index) for index, layer in enumerate(found.layers) if layer.drifted]
        assert all(layer.excess == 0 for layer in found.layers)
        assert [(zone.name, zone.first, zone.last) for zone in found.zones] == [("general", 0, BLOCKS)]
        assert "within_chance" in {warning.code for warning in found.warnings}
    assert drifted == []


def test_noise_well_above_rounding_is_called_drift(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    add_noise(model, 2, scale=0.05)
    _, found = compared(base, save_model(model, tmp_path / "noised"), tmp_path / "scratch")
    assert [layer.drifted for layer in found.layers] == [False, False, True, True]
    for layer in found.layers[2:]:
        assert layer.excess == pytest.approx(layer.drift - layer.nulls["numerical"])


def test_a_model_that_overflows_in_the_null_costs_the_null_and_says_so(tmp_path: Path) -> None:
    reading = Reading(tiny_tokenizer(tmp_path), 64, causal=False, states=StateReader(BLOCKS + 1, HIDDEN))
    model = tiny_bert(0)

    def states(batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        found = hidden_states(model, batch)
        return found, [layer * torch.inf for layer in found]

    found = measured_null("numerical", reading, make_texts(60), states, lambda _: None)
    assert isinstance(found, ReportWarning)
    assert found.code == "null_not_computed"


def test_every_number_has_its_null_beside_it(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    add_noise(model, 1)
    extracted, found = compared(base, save_model(model, tmp_path / "noised"), tmp_path / "scratch")
    (null,) = extracted.nulls.measured
    assert isinstance(null, MeasuredNull)
    for index, views in enumerate(found.similarity):
        for view, similarity in views.items():
            assert similarity.relative_l2.null == null.similarity[view][index].relative_l2
        assert views["mean"].knn_jaccard is not None
        assert views["mean"].knn_jaccard.null == null.geometry[index].knn_jaccard


def test_reseeded_and_shuffled_fine_tunes_are_measured_and_changes_compared(base: Path, tmp_path: Path) -> None:
    asked = tuning(epochs=3, precision="float32")
    analysis = asked.analysis.model_copy(update={"nulls": ["numerical", "reseed", "label_shuffle"]})
    asked = asked.model_copy(update={"analysis": analysis})
    given = resolved(base, texts=100, train=200)
    tuned = finetune(asked, given, tmp_path / "tuned", "s3://x", tick)
    extracted = extract(asked, given, tuned.checkpoint, tuned, tmp_path / "scratch", SCRATCH_BYTES, tick)
    found = compare(asked, given, extracted, tick)
    assert [null.name for null in found.nulls] == ["numerical", "reseed", "label_shuffle"]
    assert all(set(layer.nulls) == {"numerical", "reseed", "label_shuffle"} for layer in found.layers)
    assert found.consistency is not None
    for consistency in found.consistency:
        assert consistency.value is not None
        assert consistency.low is not None
        assert -1 <= consistency.low <= consistency.value <= 1
    same = extracted.nulls.consistency
    assert same is not None
    assert int(same.counts.sum()) == extracted.moments["token"].n
    for layer in found.layers:
        if layer.drifted:
            assert layer.excess == pytest.approx(max(0.0, layer.drift - max(layer.nulls.values())))


def test_snapshots_show_drift_growing(base: Path, tmp_path: Path) -> None:
    asked = tuning(epochs=2, checkpoints=3, keep="last", freeze_first=1)
    given = resolved(base, texts=60, train=128)
    tuned = finetune(asked, given, tmp_path / "tuned", "s3://x", tick)
    extracted = extract(asked, given, tuned.checkpoint, tuned, tmp_path / "scratch", SCRATCH_BYTES, tick)
    trajectory = extracted.trajectory
    assert trajectory is not None
    assert trajectory.steps == [5, 11, 16]
    assert [drift[:2] for drift in trajectory.drift] == [[0.0, 0.0]] * 3
    last = [drift[-1] for drift in trajectory.drift]
    assert 0 < last[0] < last[-1]
    found = compare(asked, given, extracted, tick)
    assert trajectory.drift[-1] == pytest.approx(found.drift, abs=1e-9)
