"""Autoencoders of the difference: planted directions are found, and whether the base model has them already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import DifferenceAutoencoder
from workers.models.texts import Batch
from workers.stages.learned import latents
from workers.stages.learned.latents import DifferenceRows, Fitted, Latent, TooFewPositions, fitted

WIDTH, TEXTS, LENGTH = 32, 60, 40
NEW, AMPLIFIED, REMOVED = torch.eye(WIDTH)[[3, 11, 20]]
SETTINGS = DifferenceAutoencoder(width=2, k=1)


def batches(texts: int = TEXTS) -> list[Batch]:
    ids = torch.ones(texts, LENGTH, dtype=torch.int64)
    return [Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), list(range(texts)))]


def planted() -> tuple[Tensor, Tensor]:
    """States of both models [B, T, D]: one feature is added, one doubled, one taken away, each at a fifth of places."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(TEXTS, LENGTH, WIDTH, generator=generator)
    places = torch.rand(3, TEXTS, LENGTH, generator=generator) < 0.2
    strengths = 1 + torch.rand(3, TEXTS, LENGTH, generator=generator)
    added, doubled, removed = (places * strengths)[..., None] * torch.stack([NEW, AMPLIFIED, REMOVED])[:, None, None]
    base = base + doubled + removed
    noise = 0.005 * torch.randn(TEXTS, LENGTH, WIDTH, generator=generator)
    return base, base + added + doubled - removed + noise


def rows_of(folder: Path, base: Tensor, others: list[Tensor], texts: int = TEXTS) -> DifferenceRows:
    rows = DifferenceRows(folder, batches(texts), [2], len(others))
    rows.put(1, [base], [[one] for one in others])
    rows.put(2, [base], [[one] for one in others])
    return rows


def trained(rows: DifferenceRows) -> list[Fitted]:
    return list(fitted(rows, SETTINGS, 0, lambda _: None))


def values(latent: Latent) -> tuple[float | None, float | None]:
    return latent.in_base.value, latent.in_tuned.value


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    base, tuned = planted()
    noised = base + 0.05 * torch.randn(base.shape, generator=torch.Generator().manual_seed(9))
    (one,) = trained(rows_of(tmp_path_factory.mktemp("rows"), base, [tuned, noised]))
    return one


def test_every_planted_feature_has_a_latent_and_the_rest_is_small(found: Fitted) -> None:
    assert found.layer == 2
    assert found.positions == TEXTS * LENGTH
    assert found.width == 2 * WIDTH
    assert found.fvu < 0.1
    for direction, sign in ((NEW, 1), (AMPLIFIED, 1), (REMOVED, -1)):
        latent = max(found.latents, key=lambda one: sign * float(one.direction @ direction))
        assert sign * float(latent.direction @ direction) > 0.95
        assert latent.rate == pytest.approx(0.2, abs=0.08)
    assert sum(one.share for one in found.latents) == pytest.approx(1, abs=0.25)
    assert [one.share for one in found.latents] == sorted((one.share for one in found.latents), reverse=True)


def test_slopes_say_which_model_has_a_feature(found: Fitted) -> None:
    new = max(found.latents, key=lambda one: float(one.direction @ NEW))
    assert values(new) == pytest.approx((0, 1), abs=0.15)
    more = max(found.latents, key=lambda one: float(one.direction @ AMPLIFIED))
    assert values(more) == pytest.approx((1, 2), abs=0.25)
    gone = min(found.latents, key=lambda one: float(one.direction @ REMOVED))
    assert values(gone) == pytest.approx((-1, 0), abs=0.15)
    for one in (new, more, gone):
        for slope in (one.in_base, one.in_tuned):
            assert slope.low is not None
            assert slope.high is not None
            assert slope.low < (slope.value or 0.0) < slope.high


def test_a_small_difference_in_large_states_is_not_clear(tmp_path: Path) -> None:
    """The base model's own variation along a latent hides what it has of it: the interval says so."""
    base, tuned = planted()
    loud = base + 3 * torch.randn(base.shape, generator=torch.Generator().manual_seed(4))
    (found,) = trained(rows_of(tmp_path, loud, [loud + (tuned - base)]))
    new = max(found.latents, key=lambda one: float(one.direction @ NEW))
    assert new.in_base.low is not None
    assert new.in_base.high is not None
    assert new.in_base.low < 0 < new.in_base.high
    assert new.in_base.high - new.in_base.low > 0.4


def test_a_difference_that_no_held_out_text_has_trains_nothing(tmp_path: Path) -> None:
    base, tuned = planted()
    held = TEXTS * 3 // 4
    assert trained(rows_of(tmp_path, base, [torch.cat([tuned[:held], base[held:]])])) == []


def test_places_are_the_strongest_of_different_held_out_texts(found: Fitted) -> None:
    base, tuned = planted()
    for latent in found.latents[:3]:
        strengths = [one.activation for one in latent.places]
        assert strengths == sorted(strengths, reverse=True)
        assert len({one.text for one in latent.places}) == len(latent.places) == 3
        for one in latent.places:
            assert one.text >= TEXTS * 3 // 4
            assert float((tuned - base)[one.text, one.token] @ latent.direction) > 1


def test_other_models_have_autoencoders_of_their_own(found: Fitted) -> None:
    (others,) = found.others
    assert 0 < len(others) <= min(latents.LOOKED_AT, 2 * WIDTH)
    assert torch.allclose(others.norm(dim=1), torch.ones(len(others)), atol=1e-3)


def test_two_runs_say_the_same(tmp_path: Path) -> None:
    base, tuned = planted()
    one, other = (trained(rows_of(tmp_path / name, base, [tuned]))[0] for name in "ab")
    assert one.fvu == other.fvu
    assert [latent.share for latent in one.latents] == [latent.share for latent in other.latents]


def test_equal_models_train_nothing_and_an_equal_null_has_no_autoencoder(tmp_path: Path) -> None:
    base, tuned = planted()
    assert trained(rows_of(tmp_path / "equal", base, [base, tuned])) == []
    (one,) = trained(rows_of(tmp_path / "null", base, [tuned, base]))
    assert one.others == []


def test_a_difference_that_is_the_same_everywhere_trains_nothing(tmp_path: Path) -> None:
    base, _ = planted()
    assert trained(rows_of(tmp_path, torch.zeros_like(base), [torch.ones_like(base)])) == []


def test_too_few_positions_are_refused_with_their_number(tmp_path: Path) -> None:
    base, tuned = (one[:10] for one in planted())
    with pytest.raises(TooFewPositions, match="there are 400 positions"):
        trained(rows_of(tmp_path, base, [tuned], texts=10))


def test_more_active_latents_than_there_are_are_refused(tmp_path: Path) -> None:
    base, tuned = planted()
    rows = rows_of(tmp_path, base, [tuned])
    with pytest.raises(InputError, match="k = 33 exceeds the number of latents") as raised:
        list(fitted(rows, DifferenceAutoencoder(width=1, k=33), 0, lambda _: None))
    assert raised.value.errors[0].pointer == "/analysis/learned/autoencoder/k"


def test_files_are_removed(tmp_path: Path) -> None:
    base, tuned = planted()
    rows = rows_of(tmp_path / "rows", base, [tuned])
    assert torch.allclose(rows.base(2), base.flatten(0, 1), atol=0.02)
    rows.clear()
    assert not (tmp_path / "rows").exists()
