"""The stages that need no server, on tiny real models: known answers of the whole comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from layerdrift.backends.tables import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import AnalysisRequest
from tests.conftest import BLOCKS, add_noise, make_texts, save_model, tiny_bert
from workers.stages.compare import Compared, compare, recommended
from workers.stages.extract import Extracted, extract
from workers.stages.finetune import finetune
from workers.stages.resolve import Checkpoint, Resolved, Split, deal
from workers.stages.sae import train_saes

SCRATCH_BYTES = 2**28


def request(**changes: Any) -> AnalysisRequest:
    body: dict[str, Any] = {
        "base": {"uri": "file:///base"},
        "tuned": {"uri": "file:///tuned"},
        "dataset": {"uri": "file:///data.csv"},
        "analysis": {"sae": None},
    }
    return AnalysisRequest.model_validate(body | changes)


def tick(fraction: float, detail: str = "") -> None:
    assert 0 <= fraction <= 1


def labelled(count: int, seed: int = 0) -> list[Row]:
    """Texts whose label is whether they praise."""
    praise = {"good", "great", "bright"}
    return [Row(text, "yes" if praise & set(text.split()) else "no") for text in make_texts(count, seed)]


def resolved(base: Path, texts: int = 120, spare: int = 0, train: int = 0) -> Resolved:
    rows = labelled(texts + spare + train)
    split = Split(rows[:texts], rows[texts : texts + train], rows[texts + train :])
    return Resolved(Checkpoint(base, "file:///base", "0" * 64), None, split, len(rows), "0" * 64, [])


def compared(base: Path, tuned: Path, folder: Path) -> tuple[Extracted, Compared]:
    extracted = extract(
        request(), resolved(base), Checkpoint(tuned, "file:///tuned", "1" * 64), folder, SCRATCH_BYTES, tick
    )
    return extracted, compare(extracted)


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
    assert [warning.code for warning in found.warnings] == ["identical_models"]
    assert found.recommendation.evidence == "The models are identical: there is nothing to review."
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
    moved = [any(part.relative_frobenius > 0 for part in layer.values()) for layer in extracted.weights]
    assert moved == [index == block for index in range(BLOCKS + 1)]


def test_unrelated_models_are_near_the_independent_level_at_every_layer(base: Path, tmp_path: Path) -> None:
    _, found = compared(base, save_model(tiny_bert(7), tmp_path / "other"), tmp_path / "scratch")
    itself = 1.0
    assert all(drift > 0.3 for drift in found.drift)
    assert all((layer["token"].cosine_centred.value or 0) < 0.3 < itself for layer in found.similarity)


def test_the_cls_embedding_never_varies_and_is_marked_so(base: Path, tmp_path: Path) -> None:
    other = save_model(tiny_bert(7), tmp_path / "other")
    _, found = compared(base, other, tmp_path / "scratch")
    first = found.similarity[0]["cls"]
    assert (first.cka.value, first.cka.undefined) == (None, "the rows do not vary here")
    assert found.similarity[1]["cls"].cka.value is not None


def test_real_tokens_are_counted_once_and_special_ones_never(base: Path, tmp_path: Path) -> None:
    extracted, _ = compared(base, base, tmp_path / "scratch")
    words = sum(len(row.text.split()) for row in resolved(base).split.analysed)
    assert extracted.moments["token"].n == words
    assert extracted.moments["cls"].n == extracted.moments["mean"].n == 120


def test_activations_that_are_not_finite_name_the_model_and_the_layer(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    norm = model.encoder.layer[1].get_submodule("output.LayerNorm")
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.fill_(3e38)
    with pytest.raises(InputError, match="tuned model are NaN or infinite at layer 2") as caught:
        compared(base, save_model(model, tmp_path / "broken"), tmp_path / "scratch")
    assert caught.value.errors[0].pointer == "/tuned/uri"


def test_the_texts_of_the_request_are_the_ones_shown(base: Path, tmp_path: Path) -> None:
    asked = request(analysis={"sae": None, "texts": ["the good film", "bad"]})
    extracted = extract(asked, resolved(base), Checkpoint(base, "b", "1"), tmp_path / "scratch", SCRATCH_BYTES, tick)
    assert extracted.tokens.source == "request"
    assert [text.tokens for text in extracted.tokens.texts] == [
        ["[CLS]", "the", "good", "film", "[SEP]"],
        ["[CLS]", "bad", "[SEP]"],
    ]
    assert [len(text.drift) for text in extracted.tokens.texts] == [BLOCKS + 1] * 2


@pytest.mark.parametrize("spare", [0, 400])
def test_autoencoders_of_a_model_and_itself_transfer_without_loss(base: Path, tmp_path: Path, spare: int) -> None:
    asked = request(analysis={"sae": {"tokens": 40_000, "width": 4, "k": 8}})
    extracted = extract(
        asked,
        resolved(base, texts=400, spare=spare),
        Checkpoint(base, "b", "1"),
        tmp_path / "scratch",
        SCRATCH_BYTES,
        tick,
    )
    assert extracted.sae_rows is not None
    assert extracted.sae_rows.from_analysed_rows is (spare == 0)
    trained = train_saes(asked, extracted.sae_rows, tick)
    assert len(trained.layers) == BLOCKS + 1
    for layer in trained.layers:
        assert layer.transfer_excess == 0.0
        assert layer.base == layer.tuned
        assert 0 < layer.base.fvu < 0.9
        assert layer.base.l0 == pytest.approx(8, rel=0.3)
    assert "few_sae_tokens" in {warning.code for warning in trained.warnings}


def tuning(**changes: Any) -> AnalysisRequest:
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 3e-3, **changes}
    body = request().model_dump() | {"tuned": None, "finetune": settings}
    return AnalysisRequest.model_validate(body)


def test_a_fine_tune_learns_and_is_the_same_for_the_same_seed(base: Path, tmp_path: Path) -> None:
    given = resolved(base, texts=200, train=400)
    one, other = (finetune(tuning(), given, tmp_path / name, "s3://x", tick) for name in ("one", "other"))
    assert one.checkpoint.fingerprint == other.checkpoint.fingerprint
    assert one.outputs == other.outputs
    assert one.outputs.accuracy > one.outputs.majority_accuracy + 0.1
    assert one.outputs.steps == 100


@pytest.mark.parametrize(("method", "freeze_first", "unmoved"), [("head", 0, 4), ("full", 2, 3), ("full", 0, 0)])
def test_what_is_frozen_does_not_drift(
    base: Path, tmp_path: Path, method: str, freeze_first: int, unmoved: int
) -> None:
    given = resolved(base, texts=60, train=64)
    asked = tuning(method=method, freeze_first=freeze_first, epochs=1)
    tuned = finetune(asked, given, tmp_path / "tuned", "s3://x", tick)
    found = compare(extract(asked, given, tuned.checkpoint, tmp_path / "scratch", SCRATCH_BYTES, tick))
    moved = [layer["token"].relative_l2.value for layer in found.similarity]
    assert [value == 0 for value in moved] == [index < unmoved for index in range(BLOCKS + 1)]


def test_a_diverging_fine_tune_says_so(base: Path, tmp_path: Path) -> None:
    model = tiny_bert(0)
    with torch.no_grad():
        model.embeddings.LayerNorm.weight.fill_(1e38)
    broken = save_model(model, tmp_path / "broken")
    with pytest.raises(InputError, match="smaller learning rate"):
        finetune(tuning(), resolved(broken, texts=60, train=64), tmp_path / "tuned", "s3://x", tick)


def test_rows_are_dealt_out_once_each_by_the_seed() -> None:
    rows = labelled(300)
    numbered = [Row(f"{index} {row.text}", row.label) for index, row in enumerate(rows)]
    asked = tuning(train_examples=100).model_copy(
        update={"dataset": request().dataset.model_copy(update={"max_examples": 50})}
    )
    split = deal(numbered, asked)
    assert (len(split.analysed), len(split.train), len(split.spare)) == (50, 100, 150)
    assert sorted([*split.analysed, *split.train, *split.spare]) == sorted(numbered)
    assert deal(numbered, asked) == split
    assert deal(numbered, asked.model_copy(update={"seed": 1})) != split


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        (labelled(19), request(), "19 usable rows; at least 20"),
        ([], request(), "0 usable rows"),
        (labelled(39), tuning(), "39 usable rows; at least 40"),
        (labelled(100), tuning(train_examples=90), "less 30 analysed ones leave 70"),
        ([Row(text, "same") for text in make_texts(60)], tuning(), "all training rows have the label 'same'"),
        ([*labelled(60), Row("text", "")], tuning(), "empty label"),
    ],
)
def test_rows_that_cannot_serve_are_refused(rows: list[Row], asked: AnalysisRequest, message: str) -> None:
    with pytest.raises(InputError, match=message):
        deal(rows, asked)


def test_advice_rests_on_a_general_zone_at_the_bottom() -> None:
    from layerdrift.contract.report import Zone

    general = Zone(name="general", first=0, last=2, level=0.01)
    changed = Zone(name="specialised", first=3, last=6, level=0.6)
    assert recommended([general, changed], 6, identical=False).freeze_first == 2
    assert recommended([changed.model_copy(update={"first": 0})], 6, identical=False).freeze_first == 0
    assert recommended([general.model_copy(update={"last": 0}), changed], 6, identical=False).freeze_first == 0
    assert {recommended([general], 6, identical=same).basis for same in (True, False)} == {"predicted"}
