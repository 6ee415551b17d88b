from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.builders.heads import causal_lm
from tests.builders.latents import TEXTS, side, stored
from tests.builders.models import HIDDEN, tiny_bert, tiny_tokenizer
from workers.analysis.matching import Fates
from workers.analysis.permutation import discoveries
from workers.analysis.sae import Normalisation, SaeStack
from workers.models.chats import TOKEN_ROLES
from workers.results.autoencoders import ChangedLatent
from workers.stages.compare.probes import LabelDirections
from workers.stages.extract.heldout_rows import HeldoutRows
from workers.stages.sae.findings import Dictionaries
from workers.stages.sae.latents import chosen_latents, evidence, leaning, promoted, role_shares, without_false_labels


def found_of(folder: Path, word: str) -> tuple[list[tuple[str, str, str]], list[float]]:
    """Where the latent of a word fires in the tuned model: contexts and activations."""
    rows, contexts, size = stored(folder)
    index, heldout = tiny_tokenizer(folder).get_vocab()[word], HeldoutRows(rows, contexts, [0])
    (one,) = without_false_labels(
        evidence(0, {"new": [index]}, torch.ones(size), side(size, 0), side(size, 1), heldout, None)
    )
    assert [example.activation for example in one.base] == [example.activation / 2 for example in one.tuned]
    return [(example.before, example.token, example.after) for example in one.tuned], [
        example.activation for example in one.tuned
    ]


def test_a_latent_is_shown_where_it_fires_once_in_each_text_with_the_words_around_it(tmp_path: Path) -> None:
    found, activations = found_of(tmp_path, "good")
    assert sorted(found) == [("the", "good", "film"), ("the film was", "good", "and the plot was bad and the story …")]
    assert activations == [2.0, 2.0]
    others = [("", "bad", ""), ("the film was good and the plot was", "bad", "and the story was dull")]
    assert sorted(found_of(tmp_path, "bad")[0]) == others
    assert len(found_of(tmp_path, "the")[0]) == 2  # of four places in two texts


def test_rows_taken_away_at_the_front_leave_the_others_with_their_own_words(tmp_path: Path) -> None:
    rows, contexts, _ = stored(tmp_path)
    rest = contexts.without_first(5)
    assert rest.texts(rows.rows).tolist() == contexts.texts(rows.rows)[5:].tolist()
    for row in range(rows.rows - 5):
        assert rest.example(row, 1.0) == contexts.example(row + 5, 1.0)


def test_what_a_latent_leans_to_and_points_to(tmp_path: Path) -> None:
    """“dull” stands in the text labelled no alone, and the direction for no is its own; two texts prove nothing."""
    rows, contexts, size = stored(tmp_path)
    index = tiny_tokenizer(tmp_path).get_vocab()["dull"]
    vectors = torch.stack([-torch.eye(size)[index], torch.eye(size)[index]])[None]
    (candidate,) = evidence(
        0,
        {"lost": [index]},
        torch.zeros(size),
        side(size, 0),
        side(size, 1),
        HeldoutRows(rows, contexts, [0]),
        LabelDirections(["yes", "no"], vectors, torch.zeros(1, 99, 2, size)),
    )
    assert candidate.leaning is not None
    lean, p = candidate.leaning
    assert (lean.label, lean.share) == ("no", 1.0)
    assert lean.expected == pytest.approx(len(TEXTS[2].split()) / (len(TEXTS[2].split()) + 3))
    assert p > 0.4
    assert candidate.pointing is not None
    direction, p = candidate.pointing
    assert (direction.label, direction.cosine, p) == ("no", 1.0, 0.01)
    (one,) = without_false_labels([candidate])
    assert (one.label_association, one.probe) == (None, direction)


def test_labels_that_have_nothing_to_do_with_a_latent_are_named_of_few_and_those_that_have_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = torch.arange(100).repeat_interleave(5)
    classes = torch.randint(2, (100,), generator=generator)
    labels: list[str | None] = ["ab"[int(classes[text])] for text in texts.tolist()]
    by_chance, real = [], []
    for seed in range(100):
        activations = torch.rand(500, generator=generator) * (torch.rand(500, generator=generator) < 0.1)
        unrelated = leaning(activations, texts, texts, labels, seed)
        related = leaning(activations * (1 + 4.0 * classes[texts]), texts, texts, labels, seed)
        assert unrelated is not None
        assert related is not None
        by_chance.append(unrelated.p)
        real.append(related.p)
    assert sum(p <= 0.05 for p in by_chance) <= 11
    assert sum(discoveries(by_chance)) <= 2
    assert sum(discoveries(real)) >= 95
    assert sum(discoveries(by_chance + real)[:100]) <= 12


