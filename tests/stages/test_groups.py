"""Texts that are nearly the same as one unit, and groups of texts where little room is left for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.names import ViewName
from tests.builders.models import BLOCKS, HIDDEN, add_noise, save_model, tiny_bert, tiny_tokenizer
from tests.builders.stages import extracted_pair, pair_context, request, resolved, tuning
from tests.builders.texts import make_texts
from workers.analysis.probes import stratified_folds
from workers.models.states import StateReader
from workers.stages.common.inputs import Split
from workers.stages.common.moment_accumulator import GroupPlan, TokenizationSpec
from workers.stages.compare.stage import compare
from workers.stages.resolve.splitting import split_rows, units_of

GIB = 1 << 30


def in_groups(count: int, size: int) -> list[Row]:
    """So many texts in groups of a size, those of one group far from each other."""
    texts = make_texts(count)
    labels = ["yes" if "good" in text else "no" for text in texts]
    return [
        Row(text, label, None, f"g{place % (count // size)}")
        for place, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def parts(split: Split) -> list[list[Row]]:
    return [split.analysed, split.train, split.spare, split.held_out]


@pytest.mark.parametrize("tuned", [False, True])
def test_no_group_is_in_two_uses_and_no_row_is_lost(tuned: bool) -> None:
    rows = in_groups(300, 6)
    asked = tuning(train_examples=100) if tuned else request(dataset={"uri": "file:///x.csv", "max_examples": 100})
    split = split_rows(rows, asked)
    groups = [{row.group for row in part} for part in parts(split)]
    for place, one in enumerate(groups):
        assert all(one.isdisjoint(other) for other in groups[place + 1 :])
    assert sorted(row.text for part in parts(split) for row in part) == sorted(row.text for row in rows)
    assert 90 <= len(split.analysed) <= 105


@pytest.mark.parametrize("sizes", [(300,), (40, 100), (100, 40)])
def test_groups_that_leave_nothing_to_train_on_or_to_hold_out_are_refused(sizes: tuple[int, ...]) -> None:
    names = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    rows = [row._replace(group=name) for row, name in zip(in_groups(300, 6), names, strict=False)]
    with pytest.raises(InputError, match="a column with smaller groups") as raised:
        split_rows(rows, tuning())
    assert raised.value.errors[0].pointer == "/dataset/group_column"


def test_rows_without_a_group_are_dealt_one_by_one() -> None:
    rows = [row._replace(group=None) for row in in_groups(300, 6)]
    split = split_rows(rows, request(dataset={"uri": "file:///x.csv", "max_examples": 101}))
    assert len(split.analysed) == 101
    assert units_of(split.analysed) is None


def test_units_are_dealt_into_groups_whole(tmp_path: Path) -> None:
    rows = split_rows(in_groups(120, 4), request()).analysed
    units = units_of(rows)
    tokenization = TokenizationSpec(
        tiny_tokenizer(tmp_path), 32, causal=False, states=StateReader(BLOCKS + 1, HIDDEN), units=units
    )
    found = {
        index: group for group, batch in tokenization.grouped([row.text for row in rows]) for index in batch.indices
    }
    assert sorted(found) == list(range(120))
    by_name: dict[str | None, set[int]] = {}
    for index, group in found.items():
        by_name.setdefault(rows[index].group, set()).add(group)
    assert all(len(groups) == 1 for groups in by_name.values())
    assert len(set(found.values())) == 15  # of 30 units, two for each group


@pytest.mark.slow
def test_intervals_of_texts_that_are_nearly_the_same_are_as_wide_as_of_one_each(tmp_path: Path) -> None:
    """Every text eight times, a word apart: taken one by one the intervals are far too narrow."""
    base, model = save_model(tiny_bert(0), tmp_path / "base"), tiny_bert(0)
    add_noise(model, 1)
    noised = save_model(model, tmp_path / "noised")
    originals = make_texts(60)
    rows = [Row(f"{text} film", None, None, str(place)) for place, text in enumerate(originals) for _ in range(8)]
    rows = [row._replace(text=f"{row.text} {'the ' * (number % 8)}".strip()) for number, row in enumerate(rows)]
    widths = []
    for group in (True, False):
        given = resolved(base, texts=60)
        analysed = rows if group else [row._replace(group=None) for row in rows]
        given = given.__class__(**{**vars(given), "split": Split(analysed, [], []), "units": units_of(analysed)})
        extracted = extracted_pair(given, noised, tmp_path / f"scratch{group}", request())
        cka = compare(pair_context(given, noised, tmp_path), extracted).similarity[-1]["token"].cka
        assert cka.low is not None
        assert cka.high is not None
        widths.append(cka.high - cka.low)
    assert widths[0] > 1.5 * widths[1]


def test_a_probe_holds_units_out_whole_and_classes_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    units = torch.randperm(200, generator=generator) // 4
    classes = (units % 2).long()
    folds = stratified_folds(classes, 5, generator, units)
    for unit in range(50):
        assert len(folds[units == unit].unique()) == 1
    for fold in range(5):
        assert int(classes[folds == fold].sum()) == int((folds == fold).sum()) // 2


@pytest.mark.parametrize(
    ("shape", "limit", "plan"),
    [
        ((7, 384), 5 * GIB, GroupPlan()),  # MiniLM
        ((13, 768), 1.5 * GIB, GroupPlan(merged=2)),
        ((17, 2048), 20 * GIB, GroupPlan(merged=2)),  # Llama-3.2-1B
        ((17, 2048), 5 * GIB, GroupPlan(every={"token": 16, "cls": 1, "mean": 1})),
        ((33, 4096), 5 * GIB, GroupPlan(every={"token": 64, "cls": 4, "mean": 4})),  # Llama-3.1-8B
        ((33, 4096), GIB // 8, None),
    ],
)
def test_wide_models_have_groups_too(shape: tuple[int, int], limit: float, plan: GroupPlan | None) -> None:
    rows: dict[ViewName, int] = {"token": 100_000, "cls": 2_000, "mean": 2_000}
    assert GroupPlan.of(shape, rows, 20, limit) == plan


@pytest.mark.slow
def test_intervals_of_a_part_of_the_tokens_are_told_and_a_little_wider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, model = save_model(tiny_bert(0), tmp_path / "base"), tiny_bert(0)
    add_noise(model, 1)
    noised = save_model(model, tmp_path / "noised")
    given = resolved(base, texts=400)
    found = []
    part_of_tokens = GroupPlan(every={"token": 4, "cls": 1, "mean": 1})
    for name, plan in (("whole", GroupPlan()), ("part", part_of_tokens)):
        monkeypatch.setattr(GroupPlan, "of", lambda *_, plan=plan: plan)
        extracted = extracted_pair(given, noised, tmp_path / name, request())
        compared = compare(pair_context(given, noised, tmp_path), extracted)
        codes = {warning.code for warning in extracted.warnings}
        assert ("wide_intervals" in codes) is (name == "part")
        found.append(compared.similarity[-1]["token"].cka)
    whole, part = found
    assert part.value == pytest.approx(whole.value, rel=1e-12)  # the same rows, added in another order
    for one in found:
        assert one.low is not None
        assert one.high is not None
    assert part.low is not None
    assert part.high is not None
    assert part.low <= (part.value or 0) <= part.high
    assert (part.high - part.low) > 0.5 * ((whole.high or 0) - (whole.low or 0))
