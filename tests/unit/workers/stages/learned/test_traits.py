"""Shifts along directions that sets of prompts define."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from layerdrift.contract.errors import InputError
from layerdrift.contract.request import Trait
from tests.builders.models import tiny_tokenizer
from workers.models.texts import Batch
from workers.stages.learned.traits import TraitPrompts, TraitShifts


def batch(texts: list[int], length: int) -> Batch:
    ids = torch.ones(len(texts), length, dtype=torch.int64)
    return Batch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool), texts)


PROMPTS = TraitPrompts([batch([0, 2], 3), batch([3, 1], 2)], [torch.tensor([0, 1]), torch.tensor([1, 0])])
BASE = [batch([0, 1, 2], 40)]


def states(seed: int, batches: list[Batch], width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*one.input_ids.shape, width, generator=generator) for one in batches]


def test_a_direction_is_the_difference_of_the_means_over_tokens() -> None:
    found = states(0, PROMPTS.batches)
    own = torch.cat([found[0][0], found[1][1]]).mean(0) - torch.cat([found[0][1], found[1][0]]).mean(0)
    (direction,) = PROMPTS.directions(found)
    assert torch.allclose(direction.float(), own, atol=1e-6)


@pytest.mark.parametrize("share", [0.25, -0.4])
def test_a_shift_is_the_share_of_the_way_and_beyond_what_random_directions_have(share: float) -> None:
    prompted, base = states(0, PROMPTS.batches), states(1, BASE)
    (direction,) = PROMPTS.directions(prompted)
    shifts = TraitShifts(PROMPTS, 0, 2)
    shifts.add(5, prompted, base, BASE, [share * direction, 0.01 * direction, -0.02 * direction])
    ((found,),) = shifts.found
    assert (found.layer, found.percentile) == (5, 1.0)
    assert (found.shift, found.floor) == pytest.approx((share, 0.02 + 2 * 0.005))  # two deviations of 0.01 and 0.02
    assert found.beyond


def test_a_shift_across_or_within_what_nulls_show_is_not_beyond() -> None:
    prompted, base = states(0, PROMPTS.batches), states(1, BASE)
    (direction,) = PROMPTS.directions(prompted)
    across = torch.randn(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    across -= direction * (across @ direction) / (direction @ direction)
    shifts = TraitShifts(PROMPTS, 0, 2)
    shifts.add(0, prompted, base, BASE, [across, torch.zeros(16)])
    shifts.add(1, prompted, base, BASE, [0.1 * direction, 0.2 * direction])
    shifts.add(2, prompted, base, BASE, [torch.zeros(16), torch.zeros(16)])
    first, second, third = shifts.found[0]
    assert first.shift == pytest.approx(0.0, abs=1e-9)
    assert first.percentile < 0.2
    assert second.percentile == 1.0
    assert [one.beyond for one in (first, second, third)] == [False] * 3
    assert (third.shift, third.percentile) == (0.0, 0.0)


def test_the_floor_is_that_of_the_farthest_layer_of_models_that_learned_nothing() -> None:
    prompted, base = states(0, PROMPTS.batches), states(1, BASE)
    (direction,) = PROMPTS.directions(prompted)
    shifts = TraitShifts(PROMPTS, 0, 2)
    shifts.add(0, prompted, base, BASE, [0.3 * direction, 0.01 * direction, 0.4 * direction])
    shifts.add(1, prompted, base, BASE, [0.3 * direction, 0.5 * direction, 0.01 * direction])
    assert [one.floor for one in shifts.found[0]] == pytest.approx([0.5 + 2 * 0.05] * 2)
    assert not any(one.beyond for one in shifts.found[0])


@pytest.mark.parametrize(
    ("trait", "place"), [({"prompts": ["good"] * 4}, "prompts"), ({"opposite": ["film"] * 4}, "opposite")]
)
def test_prompts_of_which_no_token_counts_are_refused_at_their_place(
    trait: dict[str, list[str]], place: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    whole = ["the film was good", "a plot", "the scene", "good film"]
    asked = Trait.model_validate({"name": "cheer", "prompts": whole, "opposite": whole} | trait)
    with pytest.raises(InputError, match=f"the {place} of trait 'cheer' have one token each") as raised:
        TraitPrompts.of([asked], tokenizer, 16, True)
    assert raised.value.errors[0].pointer == f"/analysis/learned/traits/0/{place}"


def test_random_directions_have_the_covariance_of_the_states_and_follow_the_seed() -> None:
    base = states(1, BASE)
    base[0][..., 0] *= 30
    one, other = (TraitShifts(PROMPTS, seed, 2) for seed in (0, 1))
    drawn = one._random(0, base, BASE)
    assert float((drawn[:, 0].abs() / drawn.norm(dim=1)).mean()) > 0.9
    assert torch.equal(drawn, one._random(0, base, BASE))
    assert not torch.equal(drawn, other._random(0, base, BASE))


def test_without_traits_there_is_nothing_to_read() -> None:
    empty = TraitPrompts.of([], None, 8, True)  # type: ignore[arg-type]
    assert (empty.batches, empty.count) == ([], 0)
    shifts = TraitShifts(empty, 0, 2)
    shifts.add(0, [], states(1, BASE), BASE, [torch.ones(16)])
    assert shifts.found == []


def test_a_trait_needs_some_prompts_on_both_sides() -> None:
    with pytest.raises(ValueError, match="at least 4 items"):
        Trait(name="a", prompts=["x"] * 4, opposite=["y"] * 3)
