"""Drift, zones, advice and warnings from measured similarities. The stage on models: tests/stages."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from workers.analysis.geometry import Geometry
from workers.analysis.similarity import SiteSimilarity
from workers.results.measured import Measured
from workers.results.models import ModelInfo
from workers.results.similarity import AllTokens, NoiseFloor, Zone
from workers.stages.common.left_out import LeftOut
from workers.stages.compare.stage import (
    DRAWS,
    LEAST_SCALE,
    NUMERICAL_FACTOR,
    NUMERICAL_FACTOR_L2,
    LayerDrift,
    _below_resolution,
    _cross_layer,
    _excluded_tokens,
    _fresh_curves,
    _identical,
    _layer_drift,
    _null_site,
    _relative,
    _similarity,
    _SiteGeometry,
    _undefined,
    _zones,
    recommended,
)
from workers.stages.extract.extracted import Extracted, TokenCounts
from workers.stages.extract.nulls import MeasuredNull, Nulls


def site(cka: float | None, relative_l2: float | None = 0.3, **more: Any) -> SiteSimilarity:
    return SiteSimilarity(0.9, 0.8, relative_l2, cka, **more)


def nulls(numerical: float | None, random_weights: float | None = 0.8, cka: bool = True) -> Nulls:
    """With a numerical null that drifts so much at every layer, by CKA or by relative L2."""
    measured = []
    if numerical is not None:
        of_site = site(1 - numerical) if cka else site(None, numerical)
        floor = NoiseFloor(name="numerical", description="", tokens=100)
        measured.append(MeasuredNull(floor, {"token": [of_site], "mean": [of_site]}, [Geometry(0.99, 0.9)]))
    return Nulls(measured, None, [random_weights], [])


@pytest.mark.parametrize(
    ("high", "drifted"),
    [(1 - 1.01 * NUMERICAL_FACTOR * 0.01, True), (1 - 0.99 * NUMERICAL_FACTOR * 0.01, False), (None, True)],
    ids=["the interval is above", "the interval is not above", "no interval: the number itself"],
)
def test_a_layer_drifted_where_its_interval_is_above_the_numerical_resolution(
    high: float | None, drifted: bool
) -> None:
    cka = Measured(value=0.9, low=0.8 if high else None, high=high)
    found = _layer_drift(site(0.9), cka, nulls(0.01), 0)
    assert found.drift == pytest.approx(0.1)
    assert found.drifted is drifted
    assert found.excess == pytest.approx(0.09 if drifted else 0.0)
    assert found.noise_floors == {"numerical": pytest.approx(0.01)}


@pytest.mark.parametrize(("moved", "drifted"), [(0.0, False), (1e-9, True)])
def test_without_a_null_everything_that_moved_at_all_drifted(moved: float, drifted: bool) -> None:
    found = _layer_drift(site(1 - moved), Measured(value=1 - moved), nulls(None), 0)
    assert (found.drifted, found.noise_floors) == (drifted, {})


@pytest.mark.parametrize(("moved", "drifted"), [(1.9, False), (2.1, True)])
def test_where_cka_has_no_meaning_relative_l2_is_judged_by_its_own_factor(moved: float, drifted: bool) -> None:
    assert NUMERICAL_FACTOR_L2 == 2.0
    undefined = Measured(value=None, undefined="constant")
    found = _layer_drift(site(None, moved * 0.1), undefined, nulls(0.1, cka=False), 0)
    assert found.drifted is drifted
    assert found.relative == Measured(value=None, undefined="constant")


def test_the_relative_scale_runs_from_identical_to_random_weights() -> None:
    found = _relative(Measured(value=0.8, low=0.7, high=0.9), 0.4)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.25, 0.75))
    assert _relative(Measured(value=1.0), 0.4).value == 0.0
    assert _relative(Measured(value=0.6), 0.4).value == 1.0


@pytest.mark.parametrize(
    ("cka", "left", "reason"),
    [
        (Measured(value=None, undefined="constant"), 0.5, "constant"),
        (Measured(value=0.9), None, "could not be compared"),
        (Measured(value=0.9), LEAST_SCALE / 2, "so there is no scale"),
        (Measured(value=0.9), -0.1, "so there is no scale"),
    ],
)
def test_where_there_is_no_scale_it_says_why(cka: Measured, left: float | None, reason: str) -> None:
    found = _relative(cka, left)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert reason in (found.undefined or "")


def layer(drift: float, drifted: bool = True, floor: float = 0.0) -> LayerDrift:
    excess = max(0.0, drift - floor) if drifted else 0.0
    return LayerDrift(drift, {"numerical": floor}, excess, drifted, None, Measured(value=None))


def left_out(drift: list[float], spread: float, groups: int = 10) -> LeftOut:
    """Leave-one-out curves that lie around a curve; the jackknife's standard error is about 9 times their spread."""
    generator = torch.Generator().manual_seed(0)
    noise = spread * torch.randn(groups, len(drift), generator=generator, dtype=torch.float64)
    return LeftOut([[site(1 - value + float(one)) for value, one in zip(drift, row, strict=True)] for row in noise])


