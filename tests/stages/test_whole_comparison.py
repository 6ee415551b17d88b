"""The stages that need no server, on tiny real models: known answers of the whole comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from tests.builders.checkpoints import KeptTrainings
from tests.builders.models import BLOCKS, HIDDEN, add_noise, save_model, tiny_bert
from tests.builders.stages import (
    compared,
    extracted_pair,
    fine_tuned,
    labelled,
    pair_context,
    request,
    resolved,
    rows_for_saes,
    stage_context,
    tuning,
)
from tests.builders.texts import make_texts
from workers.analysis.similarity import SiteSimilarity, cross_site_cka
from workers.analysis.zones import fit_zones
from workers.results.autoencoders import Match, Turnover
from workers.results.similarity import Zone
from workers.scratch import ActivationStore
from workers.stages.common.inputs import Split
from workers.stages.compare.stage import compare, recommended
from workers.stages.extract.stage import extract
from workers.stages.resolve.splitting import distinct, split_rows
from workers.stages.sae.stage import MIN_FLOOR_SHARE, train_saes, withheld


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tiny_bert(0), tmp_path / "base")


def test_a_model_and_itself_show_nothing(base: Path, tmp_path: Path) -> None:
    extracted, found = compared(base, base, tmp_path / "scratch")
    assert found.drift == [0.0] * (BLOCKS + 1)
    for layer in found.similarity:
        assert layer["token"].cka.value == 1.0
        assert layer["mean"].cka.value == 1.0
        assert {view.relative_l2.value for view in layer.values()} == {0.0}
    assert [(zone.name, zone.first, zone.last) for zone in found.zones] == [("general", 0, BLOCKS)]
    intervals = {(cka.low, cka.high) for layer in found.similarity if (cka := layer["token"].cka)}
    assert intervals == {(1.0, 1.0)}
    assert found.zones[0].support == 1.0
    assert [warning.code for warning in found.warnings] == ["identical_weights", "identical_bodies"]
    assert "nothing to review below their heads" in found.recommendation.evidence
    assert {value for text in extracted.tokens.texts for row in text.drift for value in row} == {0.0}
    assert {part.relative_frobenius for layer in extracted.weights for part in layer.values()} == {0.0}


@pytest.mark.parametrize("block", [1, 2, 3])
def test_noise_in_one_block_shows_from_there_on_and_nowhere_before(base: Path, tmp_path: Path, block: int) -> None:
    model = tiny_bert(0)
    add_noise(model, block)
    extracted, found = compared(base, save_model(model, tmp_path / "noised"), tmp_path / "scratch")
    assert found.drift[:block] == [0.0] * block
    assert all(value > 0.01 for value in found.drift[block:])
    for text in extracted.tokens.texts:
        assert all(value == 0.0 for layer in text.drift[:block] for value in layer)
        assert all(max(layer) > 0.01 for layer in text.drift[block:])
    moved = [any((part.relative_frobenius or 0) > 0 for part in layer.values()) for layer in extracted.weights]
    assert moved == [index == block for index in range(BLOCKS + 1)]


def test_unrelated_models_share_no_directions_and_little_else(base: Path, tmp_path: Path) -> None:
    """Both see the same tokens, so low layers stay alike; a fine-tune that keeps a layer is far above all of this."""
    extracted, found = compared(base, save_model(tiny_bert(7), tmp_path / "other"), tmp_path / "scratch")
    cosines = [layer["token"].cosine_centred.value for layer in found.similarity]
    assert all(value is not None and abs(value) < 0.3 for value in cosines)
    assert found.drift[0] > 0.3
    assert found.drift[-1] > 0.8
    sample, other = extracted.token_sample
    shuffled = other[:, torch.randperm(other.shape[1], generator=torch.Generator().manual_seed(0))]
    independent = cross_site_cka(sample, shuffled).diagonal()
    assert all(abs(float(value)) < 0.05 for value in independent)


def test_the_cls_embedding_never_varies_and_is_marked_so(base: Path, tmp_path: Path) -> None:
    other = save_model(tiny_bert(7), tmp_path / "other")
    _, found = compared(base, other, tmp_path / "scratch")
    first = found.similarity[0]["cls"]
    assert (first.cka.value, first.cka.undefined) == (None, "the rows have no variance here")
    assert found.similarity[1]["cls"].cka.value is not None


def test_real_tokens_are_counted_once_and_special_ones_never(base: Path, tmp_path: Path) -> None:
    extracted, _ = compared(base, base, tmp_path / "scratch")
    words = sum(len(row.text.split()) for row in resolved(base).split.analysed)
    assert extracted.views["token"].rows == words
    assert extracted.views["cls"].rows == extracted.views["mean"].rows == 120


def test_activations_that_are_not_finite_name_the_model_and_the_layer(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    norm = model.encoder.layer[1].get_submodule("output.LayerNorm")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.fill_(3e38)
    with pytest.raises(InputError, match="tuned model are NaN or infinite at layer 2") as caught:
        compared(base, save_model(model, tmp_path / "broken"), tmp_path / "scratch")
    assert caught.value.errors[0].pointer == "/tuned/uri"


def test_every_number_has_an_interval_around_it(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    add_noise(model, 1)
    _, found = compared(base, save_model(model, tmp_path / "noised"), tmp_path / "scratch")
    for layer in found.similarity[1:]:
        for view in layer.values():
            for measured in vars(view).values():
                if measured is None:
                    continue
                assert measured.value is not None
                assert measured.low is not None
                assert measured.high is not None
                assert measured.low < measured.high
                assert measured.low - 0.05 < measured.value < measured.high + 0.05
    assert all(zone.support is not None and 0 <= zone.support <= 1 for zone in found.zones)


def test_a_scratch_too_small_for_the_groups_costs_the_intervals_and_says_so(base: Path, tmp_path: Path) -> None:
    given = resolved(base)
    extracted = extracted_pair(given, base, tmp_path / "s", scratch_bytes=2**19)
    assert [warning.code for warning in extracted.warnings] == ["no_intervals"]
    found = compare(pair_context(given, base, tmp_path), extracted)
    assert found.similarity[1]["token"].cka.value == 1.0
    assert found.similarity[1]["token"].cka.low is None
    assert found.zones[0].support is None


def test_the_texts_of_the_request_are_the_ones_shown(base: Path, tmp_path: Path) -> None:
    asked = request(analysis={"sae": None, "texts": ["the good film", "bad"]})
    extracted = extracted_pair(resolved(base), base, tmp_path / "scratch", asked)
    assert extracted.tokens.source == "request"
    assert [text.tokens for text in extracted.tokens.texts] == [
        ["[CLS]", "the", "good", "film", "[SEP]"],
        ["[CLS]", "bad", "[SEP]"],
    ]
    assert [len(text.drift) for text in extracted.tokens.texts] == [BLOCKS + 1] * 2


@pytest.mark.parametrize("spare", [0, 5, 600])
def test_autoencoders_of_a_model_and_itself_transfer_without_loss(base: Path, tmp_path: Path, spare: int) -> None:
    asked = request(analysis={"sae": {"tokens": 40_000, "width": 4, "k": 8}})
    rows = rows_for_saes(resolved(base, texts=400, spare=spare), base, tmp_path / "scratch", asked)
    assert rows.from_analysed_rows is (spare < 600)
    trained = train_saes(stage_context(tmp_path, asked), rows, None)
    assert len(trained.comparisons) == BLOCKS + 1
    for layer in trained.comparisons:
        assert layer.transfer_excess == 0.0
        assert layer.warm_start is not None
        assert layer.warm_start.tuned == layer.warm_start.floor
        warm = layer.warm_start
        told = 0 if layer.withheld is None else None
        assert (warm.new_excess, warm.lost_excess, warm.shifted_excess) == (told, told, told)
        assert layer.warm_start.floor.retained > 0
        assert layer.match is not None
        assert layer.match.matched_share == layer.match.floor_share
        assert layer.match.unmatched_excess == told
        assert (layer.withheld is None) is (layer.match.floor_share >= MIN_FLOOR_SHARE)
        assert 0 < layer.base.fvu < 0.9
        assert layer.base.l0 == pytest.approx(8, rel=0.3)
    assert trained.latents == []
    assert "few_sae_tokens" in {warning.code for warning in trained.warnings}


def test_what_is_trained_of_the_base_model_serves_every_tuned_one_of_the_same_texts(base: Path, tmp_path: Path) -> None:
    """With the numbers that each analysis has alone."""
    asked = request(analysis={"sae": {"tokens": 20_000, "width": 4, "k": 8, "random_weights": True}})
    given, kept, found = resolved(base, texts=400, spare=600), KeptTrainings(), {}
    for number in (1, 2):
        model = tiny_bert()
        add_noise(model, block=number)
        tuned = save_model(model, tmp_path / f"tuned-{number}")
        rows = rows_for_saes(given, tuned, tmp_path / f"rows-{number}", asked)
        context = stage_context(tmp_path, asked)
        alone = train_saes(context, rows, None)
        shared = train_saes(replace(context, finished=kept), rows, None)
        assert shared.comparisons == alone.comparisons
        assert shared.controls == alone.controls
        assert shared.runs == alone.runs
        found[number] = shared
    assert len(kept.trainings) == len(set(kept.found)) == 3  # both sets of the base model, the floor, random weights
    assert [one.base for one in found[1].comparisons] == [one.base for one in found[2].comparisons]
    assert [one.tuned for one in found[1].comparisons] != [one.tuned for one in found[2].comparisons]


def test_autoencoders_that_are_not_saved_are_not_kept_for_others(base: Path, tmp_path: Path) -> None:
    sae = {"tokens": 20_000, "width": 4, "k": 8, "comparisons": ["transfer"], "save": False}
    asked, kept = request(analysis={"sae": sae}), KeptTrainings()
    rows = rows_for_saes(resolved(base, texts=400, spare=600), base, tmp_path / "scratch", asked)
    train_saes(replace(stage_context(tmp_path, asked), finished=kept), rows, None)
    assert not kept.trainings


@pytest.mark.parametrize(
    ("matched", "retained", "words"),
    [
        (0.05, 90, "5.0% of the base model's latents reappear"),
        (0.1, 90, None),
        (None, 49, "49% of the base model's latents survive"),
        (None, 50, None),
    ],
)
def test_what_rests_on_single_latents_is_withheld_where_they_are_not_identified(
    matched: float | None, retained: int, words: str | None
) -> None:
    match = None
    if matched is not None:
        match = Match(matched_share=0.5, floor_share=matched, mean_cosine=0, floor_mean_cosine=0)
    found = withheld(match, Turnover(retained=retained, shifted=10, lost=90 - retained, new=0))
    assert (found is None) if words is None else (found is not None and words in found)


def test_a_shift_and_a_stretch_of_a_layer_are_no_lost_feature(base: Path, tmp_path: Path) -> None:
    asked = request(analysis={"sae": {"tokens": 20_000, "width": 4, "k": 8, "comparisons": ["transfer"]}})
    rows = rows_for_saes(resolved(base, texts=400, spare=600), base, tmp_path / "scratch", asked)
    stores = []
    for name, store in (("train", rows.train), ("heldout", rows.heldout)):
        moved = ActivationStore(tmp_path / name, max_rows=store.rows)
        for shard in store.shards():
            own = shard.float()
            own[BLOCKS + 1 :] = 3 * own[BLOCKS + 1 :] + 5
            moved.add(own)
        stores.append(moved)
    rows = replace(rows, train=stores[0], heldout=stores[1])
    for layer in train_saes(stage_context(tmp_path, asked), rows, None).comparisons:
        assert layer.transfer_excess == pytest.approx(0.0, abs=0.02)


def test_changed_latents_come_with_tokens_of_the_analysed_texts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noised block's layer has latents beyond the floor; each example is a place in a text that has its label.

    Of so few tokens few latents are identified, which is not what this is about.
    """
    monkeypatch.setattr("workers.stages.sae.stage.MIN_FLOOR_SHARE", 0.0)
    asked = request(analysis={"sae": {"tokens": 60_000, "width": 4, "k": 8}})
    given = resolved(base, texts=400, spare=600)
    model = tiny_bert()
    add_noise(model, block=2)
    noised = save_model(model, tmp_path / "noised")
    context = pair_context(given, noised, tmp_path / "scratch", asked)
    extracted = extract(context, None)
    found = compare(context, extracted)
    assert found.probed is not None
    rows = rows_for_saes(given, noised, tmp_path / "scratch", asked, extracted)
    trained = train_saes(stage_context(tmp_path, asked), rows, found.probed.directions)
    assert {latent.layer for latent in trained.latents} <= set(range(2, BLOCKS + 1))
    assert trained.latents
    labels = {row.text: row.label for row in given.split.analysed}
    for latent in trained.latents:
        for example in [*latent.base, *latent.tuned]:
            words = f"{example.before} {example.token} {example.after}".replace("…", "").strip()
            assert example.label in {label for text, label in labels.items() if words in text}


