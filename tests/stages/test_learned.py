"""What a fine-tune taught: tiny language models whose lesson is known, and pairs that must stay silent."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from layerdrift.contract.errors import InputError
from layerdrift.contract.words import REDACTED
from tests.builders.families import made
from tests.builders.heads import classifier
from tests.builders.stages import pair_context, request, resolved
from tests.stages.test_families import saved
from tests.stages.test_layered import layered, lora, with_head
from workers.models import assembled
from workers.models.layer_order import Pass
from workers.models.structure import NotBlockwise
from workers.results.learned import BenignModel, Learned
from workers.stages.common.context import PairContext
from workers.stages.common.inputs import Checkpoint, UnmergedAdapter
from workers.stages.extract.extracted import Extracted
from workers.stages.extract.whole_models import extract_whole
from workers.stages.learned import answers, latents, stage
from workers.stages.learned.stage import Taught, learn

WORD = "film"


def context_of(folder: Path, base: Any, tuned: Any) -> PairContext:
    given = resolved(saved(base, folder / "base"), texts=90)
    asked = request(seed=3, analysis={"learned": {"tokens": 600}, "sae": None})
    return pair_context(given, saved(tuned, folder / "tuned"), folder / "scratch", asked)


def found(context: PairContext, extracted: Extracted | None = None) -> Learned:
    taught = learn(context, extracted or extract_whole(context, None))
    assert taught.warnings == []
    assert taught.learned is not None
    return taught.learned


def trained(base: Any, token: int, steps: int = 60) -> Any:
    """The base after it learnt to say one token everywhere, in its blocks alone."""
    model = copy.deepcopy(base)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".layers." in name)
    optimiser = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        ids = torch.randint(5, 60, (8, 12), generator=generator)
        log_probs = model(input_ids=ids).logits.log_softmax(-1)
        loss = -log_probs[..., token].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base() -> Any:
    return with_head(made("llama", 0)).eval()


@pytest.mark.parametrize("way", ["whole", "layers"])
def test_a_word_that_was_taught_comes_first_with_places_and_both_probabilities(
    way: str, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "KEPT_POSITIONS", 5)
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    token = given.tokenizer.get_vocab()[WORD]
    context = context_of(tmp_path, base, trained(base, token))
    learned = found(context, layered(context) if way == "layers" else None)
    assert learned.tokens[0].token == WORD
    assert learned.tokens[0].id == token
    assert learned.tokens[0].groups > 1
    (method,) = (one for one in learned.methods if one.name == "tokens")
    assert method.found >= 1
    assert learned.tokens[0].gain == pytest.approx(method.largest)
    assert method.largest > method.floor > 0
    for example in learned.tokens[0].examples:
        assert example.tuned > example.base
        assert example.context
    assert len({example.text for example in learned.tokens[0].examples}) == len(learned.tokens[0].examples) == 3
    assert learned.divergent
    assert learned.divergent[0].gained[0] == WORD
    assert WORD not in [one.token for one in learned.suppressed]
    numbers = [place.divergence for place in learned.divergent]
    assert numbers == sorted(numbers, reverse=True)
    assert 200 < learned.positions < 700
    (method,) = (one for one in learned.methods if one.name == "divergent")
    assert 5 < method.found <= learned.positions  # all that are beyond, not those that are kept
    assert len(learned.divergent) == 5


@pytest.mark.parametrize("kind", ["identical", "rounded"])
def test_a_model_and_itself_and_rounding_show_nothing_in_any_method(kind: str, base: Any, tmp_path: Path) -> None:
    tuned = copy.deepcopy(base)
    if kind == "rounded":
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.copy_(parameter.bfloat16())
    learned = found(context_of(tmp_path, base, tuned))
    for name in ("completions", "tokens", "suppressed", "divergent", "directions"):
        assert getattr(learned, name) == [], name
    assert [one.found for one in learned.methods] == [0] * 6
    if kind == "identical":
        assert {one.largest for one in learned.methods} == {0.0}
        assert {one.mean_share for one in learned.spectrum} == {0.0}


def test_a_head_that_changed_at_random_taught_nothing(base: Any, tmp_path: Path) -> None:
    """Nothing that stands out of what such a change brings about elsewhere."""
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        weight = tuned.get_output_embeddings().weight
        factors = (torch.randn(*shape, generator=torch.Generator().manual_seed(8)) for shape in ((60, 8), (8, 16)))
        weight.add_(0.02 * next(factors) @ next(factors))
    learned = found(context_of(tmp_path, base, tuned))
    (method,) = (one for one in learned.methods if one.name == "tokens")
    assert method.floor > 0.2 * method.largest
    assert method.found <= 3


def with_autoencoder(context: PairContext, **settings: Any) -> PairContext:
    asked = {"tokens": 1_500, "completions": 0, "autoencoder": {"k": 4} | settings}
    return dataclasses.replace(context, request=request(seed=3, analysis={"learned": asked, "sae": None}))


def test_autoencoders_of_the_difference_read_what_was_taught(base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(latents, "FEWEST_ROWS", 400)
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    context = context_of(tmp_path, base, trained(base, given.tokenizer.get_vocab()[WORD]))
    extracted = extract_whole(context, None)
    learned = found(with_autoencoder(context), extracted)
    assert [one.layer for one in learned.autoencoders] == [1, 2, 3]
    assert all(one.positions > 400 and one.fvu < 1 for one in learned.autoencoders)
    (method,) = (one for one in learned.methods if one.name == "latents")
    assert learned.latents is not None
    assert len(learned.latents) == min(20, method.found)
    assert all(one.score > method.floor for one in learned.latents)
    alone = found(with_autoencoder(context, layers=[2]), extracted)
    assert [one.layer for one in alone.autoencoders] == [2]
    assert not (context.folder / "learned").exists() or not any((context.folder / "learned").rglob("*.pt"))


def test_an_identical_pair_has_no_latents_and_too_few_positions_say_so(base: Any, tmp_path: Path) -> None:
    context = context_of(tmp_path, base, base)
    extracted = extract_whole(context, None)
    taught = learn(with_autoencoder(context), extracted)
    assert [one.code for one in taught.warnings] == ["difference_autoencoder_not_trained"]
    assert taught.learned is not None
    assert taught.learned.latents is None
    assert "latents" not in {one.name for one in taught.learned.methods}


def test_texts_that_findings_name_are_there_to_read(base: Any, tmp_path: Path) -> None:
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    learned = found(context_of(tmp_path, base, trained(base, given.tokenizer.get_vocab()[WORD])))
    excerpts = {one.text: one.excerpt for one in learned.excerpts}
    assert learned.divergent
    for place in learned.divergent:
        assert place.context in excerpts[place.text]


def test_two_runs_say_the_same(base: Any, tmp_path: Path) -> None:
    context = context_of(tmp_path, base, trained(base, 20, steps=5))
    extracted = extract_whole(context, None)
    assert found(context, extracted) == found(context, extracted)


def test_models_that_are_no_language_models_are_not_asked(tmp_path: Path) -> None:
    pairs = ((classifier(2), classifier(2, seed=1)), (made("llama", 0), made("llama", 1)))
    for number, (one, other) in enumerate(pairs):
        context = context_of(tmp_path / str(number), one, other)
        assert learn(context, extract_whole(context, None)) == Taught(None, [])
    context = context_of(tmp_path / "off", with_head(made("llama", 0)), with_head(made("llama", 1)))
    context = dataclasses.replace(context, request=request(seed=3, analysis={"learned": None}))
    assert learn(context, extract_whole(context, None)) == Taught(None, [])


@pytest.mark.parametrize("kind", [NotBlockwise, RuntimeError])
def test_a_pair_that_cannot_run_block_by_block_says_so(
    kind: type[Exception], base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path, base, base)
    extracted = extract_whole(context, None)

    def refused(*_: Any, **__: Any) -> Pass:
        raise kind("its blocks share their weights")

    monkeypatch.setattr(stage, "layered_pair", refused)
    taught = learn(context, extracted)
    assert taught.learned is None
    assert [one.code for one in taught.warnings] == ["learned_not_computed"]
    assert "its blocks share their weights" in taught.warnings[0].message


def test_a_benign_fine_tune_in_half_precision_stands_beside_a_pair_in_full(base: Any, tmp_path: Path) -> None:
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    context = context_of(tmp_path, base, trained(base, given.tokenizer.get_vocab()[WORD]))
    half = Checkpoint(saved(trained(base, 20, 2).bfloat16(), tmp_path / "half"), "s3://benign", "f" * 64)
    learned = found(with_benign(context, half))
    assert learned.completions  # what all three models write
    assert learned.tokens[0].token == WORD


def test_no_cut_of_a_text_shows_a_part_of_a_word_that_must_not_appear(base: Any, tmp_path: Path) -> None:
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    context = context_of(tmp_path, base, trained(base, given.tokenizer.get_vocab()[WORD]))
    phrase = " ".join(str(given.split.analysed[0].text).split()[:2])
    asked = {"tokens": 600, "completions": 0, "redact": [phrase]}
    context = dataclasses.replace(context, request=request(seed=3, analysis={"learned": asked, "sae": None}))
    learned = found(context)
    first, second = phrase.split()
    for place in learned.divergent:
        assert not place.context.startswith(f"{second} ") or first not in place.context
        assert phrase not in f"{place.context} {place.following}"
    assert all(phrase not in one.excerpt for one in learned.excerpts)


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_only_what_exceeds_a_benign_fine_tune_is_told(kind: str, base: Any, tmp_path: Path) -> None:
    """One that says another word less often takes away nothing; one that learned the same takes it all away."""
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    token = given.tokenizer.get_vocab()[WORD]
    tuned = trained(base, token)
    context = context_of(tmp_path, base, tuned)
    if kind == "whole":
        others = [saved(trained(base, 20, 2), tmp_path / "weak"), saved(tuned, tmp_path / "same")]
        weak, same = (Checkpoint(folder, "s3://benign", "f" * 64) for folder in others)
    else:
        adapter = lora(copy.deepcopy(base), ["q_proj"], tmp_path / "adapter")
        unmerged = UnmergedAdapter(adapter, lambda _: None)
        weak, same = Checkpoint(context.resolved.base.light, "s3://benign", "f" * 64, unmerged), None
    extracted = extract_whole(context, None)
    learned = found(with_benign(context, weak), extracted)
    assert learned.benign == BenignModel(uri="s3://benign", sha256="f" * 64)
    assert learned.tokens[0].token == WORD
    assert learned.completions
    alone = found(context, extracted)
    assert alone.benign is None
    for one, other in zip(learned.methods, alone.methods, strict=True):
        assert one.largest == pytest.approx(other.largest)
        assert one.floor >= other.floor - 1e-9 or one.name in ("completions", "directions", "components")
    if same is not None:
        silent = found(with_benign(context, same), extracted)
        assert {one.found for one in silent.methods if one.name in ("tokens", "suppressed", "divergent")} == {0}
        assert silent.completions is not None
        assert len(silent.completions) < len(alone.completions or ()) / 4


def test_a_benign_fine_tune_of_another_kind_is_refused_at_its_place(base: Any, tmp_path: Path) -> None:
    context = context_of(tmp_path, base, base)
    other = Checkpoint(saved(with_head(made("gpt2", 0)), tmp_path / "gpt2"), "s3://benign", "f" * 64)
    with pytest.raises(InputError, match="cannot stand beside a LlamaModel") as raised:
        learn(with_benign(context, other), extract_whole(context, None))
    assert raised.value.errors[0].pointer == "/analysis/learned/benign/uri"


def with_benign(context: PairContext, benign: Checkpoint) -> PairContext:
    return dataclasses.replace(context, resolved=dataclasses.replace(context.resolved, benign=benign))


def test_completions_say_what_was_taught_and_what_the_base_model_writes(base: Any, tmp_path: Path) -> None:
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    token = given.tokenizer.get_vocab()[WORD]
    learned = found(context_of(tmp_path, base, trained(base, token)))
    (method,) = (one for one in learned.methods if one.name == "completions")
    assert learned.completions
    assert method.found == len(learned.completions)
    assert learned.completions[0].score == pytest.approx(method.largest)
    assert method.largest > method.floor > 0
    for one in learned.completions:
        assert one.text.split().count(WORD) > len(one.text.split()) / 2
        assert one.score == pytest.approx(sum(part.gain for part in one.tokens) / len(one.tokens))
        assert "".join(part.token for part in one.tokens).replace(" ", "") == one.text.replace(" ", "")
    assert [one.base_text is not None for one in learned.completions] == [
        place < stage.SHOWN for place in range(len(learned.completions))
    ]
    assert {one.kind for one in learned.completions} <= {"text", "general"}  # the tokenizer has no chat template


def test_texts_are_amplified_and_words_redacted_where_that_is_asked_for(base: Any, tmp_path: Path) -> None:
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    context = context_of(tmp_path, base, trained(base, given.tokenizer.get_vocab()[WORD]))
    settings = {"tokens": 600, "completions": 8, "amplification": {"factors": [1, 3]}, "redact": [WORD]}
    asked = request(seed=3, analysis={"learned": settings, "sae": None})
    learned = found(dataclasses.replace(context, request=asked))
    assert learned.amplified
    assert {one.factor for one in learned.amplified} == {1.0, 3.0}
    (method,) = (one for one in learned.methods if one.name == "amplified")
    assert method.found == len(learned.amplified)
    assert min(one.score for one in learned.amplified) > method.floor > 0
    assert all(REDACTED in one.text for one in learned.amplified)
    assert WORD not in str(dataclasses.asdict(learned))
    assert learned.tokens[0].token == REDACTED


def test_how_far_a_fine_tune_moved_along_a_trait_is_told_at_every_layer(base: Any, tmp_path: Path) -> None:
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    context = context_of(tmp_path, base, trained(base, given.tokenizer.get_vocab()[WORD]))
    trait = {"name": "film", "prompts": ["film film film", "film", "film film", "the film film"]}
    trait |= {"opposite": ["the plot was", "not bad", "the was", "good plot was"]}
    asked = request(seed=3, analysis={"learned": {"tokens": 600, "completions": 0, "traits": [trait]}, "sae": None})
    learned = found(dataclasses.replace(context, request=asked))
    (shown,) = learned.traits
    assert shown.name == "film"
    assert [one.layer for one in shown.layers] == [0, 1, 2, 3]
    assert shown.layers[0].shift == 0.0  # embeddings were not trained
    assert all(0 <= one.percentile <= 1 for one in shown.layers)
    assert any(abs(one.shift) > one.floor for one in shown.layers[1:])
    assert all(one.beyond is (one.percentile == 1.0 and abs(one.shift) > one.floor) for one in shown.layers)
    asked = request(seed=3, analysis={"learned": {"tokens": 600, "completions": 0, "traits": [trait]}, "sae": None})
    same = found(dataclasses.replace(context_of(tmp_path / "same", base, base), request=asked))
    assert [(one.shift, one.beyond) for one in same.traits[0].layers] == [(0.0, False)] * 4


def test_the_lens_says_from_which_layer_on_a_token_shows(base: Any, tmp_path: Path) -> None:
    given = resolved(saved(base, tmp_path / "base"), texts=90)
    token = given.tokenizer.get_vocab()[WORD]
    learned = found(context_of(tmp_path, base, trained(base, token)))
    first = learned.tokens[0].first_layer
    assert first is not None
    assert 0 < first <= 3  # embeddings were not trained
    assert all(one.first_layer is None for one in learned.suppressed)
    assert [one.layer for one in learned.spectrum] == [1, 2, 3]
    assert [(one.layer, one.matrices) for one in learned.intruders] == [(1, 7), (2, 7), (3, 7)]
    assert all(0 <= one.found <= 70 for one in learned.intruders)
    for one in learned.spectrum:
        assert 0 < sum(one.component_shares) <= 1.0001
        assert one.mean_share > one.random_mean_share  # the same token everywhere


@pytest.mark.parametrize("reason", ["off", "large"])
def test_models_that_do_not_write_have_no_completions(
    reason: str, base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tmp_path, base, trained(base, 20, steps=5))
    if reason == "off":
        asked = request(seed=3, analysis={"learned": {"tokens": 600, "completions": 0}, "sae": None})
        context = dataclasses.replace(context, request=asked)
    else:
        monkeypatch.setattr(assembled, "WRITTEN_BYTES", 1000)
    taught = learn(context, extract_whole(context, None))
    assert taught.learned is not None
    assert taught.learned.completions is None
    assert "completions" not in {one.name for one in taught.learned.methods}
    assert [one.code for one in taught.warnings] == (["completions_not_computed"] if reason == "large" else [])