def test_without_groups_zones_have_no_support() -> None:
    found = _zones([layer(value) for value in (0.02, 0.02, 0.02, 0.8, 0.8, 0.8)], LeftOut([]), seed=0)
    assert [(zone.first, zone.last, zone.support) for zone in found] == [(0, 2, None), (3, 5, None)]


def test_steps_that_every_fresh_sample_gives_again_are_supported_whole() -> None:
    drift = [0.02, 0.02, 0.02, 0.8, 0.8, 0.8]
    found = _zones([layer(value) for value in drift], left_out(drift, 1e-6), seed=0)
    assert [(zone.first, zone.last, zone.support) for zone in found] == [(0, 2, 1.0), (3, 5, 1.0)]
    assert [zone.level for zone in found] == pytest.approx([0.02, 0.8])


def test_a_steady_rise_whose_steps_would_not_come_again_is_a_ramp() -> None:
    drift = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = _zones([layer(value) for value in drift], left_out(drift, 0.004), seed=0)
    assert found[-1].name == "ramp"
    assert found[-1].last == 6


def test_layers_that_did_not_drift_have_no_excess_in_fresh_samples_either() -> None:
    drift = [0.3, 0.3, 0.8, 0.8]
    layers = [layer(value, drifted=value > 0.5) for value in drift]
    found = _zones(layers, left_out(drift, 1e-6), seed=0)
    assert [(zone.first, zone.last, zone.level) for zone in found] == [(0, 1, 0.0), (2, 3, pytest.approx(0.8))]


def test_fresh_curves_scatter_by_twice_the_jackknifes_variance_around_the_measured_one() -> None:
    drift = [0.2, 0.5]
    given = left_out(drift, 0.001, groups=40)
    curves = torch.tensor(_fresh_curves(drift, given, seed=1))
    assert curves.shape == (DRAWS, 2)
    leave = torch.tensor([[1 - (one.cka or 0.0) for one in sites] for sites in given.by_group], dtype=torch.float64)
    variance = 39 / 40 * (leave - leave.mean(0)).square().sum(0)
    error = (2 * variance / DRAWS).sqrt()
    assert bool(((curves.mean(0) - torch.tensor(drift)).abs() < 4 * error).all())
    torch.testing.assert_close(curves.var(0).double(), 2 * variance, rtol=0.3, atol=0)
    assert _fresh_curves(drift, LeftOut([]), seed=1) == []


def test_fresh_curves_follow_the_seed() -> None:
    given = left_out([0.2], 0.001)
    assert _fresh_curves([0.2], given, 1) == _fresh_curves([0.2], given, 1) != _fresh_curves([0.2], given, 2)


def test_a_numerical_null_gives_each_measure_its_floor() -> None:
    found = _null_site(nulls(0.01).measured, "mean", 0)
    assert found["cka"] == pytest.approx(0.99)
    assert (found["rsa"], found["knn_jaccard"]) == (0.99, 0.9)
    reseed = replace(nulls(0.01).measured[0], null=NoiseFloor(name="reseed", description="", tokens=1))
    assert _null_site([reseed], "mean", 0) == {}
    assert _null_site([], "token", 0) == {}


def test_every_measure_has_its_interval_and_floor_or_the_reason_why_not() -> None:
    whole = site(0.9, cka_standardized=None, procrustes=0.1, undefined="too few")
    others = [site(0.9 + one / 1000, procrustes=0.1) for one in range(6)]
    found = _similarity(whole, others, True, None, {"cka": 0.99})
    assert found.cka.low is not None
    assert found.cka.noise_floor == 0.99
    assert (found.cosine.value, found.cosine.noise_floor) == (0.9, None)
    assert (found.cka_standardized.value, found.cka_standardized.undefined) == (None, "too few")
    assert (found.rsa, found.knn_jaccard) == (None, None)


def test_measures_of_distances_are_there_where_distances_were_taken() -> None:
    geometry = _SiteGeometry(Geometry(0.7, None), [Geometry(0.7 + one / 1000, None) for one in range(6)])
    found = _similarity(site(0.9), [], True, geometry, {"rsa": 0.98})
    assert found.rsa is not None
    assert found.rsa.value == 0.7
    assert found.rsa.low is not None
    assert found.rsa.noise_floor == 0.98
    assert found.knn_jaccard is not None
    assert found.knn_jaccard.value is None
    assert "fewer than" in (found.knn_jaccard.undefined or "")