def test_a_crosscoder_tells_what_each_model_alone_has(base: Path, tmp_path: Path) -> None:
    """Beside the floor nothing of a model and itself; of a model with a noised block, from that block on at most."""
    asked = request(analysis={"sae": {"tokens": 40_000, "width": 4, "k": 8, "comparisons": ["crosscoder"]}})
    model = tiny_bert()
    add_noise(model, block=2)
    for tuned, unmoved in ((base, BLOCKS + 1), (save_model(model, tmp_path / "noised"), 2)):
        rows = rows_for_saes(resolved(base, texts=400, spare=600), tuned, tmp_path / tuned.name, asked)
        trained = train_saes(stage_context(tmp_path, asked), rows, None)
        assert [run.name for run in trained.runs] == ["training", "crosscoder"]
        assert trained.runs[1].autoencoders[BLOCKS : BLOCKS + 2] == [f"pair/layer-{BLOCKS:02d}", "base-twice/layer-00"]
        assert trained.crosscoders is not None
        assert len(trained.crosscoders) == BLOCKS + 1
        for index, found in enumerate(trained.crosscoders):
            assert 0 < found.base_fvu < 0.9
            assert found.l0 == pytest.approx(8, rel=0.3)
            assert found.pair.shared > 0
            if index < unmoved:
                assert found.base_fvu == pytest.approx(found.tuned_fvu, rel=0.08)
                assert found.pair == found.floor
                assert (found.tuned_only_excess, found.base_only_excess) == (0, 0)
            else:
                assert found.pair != found.floor


