from __future__ import annotations

import torch

from workers.analysis.plateau import LossCurve


def curve(losses: list[list[float]], steps: int) -> tuple[LossCurve, list[int]]:
    """A curve of losses [T][S], and the steps after which it was flat."""
    found = LossCurve(steps, len(losses[0]))
    flat = []
    for step, one in enumerate(losses, start=1):
        found.add(torch.tensor(one))
        if found.flat:
            flat.append(step)
    return found, flat


def test_a_curve_has_the_mean_of_every_span() -> None:
    found, _ = curve([[float(step), 1.0] for step in range(10)], steps=400)
    assert found.span == 4
    assert [one.tolist() for one in found.means] == [[1.5, 1.0], [5.5, 1.0]]


def test_a_loss_that_falls_is_never_flat() -> None:
    assert curve([[0.99 ** (step / 100)] for step in range(2000)], steps=2000)[1] == []


def test_a_loss_that_stays_is_flat_at_the_ends_of_windows() -> None:
    assert curve([[1.0]] * 1000, steps=2000)[1] == [400, 600, 800, 1000]


def test_one_training_that_still_falls_keeps_all_going() -> None:
    assert curve([[1.0, 0.9 ** (step / 100)] for step in range(1000)], steps=2000)[1] == []


def test_short_runs_are_compared_over_a_hundred_steps_at_least() -> None:
    assert curve([[1.0]] * 240, steps=240)[1] == [204]


def test_noise_is_no_reason_to_go_on() -> None:
    noise = 1 + 0.02 * torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    assert curve(noise.tolist(), steps=2000)[1] != []


def test_a_curve_goes_on_from_its_state() -> None:
    losses = [[0.99**step, 1.0] for step in range(57)]
    whole, _ = curve(losses, steps=400)
    first, _ = curve(losses[:30], steps=400)
    second = LossCurve(400, 2)
    second.restore(first.state())
    for one in losses[30:]:
        second.add(torch.tensor(one))
    assert all(torch.equal(one, other) for one, other in zip(whole.means, second.means, strict=True))
    assert all(torch.equal(value, whole.state()[name]) for name, value in second.state().items())