def test_layers_that_moved_no_farther_than_rounding_are_named() -> None:
    layers = [layer(0.0, drifted=False), layer(0.01, drifted=False), layer(0.5), layer(0.02, drifted=False)]
    (warning,) = _below_resolution(layers, identical=False)
    assert warning.message.startswith("the drift of layer 1, 3 cannot be told from rounding")
    assert _below_resolution(layers, identical=True) == []
    assert _below_resolution([layers[0], layers[2]], identical=False) == []


def test_layers_without_cka_are_named_with_the_reason() -> None:
    sites = [site(0.9), site(None, undefined="no variance"), site(None, undefined="other")]
    (warning,) = _undefined(sites)
    assert "undefined at layer 1, 2 (no variance)" in warning.message
    assert _undefined(sites[:1]) == []


def extracted(**fields: Any) -> Extracted:
    return cast(Extracted, SimpleNamespace(**fields))


@pytest.mark.parametrize(("own", "layers"), [([0.1, 0.2, 0.3], "1, 2"), ([0.105, 0.1, 0.1], None)])
def test_a_drift_that_left_out_tokens_would_change_is_told_with_the_layer_of_most(
    own: list[float], layers: str | None
) -> None:
    given = extracted(counts=TokenCounts(first=3, outliers=2, counted=95, unread=0))
    whole = [AllTokens(drift=drift, relative_l2=None) for drift in (0.1, 0.1, 0.1)]
    found = _excluded_tokens(given, whole, own)
    assert bool(found) is (layers is not None)
    if layers is not None:
        assert found[0].message.startswith("5.0% of the tokens are not compared: 3 first tokens of texts")
        assert f"at layer {layers}, most at layer 2: 0.100 instead of 0.300" in found[0].message
    assert _excluded_tokens(given, None, own) == []


@pytest.mark.parametrize(
    ("other", "codes"), [("a", ["identical_models", "identical_bodies"]), ("b", ["identical_bodies"])]
)
def test_equal_activations_of_other_files_are_not_called_equal_files(other: str, codes: list[str]) -> None:
    def model(fingerprint: str) -> ModelInfo:
        return ModelInfo(uri="", fingerprint=fingerprint, architecture="", parameters=1, blocks=1, hidden_size=1)

    moved = [{"attention": SimpleNamespace(relative_frobenius=0.1)}]
    found = _identical(extracted(models={"base": model("a"), "tuned": model(other)}, weights=moved))
    assert [warning.code for warning in found] == codes


def test_other_files_with_the_same_weights_are_told() -> None:
    models = {
        name: ModelInfo(uri="", fingerprint=name, architecture="", parameters=1, blocks=1, hidden_size=1)
        for name in ("base", "tuned")
    }
    same = [{"attention": SimpleNamespace(relative_frobenius=0.0)}]
    found = _identical(extracted(models=models, weights=same))
    assert [warning.code for warning in found] == ["identical_weights", "identical_bodies"]


def test_a_site_that_does_not_vary_has_no_number_in_the_cross_layer_map() -> None:
    rows = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    rows[0] = 1.0
    found = _cross_layer(extracted(token_sample=(rows, rows)))
    assert found.rows == 50
    assert found.values[0] == [None, None]
    assert found.values[1] == [None, pytest.approx(1.0)]
    assert not any(isinstance(value, float) and math.isnan(value) for row in found.values for value in row)


def test_identical_bodies_need_no_review_and_advice_needs_a_curve_that_separates() -> None:
    drift = [0.0, 0.02, 0.02]
    sites = [site(1 - value, value) for value in drift]
    general = [Zone(name="general", first=0, last=2, level=0.0)]
    assert "bodies of the models are identical" in recommended(general, sites, drift, identical=True).evidence
    found = recommended(general, sites, drift, identical=False)
    assert (found.freeze_first, found.basis) == (0, "predicted")
    assert "Drift stays at 0.020 or below" in found.evidence


def test_a_layer_that_moved_without_turning_is_no_layer_to_freeze() -> None:
    """Its CKA is near 1, but its rows moved by more than half their length."""
    drift = [0.0, 0.01, 0.01, 0.6]
    zones = [Zone(name="general", first=0, last=2, level=0.0), Zone(name="specialised", first=3, last=3, level=0.6)]
    sites = [site(1 - value, value, relative_l2_centred=value) for value in drift]
    assert recommended(zones, sites, drift, identical=False).freeze_first == 2
    sites[2] = site(0.99, 0.9, relative_l2_centred=5.0)
    assert recommended(zones, sites, drift, identical=False).freeze_first == 1