def test_comparisons_that_are_not_asked_for_are_not_trained(base: Path, tmp_path: Path) -> None:
    asked = request(analysis={"sae": {"tokens": 20_000, "width": 4, "k": 8, "comparisons": ["transfer", "transfer"]}})
    assert asked.analysis.sae is not None
    assert asked.analysis.sae.comparisons == ["transfer"]
    rows = rows_for_saes(resolved(base, texts=400, spare=600), base, tmp_path / "scratch", asked)
    trained = train_saes(stage_context(tmp_path, asked), rows, None)
    assert trained.crosscoders is None
    for layer in trained.comparisons:
        assert layer.warm_start is None
        assert layer.match is None
        assert layer.base == layer.tuned


def test_layers_that_are_chosen_alone_get_autoencoders(base: Path, tmp_path: Path) -> None:
    """What is said of a layer does not depend on which others are chosen."""
    sae = {"tokens": 20_000, "width": 4, "k": 8, "random_weights": True, "comparisons": ["transfer", "match"]}
    given = resolved(base, texts=400, spare=600)
    found = {}
    for name, layers in (("all", None), ("last", [BLOCKS])):
        asked = request(analysis={"sae": {**sae, "layers": layers}})
        rows = rows_for_saes(given, base, tmp_path / name, asked)
        assert rows.train.rows
        found[name] = train_saes(stage_context(tmp_path / name, asked), rows, None)
    assert found["all"].layers == list(range(BLOCKS + 1))
    assert found["last"].layers == found["last"].dictionaries.layers == [BLOCKS]
    (last,), every = found["last"].comparisons, found["all"].comparisons
    assert len(found["last"].controls or []) == 1
    assert last.base.fvu == pytest.approx(every[BLOCKS].base.fvu, rel=0.05)
    assert {name for run in found["last"].runs for name in run.autoencoders} == {
        f"{side}/layer-{BLOCKS:02d}" for side in ("base", "tuned", "base-again", "random")
    }


