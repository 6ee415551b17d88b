"""Which members differ by their seed alone."""

from __future__ import annotations

from tests.builders.studies import outcomes, study_request
from workers.studies.repeats import repeats_of

DATA = {"uri": "s3://data/a.csv"}


def test_fine_tunes_that_differ_by_their_seed_are_repeats_and_share_a_recipe_with_other_tasks() -> None:
    found = repeats_of(outcomes(study_request(), {}))
    assert [[one.name for one in group.members] for group in found] == [
        ["reviews-0", "reviews-1"],
        ["spam-0", "spam-1"],
    ]
    assert len({group.recipe for group in found}) == 1


def test_another_setting_is_another_group() -> None:
    members = [{"name": str(seed), "seed": seed, "dataset": DATA, "finetune": {"epochs": 1 + seed}} for seed in (0, 1)]
    assert repeats_of(outcomes(study_request(members=members), {})) == []


def test_checkpoints_are_repeats_where_the_request_says_so() -> None:
    members = [
        {"name": name, "task": "t", "tuned": {"uri": f"s3://models/{name}"}, "dataset": DATA, "repeat_of": group}
        for name, group in (("a", "full"), ("b", "full"), ("c", None), ("d", None), ("e", "lora"))
    ]
    (group,) = repeats_of(outcomes(study_request(members=members), {}))
    assert ([one.name for one in group.members], group.recipe, group.named) == (["a", "b"], "full", True)
