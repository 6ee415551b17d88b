"""What chance gives: nulls on tiny models, and how often rounding is called drift."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.builders.models import BLOCKS, HIDDEN, add_noise, save_model, tiny_bert, tiny_tokenizer
from tests.builders.rounding import rounded
from tests.builders.stages import compared, fine_tuned, pair_context, resolved, tuning
from tests.builders.texts import make_texts
from workers.analysis.similarity import SiteSimilarity
from workers.models.derived_blocks import dithered
from workers.models.states import StateReader, hidden_states
from workers.models.texts import Batch, batches
from workers.results.measured import Measured
from workers.results.similarity import NoiseFloor
from workers.results.warnings import ReportWarning
from workers.stages.causal.trajectory import trajectory_of
from workers.stages.common.intervals import shared_change
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.compare.stage import _layer_drift, compare
from workers.stages.extract.nulls import MeasuredNull, Nulls, measured_null, numerical_twin
from workers.stages.extract.stage import extract


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
        assert "below_resolution" in {warning.code for warning in found.warnings}
    assert drifted == []


def test_noise_well_above_rounding_is_called_drift(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    add_noise(model, 2, scale=0.05)
    _, found = compared(base, save_model(model, tmp_path / "noised"), tmp_path / "scratch")
    assert [layer.drifted for layer in found.layers] == [False, False, True, True]
    for layer in found.layers[2:]:
        assert layer.excess == pytest.approx(layer.drift - layer.noise_floors["numerical"])


def test_a_model_that_overflows_in_the_null_costs_the_null_and_says_so(tmp_path: Path) -> None:
    tokenization = TokenizationSpec(tiny_tokenizer(tmp_path), 64, causal=False, states=StateReader(BLOCKS + 1, HIDDEN))
    model = tiny_bert(0)

    def states(batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        found = hidden_states(model, batch)
        return found, [layer * torch.inf for layer in found]

    found = measured_null("numerical", tokenization, make_texts(60), states, lambda _: None)
    assert isinstance(found, ReportWarning)
    assert found.code == "noise_floor_not_computed"


def test_every_number_has_its_null_beside_it(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    add_noise(model, 1)
    extracted, found = compared(base, save_model(model, tmp_path / "noised"), tmp_path / "scratch")
    (null,) = extracted.nulls.measured
    assert isinstance(null, MeasuredNull)
    for index, views in enumerate(found.similarity):
        for view, similarity in views.items():
            assert similarity.relative_l2.noise_floor == null.similarity[view][index].relative_l2
        assert views["mean"].knn_jaccard is not None
        assert views["mean"].knn_jaccard.noise_floor == null.geometry[index].knn_jaccard


def test_reseeded_and_shuffled_fine_tunes_are_measured_and_changes_compared(base: Path, tmp_path: Path) -> None:
    asked = tuning(epochs=3, precision="float32")
    analysis = asked.analysis.model_copy(update={"noise_floors": ["numerical", "reseed", "label_shuffle"]})
    asked = asked.model_copy(update={"analysis": analysis})
    given = resolved(base, texts=100, train=200)
    tuned = fine_tuned(asked, given, tmp_path / "tuned")
    context = pair_context(given, tuned.checkpoint, tmp_path / "scratch", asked)
    extracted = extract(context, tuned)
    found = compare(context, extracted)
    assert [null.name for null in found.noise_floors] == ["numerical", "reseed", "label_shuffle"]
    assert all(set(layer.noise_floors) == {"numerical", "reseed", "label_shuffle"} for layer in found.layers)
    assert found.consistency is not None
    assert found.reproducibility is not None
    for consistency, shared in zip(found.consistency, found.reproducibility, strict=True):
        for number in (consistency, shared):
            assert number.value is not None
            assert number.low is not None
            assert -1 <= number.low <= number.value <= 1
    seeds = extracted.nulls.seeds
    assert seeds is not None
    assert int(seeds.counts.sum()) == extracted.views["token"].rows
    assert seeds.products.shape[2:] == (3, 3)
    for layer in found.layers:
        if layer.drifted:
            assert layer.excess == pytest.approx(max(0.0, layer.drift - layer.noise_floors["numerical"]))


def changes(tokens: int, together: float, apart: float, seed: int = 0) -> Tensor:
    """Products of the changes of three seeds in 20 groups of texts: some alike, some of each seed's own."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(20, tokens, 16, generator=generator, dtype=torch.float64)
    own = torch.randn(3, 20, tokens, 16, generator=generator, dtype=torch.float64)
    return torch.einsum("igtd,jgtd->gij", *[together**0.5 * common + apart**0.5 * own] * 2)


