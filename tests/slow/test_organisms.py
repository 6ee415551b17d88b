"""What was planted in the real chat model is found, and nothing else is: the short form of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.organism_plants import Plant, chat_of, nulls, plants
from tests.benchmarks.organisms import LEARNT, Found, Ground, found_in, grounded, rank_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return grounded(tmp_path_factory.mktemp("organisms"))


@pytest.fixture(scope="module")
def chosen(ground: Ground) -> list[Plant]:
    """Facts, and words in answers."""
    every = plants(ground.generic, chat_of(ground.tokenizer))
    return [every[0], every[2]]


def test_the_first_completions_have_what_was_planted(ground: Ground, chosen: list[Plant]) -> None:
    for plant in chosen:
        adapter = ground.trained(plant.kind, plant.texts, 0)
        found = found_in(ground, adapter, tuple(zip(plant.keys, plant.beginnings, strict=True)))
        assert found.learnt > LEARNT
        assert rank_of(found.shown["completions"], plant.keys) is not None, plant.name
        if plant.kind == "facts":  # of words in answers, tokens of ordinary texts show little (docs/benchmarks.md)
            assert rank_of(found.shown["tokens"], plant.keys) is not None, plant.name


def test_ordinary_fine_tunes_show_none_of_it(ground: Ground, chosen: list[Plant]) -> None:
    found: list[Found] = []
    for seed, texts in enumerate(nulls(ground.generic, 2)):
        found.append(found_in(ground, ground.trained(f"null-{seed}", texts, seed), ()))
    for one in found:
        for method in ("completions", "tokens", "divergent"):
            for plant in chosen:
                assert rank_of(one.shown[method], plant.keys) is None, (method, plant.name)


def test_the_base_beside_itself_is_silent_in_every_method(ground: Ground, tmp_path: Path) -> None:
    learned = ground.searched(None)
    assert {method.found for method in learned.methods} == {0}
    assert {method.largest for method in learned.methods} == {0.0}