def test_a_direction_promotes_the_tokens_whose_embeddings_it_has(tmp_path: Path) -> None:
    """A new latent is read off the tuned dictionary of the warm start, a lost one off the base's."""
    model, tokenizer = causal_lm(), tiny_tokenizer(tmp_path)
    embeddings = torch.nn.functional.normalize(model.get_output_embeddings().weight.detach(), dim=1)
    good, bad = (tokenizer.get_vocab()[word] for word in ("good", "bad"))
    ones = torch.ones(2)
    base, warmed = (
        SaeStack.initial(Normalisation(ones, torch.zeros(2, HIDDEN), ones), 3, torch.Generator()) for _ in range(2)
    )
    base.W_dec[0, 1], warmed.W_dec[1, 2] = embeddings[bad], embeddings[good]
    dictionaries = Dictionaries([0], base, torch.zeros(2, HIDDEN), warmed, [[]], [[]], [torch.zeros(3, 2)])
    latent = ChangedLatent(layer=0, index=1, fate="lost", cosine=0, base_rate=0.1, tuned_rate=0, base=[], tuned=[])
    new = replace(latent, index=2, fate="new")
    found = promoted([latent, new], dictionaries, model, tokenizer)
    assert found is not None
    weights = model.get_output_embeddings().weight.detach()
    for one, word, row in zip(found, ("bad", "good"), (embeddings[bad], embeddings[good]), strict=True):
        best = (weights @ row).argsort(descending=True)[:5].tolist()
        assert one == [tokenizer.decode([token]) for token in best]
        assert word in one
    assert promoted([latent], dictionaries, tiny_bert(), tokenizer) is None


@pytest.mark.parametrize(
    ("activations", "labels"), [([1.0, 1.0], ["a", None]), ([0.0, 0.0], ["a", "b"]), ([1.0], [None])]
)
def test_without_two_labels_or_any_activation_nothing_leans(activations: list[float], labels: list[str | None]) -> None:
    assert leaning(torch.tensor(activations), torch.arange(len(labels)), torch.arange(len(labels)), labels, 0) is None


def fates(**members: list[int]) -> Fates:
    masks = {name: torch.zeros(8, dtype=torch.bool) for name in ("retained", "shifted", "lost", "new", "alive")}
    for name, indices in members.items():
        masks[name][indices] = True
    return Fates(**masks, cosines=torch.linspace(0.9, 0.5, 8))


def test_only_fates_beyond_the_floor_are_shown_the_most_changed_first() -> None:
    rates = torch.arange(8) / 100
    found = fates(new=[0, 1, 2, 3, 4, 5], shifted=[0, 1, 3, 4, 6], lost=[6, 7, 1, 2])
    floor = fates(new=[], shifted=[], lost=[0, 1])
    assert chosen_latents(found, floor, rates, rates) == {"new": [5, 4, 3, 2], "shifted": [6, 1, 0]}
    assert chosen_latents(found, found, rates, rates) == {}
    both = fates(new=[0, 1, 2, 3, 4, 5], shifted=[1, 2, 3, 4, 6])
    assert chosen_latents(both, fates(), rates, rates) == {"new": [5, 4, 3, 2], "shifted": [6, 1]}


def test_activation_is_shared_out_by_the_roles_of_its_tokens() -> None:
    user, assistant = TOKEN_ROLES.index("user"), TOKEN_ROLES.index("assistant")
    roles = torch.tensor([user, user, user, assistant])
    found = role_shares(torch.tensor([1.0, 0.0, 0.0, 3.0]), roles)
    assert {name: (one.share, one.expected) for name, one in found.items()} == {
        "user": (0.25, 0.75),
        "assistant": (0.75, 0.25),
    }
    assert role_shares(torch.zeros(4), roles) == {}
    assert role_shares(torch.ones(4), None) == {}