def test_seeds_that_move_tokens_alike_are_told_from_seeds_that_scramble_them() -> None:
    """A wrecked layer that each seed scrambles otherwise is displaced all the same: see the next test."""
    for together, apart in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)):
        found = shared_change(changes(200, together, apart))
        assert found.value == pytest.approx(together, abs=0.03)
        assert found.low is not None
        assert found.high is not None
        assert found.low - 1e-9 <= together <= found.high + 1e-9


def test_a_layer_that_each_seed_scrambles_otherwise_is_displaced(base: Path, tmp_path: Path) -> None:
    """Two tuned models then lie as far apart as each from the base: that null said that nothing had drifted."""
    site = SiteSimilarity(0.0, 0.0, 1.4, 0.04)
    numerical = MeasuredNull(
        NoiseFloor(name="numerical", description="", tokens=1), {"token": [SiteSimilarity(0.0, 0.0, 1.0, 0.9999)]}, []
    )
    reseed = MeasuredNull(
        NoiseFloor(name="reseed", description="", tokens=1), {"token": [SiteSimilarity(0.0, 0.0, 1.0, 0.001)]}, []
    )
    nulls = Nulls([numerical, reseed], None, [0.98], [])
    found = _layer_drift(site, Measured(value=0.04, low=0.02, high=0.06), nulls, 0)
    assert found.drifted
    assert found.excess == pytest.approx(0.96 - 0.0001)
    assert found.relative.value == pytest.approx(0.96 / 0.98)


def test_the_resolution_is_one_for_checkpoints_of_both_precisions(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(200_000, generator=generator)
    errors = []
    for held in (weights, weights.bfloat16().float()):
        rounded_ = dithered(held, torch.Generator().manual_seed(1)).bfloat16().float()
        errors.append(float((rounded_ - held).square().mean()))
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
    reader, batch = StateReader.of(tiny_bert(0), ""), next(batches(tiny_tokenizer(tmp_path), make_texts(33), 16, 64))
    moved = []
    for convert in (False, True):
        model = tiny_bert(0)
        if convert:
            model.to(torch.bfloat16).to(torch.float32)  # type: ignore[arg-type]
        pairs = zip(hidden_states(model, batch), numerical_twin(reader, model)(batch), strict=True)
        moved.append([float((one - other).norm() / one.norm()) for one, other in pairs])
    assert moved[0] == pytest.approx(moved[1], rel=0.3)


def test_random_weights_are_the_end_of_the_scale(base: Path, tmp_path: Path) -> None:
    """A copy with other random weights has nothing left of the base but the tokens' identity, at every layer."""
    extracted, found = compared(base, save_model(tiny_bert(1), tmp_path / "other"), tmp_path / "scratch")
    assert all(left is not None and left > 0.05 for left in extracted.nulls.random_weights_drift)
    for layer in found.layers:
        assert layer.relative.value == pytest.approx(1.0, abs=0.25)
    _, same = compared(base, base, tmp_path / "scratch2")
    assert [layer.relative.value for layer in same.layers] == [0.0] * (BLOCKS + 1)


def test_snapshots_show_drift_growing(base: Path, tmp_path: Path) -> None:
    asked = tuning(epochs=2, checkpoints=3, keep="last", freeze_first=1)
    given = resolved(base, texts=60, train=128)
    tuned = fine_tuned(asked, given, tmp_path / "tuned")
    context = pair_context(given, tuned.checkpoint, tmp_path / "scratch", asked)
    extracted = extract(context, tuned)
    trajectory = trajectory_of(context, tuned, extracted)
    assert trajectory is not None
    assert trajectory.steps == [5, 11, 16]
    assert [drift[:2] for drift in trajectory.drift] == [[0.0, 0.0]] * 3
    last = [drift[-1] for drift in trajectory.drift]
    assert 0 < last[0] < last[-1]
    found = compare(context, extracted)
    assert trajectory.drift[-1] == pytest.approx(found.drift, abs=1e-9)