@pytest.mark.parametrize(("width", "told"), [(16, True), (2, False)])
def test_few_training_tokens_for_each_latent_are_told(width: int, told: bool, base: Path, tmp_path: Path) -> None:
    asked = request(
        analysis={"sae": {"tokens": 10_000, "width": width, "k": 8, "layers": [1], "comparisons": ["transfer"]}}
    )
    rows = rows_for_saes(resolved(base, texts=400, spare=600), base, tmp_path / "scratch", asked)
    trained = train_saes(stage_context(tmp_path, asked), rows, None)
    assert ("few_tokens_per_latent" in {warning.code for warning in trained.warnings}) is told


def test_a_layer_that_the_model_does_not_have_is_refused(base: Path, tmp_path: Path) -> None:
    asked = request(analysis={"sae": {"tokens": 20_000, "layers": [0, BLOCKS + 1]}})
    with pytest.raises(InputError, match=f"there is no layer {BLOCKS + 1}") as raised:
        extracted_pair(resolved(base), base, tmp_path / "scratch", asked)
    assert raised.value.errors[0].pointer == "/analysis/sae/layers"


@pytest.mark.parametrize("spare", [0, 600])
def test_a_model_that_was_never_trained_is_the_control(tmp_path: Path, spare: int) -> None:
    """Its rows are others than the base model's, at the same tokens, and the same for the same seed."""
    sae = {"tokens": 20_000, "width": 4, "k": 8, "comparisons": ["transfer"]}
    own = save_model(tiny_bert(5), tmp_path / "own")
    given = resolved(own, texts=400, spare=spare)
    asked = request(analysis={"sae": {**sae, "random_weights": True}})
    made = []
    for folder in ("one", "other"):
        rows = rows_for_saes(given, own, tmp_path / folder, asked)
        assert rows.control is not None
        assert rows.control.train.rows == rows.train.rows
        assert rows.control.heldout.rows == rows.heldout.rows
        random, pair = (torch.cat(list(store.shards()), 1) for store in (rows.control.heldout, rows.heldout))
        assert not torch.allclose(random, pair[: BLOCKS + 1], atol=0.1)
        trained = train_saes(stage_context(tmp_path, asked), rows, None)
        made.append((trained.comparisons, trained.controls))
    assert made[0] == made[1]
    without = request(analysis={"sae": sae})
    plain_rows = rows_for_saes(given, own, tmp_path / "plain", without)
    layers, controls = made[0]
    plain = train_saes(stage_context(tmp_path, without), plain_rows, None)
    assert plain.controls is None
    assert plain.comparisons == layers
    assert controls is not None
    for layer, control in zip(layers, controls, strict=True):
        assert control.fvu not in (layer.base.fvu, 0.0)
        assert sum(control.density) == 4 * HIDDEN


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize(("spare", "scratch_bytes"), [(0, 2**20), (600, 2**20), (5500, 2**20), (5500, 2**25)])
def test_a_job_stays_within_its_scratch(
    base: Path, tmp_path: Path, spare: int, scratch_bytes: int, control: bool
) -> None:
    asked = request(analysis={"sae": {"tokens": 110_000, "width": 4, "k": 8, "random_weights": control}})
    folder = tmp_path / "scratch"
    given = resolved(base, texts=400, spare=spare)
    rows = rows_for_saes(given, base, folder, asked, scratch_bytes=scratch_bytes)
    rows.train.flush()
    rows.heldout.flush()
    assert (rows.control is not None) is control
    if rows.control is not None:
        rows.control.train.flush()
        rows.control.heldout.flush()
    on_disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0 < on_disk <= scratch_bytes


