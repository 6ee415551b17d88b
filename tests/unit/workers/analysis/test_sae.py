from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.builders.autoencoders import LATENTS, K, trainer_on
from tests.builders.features import WIDTH, generator, planted
from workers.analysis.sae import SaeConfig, SaeStack, fit_on


def test_the_mean_alone_leaves_all_variance_and_a_perfect_code_none() -> None:
    data = torch.randn(500, 2, generator=generator(9))
    stack = SaeStack(
        W_enc=torch.tensor([[[1.0, 0], [-1, 0], [0, 1], [0, -1]]]),
        W_dec=torch.tensor([[[1.0, 0], [-1, 0], [0, 1], [0, -1]]]),
        b_enc=torch.zeros(1, 4),
        b_dec=torch.zeros(1, 2),
        scale=torch.ones(1),
        norm_limit=torch.full((1,), 1e9),
        threshold=torch.zeros(1, 4),
    )
    perfect = fit_on(stack, 0, data.split(100))
    torch.testing.assert_close(perfect.mean, data.double().mean(0))
    assert perfect.fvu == pytest.approx(0.0, abs=1e-10)
    assert perfect.l0 == pytest.approx(2.0)
    stack.threshold += 1e9
    stack.b_dec[0] = data.mean(0)
    assert fit_on(stack, 0, data.split(100)).fvu == pytest.approx(1.0, abs=1e-5)


def test_rows_that_do_not_vary_have_no_fvu() -> None:
    stack = trainer_on(planted(1024, seed=1)[0][None]).stack
    with pytest.raises(ValueError, match="have no variance"):
        fit_on(stack, 0, [torch.ones(10, WIDTH)])
    with pytest.raises(ValueError, match="0 rows"):
        fit_on(stack, 0, [])


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": LATENTS + 1}, {"steps": 0}, {"batch": 1}])
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SaeConfig(**{"latents": LATENTS, "k": K, "steps": 10, **wrong})