def test_a_fine_tune_learns_and_is_the_same_for_the_same_seed(base: Path, tmp_path: Path) -> None:
    given = resolved(base, texts=200, train=400)
    one, other = (fine_tuned(tuning(), given, tmp_path / name) for name in ("one", "other"))
    assert one.checkpoint.fingerprint == other.checkpoint.fingerprint
    assert one.run == other.run
    assert (one.run.steps, one.run.kept_step) == (100, 100)


@pytest.mark.parametrize(("method", "freeze_first", "unmoved"), [("head", 0, 4), ("full", 2, 3), ("full", 0, 0)])
def test_what_is_frozen_does_not_drift(
    base: Path, tmp_path: Path, method: str, freeze_first: int, unmoved: int
) -> None:
    given = resolved(base, texts=60, train=64)
    asked = tuning(method=method, freeze_first=freeze_first, epochs=1)
    tuned = fine_tuned(asked, given, tmp_path / "tuned")
    context = pair_context(given, tuned.checkpoint, tmp_path / "scratch", asked)
    extracted = extract(context, tuned)
    found = compare(context, extracted)
    moved = [layer["token"].relative_l2.value for layer in found.similarity]
    assert ("identical_bodies" in {warning.code for warning in found.warnings}) is (method == "head")
    assert "identical_models" not in {warning.code for warning in found.warnings}
    assert [value == 0 for value in moved] == [index < unmoved for index in range(BLOCKS + 1)]


def test_a_diverging_fine_tune_says_so(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    with torch.no_grad():
        model.embeddings.LayerNorm.weight.fill_(1e38)
    broken = save_model(model, tmp_path / "broken")
    with pytest.raises(InputError, match="smaller learning rate"):
        fine_tuned(tuning(), resolved(broken, texts=60, train=64), tmp_path / "tuned")


def test_rows_are_dealt_out_once_each_by_the_seed() -> None:
    rows = labelled(300)
    numbered = [Row(f"{index} {row.text}", row.label) for index, row in enumerate(rows)]
    asked = tuning(train_examples=100).model_copy(
        update={"dataset": request().dataset.model_copy(update={"max_examples": 50})}
    )
    split = split_rows(numbered, asked)
    assert (len(split.analysed), len(split.train), len(split.held_out), len(split.spare)) == (50, 100, 50, 100)
    assert sorted([*split.analysed, *split.train, *split.held_out, *split.spare]) == sorted(numbered)
    assert split_rows(numbered, asked) == split
    assert split_rows(numbered, asked.model_copy(update={"seed": 1})) != split


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        (labelled(19), request(), "19 usable rows; at least 20"),
        ([], request(), "0 usable rows"),
        (labelled(39), tuning(), "39 usable rows; at least 40"),
        (labelled(100), tuning(train_examples=90), "minus 30 analysed ones leave 70"),
        ([Row(text, "same") for text in make_texts(60)], tuning(), "all training rows have the label 'same'"),
        ([*labelled(60), Row("text", "")], tuning(), "empty label"),
    ],
)
def test_rows_that_cannot_serve_are_refused(rows: list[Row], asked: AnalysisRequest, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_rows(rows, asked)


CURVES: dict[str, tuple[list[float], int, str]] = {
    "a general zone at the bottom": ([0.0, 0.01, 0.02, 0.6, 0.7], 2, "first 2 of 4 blocks"),
    "a zone whose last layer moved": ([0, 0.01, 0.02, 0.05, 0.09, 0.19, 0.6, 0.9, 0.95], 4, "first 4 of 8 blocks"),
    "all moved": ([0.5, 0.6, 0.7, 0.8], 0, "Every block at the bottom drifted"),
    "only the embeddings kept": ([0.0, 0.7, 0.7, 0.8], 0, "Every block at the bottom drifted"),
    "little moved anywhere": ([0.01, 0.02, 0.01, 0.03], 0, "does not separate the blocks"),
}


@pytest.mark.parametrize("case", CURVES)
def test_advice_rests_on_layers_that_did_not_move(case: str) -> None:
    drift, freeze_first, words = CURVES[case]
    zones = [Zone(name=zone.name, first=zone.first, last=zone.last, level=zone.level) for zone in fit_zones(drift)]
    sites = [SiteSimilarity(1.0, 1.0, 2 * value, 1 - value) for value in drift]
    advice = recommended(zones, sites, drift, identical=False)
    assert (advice.freeze_first, advice.basis) == (freeze_first, "predicted")
    assert words in advice.evidence


def test_a_text_that_stands_twice_is_never_on_both_sides() -> None:
    rows = [Row(text, str(index % 2)) for index, text in enumerate(["one", " one", "two", "", "one", "three", " "])]
    usable, warnings = distinct(rows)
    assert usable == [rows[0], rows[2], rows[5]]
    assert [(warning.code, warning.message.split(" rows")[0]) for warning in warnings] == [
        ("blank_texts", "2 of 7"),
        ("repeated_texts", "2 of 7"),
    ]
    assert distinct(usable) == (usable, [])


def test_a_pair_is_the_same_where_both_of_its_texts_are() -> None:
    rows = [Row("a", "1", pair) for pair in ("x", "y", " x", "", "  ")] + [Row("", "1", "x"), Row("b", "1", "x")]
    usable, warnings = distinct(rows)
    assert usable == [rows[0], rows[1], rows[6]]
    assert [(warning.code, warning.message) for warning in warnings] == [
        ("blank_texts", "3 of 7 rows have a blank text or a blank second text and were skipped"),
        ("repeated_texts", "1 of 7 rows repeat the pair of an earlier row and were skipped"),
    ]


def test_texts_that_were_not_reached_are_said(base: Path, tmp_path: Path) -> None:
    asked = request(analysis={"sae": None, "max_tokens": 400})
    extracted = extracted_pair(resolved(base), base, tmp_path / "s", asked)
    assert 400 <= extracted.views["token"].rows < 420
    left = 120 - extracted.views["mean"].rows
    assert [warning.message.split(" texts")[0] for warning in extracted.warnings] == [str(left)]


def test_texts_without_real_tokens_are_refused(base: Path, tmp_path: Path) -> None:
    empty = replace(resolved(base), split=Split([Row("\u200b", None)] * 30, [], []))
    with pytest.raises(InputError, match="have 0 tokens besides special ones"):
        extracted_pair(empty, base, tmp_path / "s")
