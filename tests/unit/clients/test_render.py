from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from layerdrift.contract.report import Report
from layerdrift.render import html, markdown, words


def report(
    name: str = "demo",
    layers: int = 4,
    with_sae: bool = True,
    constant_views: tuple[str, ...] = ("cls",),
    intervals: bool = True,
    **changes: Any,
) -> Report:
    """A report of made-up numbers, whole in every part."""

    def measured(value: float | None) -> dict[str, Any]:
        ends = {} if value is None or not intervals else {"low": value - 0.01, "high": value + 0.01}
        return {"value": value, **ends, "undefined": "the rows do not vary here" if value is None else None}

    def similarity(layer: int, view: str) -> dict[str, Any]:
        drift = layer / (layers - 1)
        constant = layer == 0 and view in constant_views
        return {
            "cosine": measured(1 - drift / 2),
            "cosine_centred": measured(None if constant else 1 - drift),
            "relative_l2": measured(drift * 1.3),
            "cka": measured(None if constant else 1 - drift),
        }

    quality = {"fvu": 0.2, "l0": 32.0, "dead_fraction": 0.01}
    sae = {"base": quality, "tuned": quality, "transfer_fvu": 0.3, "transfer_excess": 0.1}
    body: dict[str, Any] = {
        "analysis_id": "an_" + "a" * 26,
        "name": name,
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "engine": {"version": "0", "python": "3.11", "packages": {"torch": "2"}, "device": "cpu", "threads": 2},
        "request": {
            "base": {"uri": "file:///a"},
            "tuned": {"uri": "file:///b"},
            "dataset": {"uri": "s3://d/x.csv"},
        },
        "models": {
            role: {
                "uri": f"file:///{role}",
                "fingerprint": "f" * 64,
                "architecture": "BertModel",
                "parameters": 1000,
                "blocks": layers - 1,
                "hidden_size": 8,
            }
            for role in ("base", "tuned")
        },
        "dataset": {
            "source": "s3://d/x.csv",
            "sha256": "d" * 64,
            "rows": 100,
            "analysed_texts": 50,
            "analysed_tokens": 500,
            "train_texts": 0,
            "sae_texts": 50,
            "sae_distinct_tokens": 500,
        },
        "layers": [
            {
                "index": index,
                "name": "embeddings" if index == 0 else f"block {index}",
                "zone": "general" if index < 2 else "specialised",
                "drift": index / (layers - 1),
                "similarity": {view: similarity(index, view) for view in ("token", "cls", "mean")},
                "weights": {
                    "mlp": {"relative_frobenius": 0.1, "effective_rank": 5.5, "top8_share": 0.9, "top16_share": 0.95},
                    "norm": {
                        "relative_frobenius": 0.0,
                        "effective_rank": None,
                        "top8_share": None,
                        "top16_share": None,
                    },
                },
                "sae": sae if with_sae else None,
            }
            for index in range(layers)
        ],
        "cross_layer_cka": {
            "values": [[None if i == j == 0 else 0.5 for j in range(layers)] for i in range(layers)],
            "rows": 400,
        },
        "zones": [
            {"name": "general", "first": 0, "last": 1, "level": 0.1},
            {"name": "specialised", "first": 2, "last": layers - 1, "level": 0.8},
        ],
        "recommendation": {"freeze_first": 1, "basis": "predicted", "evidence": "Because of the curve."},
        "tokens": {
            "source": "request",
            "texts": [
                {
                    "text": "it's </script> <b>bold</b>",
                    "tokens": ["[CLS]", "it", "'", "\\", "</script>"],
                    "special": [True, False, False, False, False],
                    "drift": [[0.0, 0.1, 0.2, 0.3, 2.0]] * layers,
                }
            ],
        },
        "warnings": [],
        "timings": {"stages": {"extract": 1.5}, "peak_memory_bytes": 2**30},
    }
    return Report.model_validate(body | changes)


class Page(HTMLParser):
    """Collects what a page refers to, its element ids and its visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.text = ""
        self._in_script = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag in ("script", "style")
        for name, value in attrs:
            if name in ("src", "href", "action"):
                self.references.append(f"{tag} {value}")
            if name == "id" and value:
                self.ids.add(value)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if not self._in_script:
            self.text += data


def specs_of(source: str) -> dict[str, Any]:
    found = re.search(r"^const specs = (.*);$", source, re.MULTILINE)
    assert found is not None
    specs: dict[str, Any] = json.loads(found.group(1))
    return specs


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = Page(html.render(report()))
    assert page.references == []


def test_every_figure_has_its_place_and_its_data() -> None:
    source = html.render(report())
    specs = specs_of(source)
    assert set(specs) == {"drift", "measures", "cka", "weights", "sae", "tokens-0"}
    assert set(specs) <= Page(source).ids
    drawn = {row["layer"]: row["drift"] for row in specs["drift"]["data"]["values"]}
    assert drawn == {index: layer.drift for index, layer in enumerate(report().layers)}


def test_intervals_are_drawn_the_right_way_up_and_written_out() -> None:
    source = html.render(report())
    for row in specs_of(source)["drift"]["data"]["values"]:
        assert row["low"] == pytest.approx(row["drift"] - 0.01)
        assert row["high"] == pytest.approx(row["drift"] + 0.01)
    assert "0.9900 to 1.0100" in Page(source).text
    assert "| 0.9900 to 1.0100 |" in markdown.render(report())
    without = specs_of(html.render(report(intervals=False)))["drift"]["data"]["values"]
    assert {row["low"] for row in without} == {None}


def test_a_report_without_autoencoders_has_no_empty_figure() -> None:
    source = html.render(report(with_sae=False))
    assert "sae" not in specs_of(source)
    assert "sae" not in Page(source).ids


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "{{ 7*7 }}"])
def test_text_of_the_users_never_becomes_markup(name: str) -> None:
    source = html.render(report(name=name))
    page = Page(source)
    assert page.references == []
    assert name in page.text
    assert "it's </script> <b>bold</b>" in page.text
    assert "<b>bold" not in source


def test_tokens_with_quotes_and_backslashes_survive_the_axis_expression() -> None:
    import vl_convert

    spec = specs_of(html.render(report()))["tokens-0"]
    svg = vl_convert.vegalite_to_svg(spec)
    for label in ("[CLS]", ">'<", ">\\<", "&lt;/script&gt;"):
        assert label in svg


@pytest.mark.parametrize("figure", ["drift", "measures", "cka", "weights", "sae"])
def test_every_figure_can_be_drawn(figure: str) -> None:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(specs_of(html.render(report()))[figure])
    assert svg.startswith("<svg")
    assert "NaN" not in svg


def test_a_number_without_meaning_is_a_dash_and_never_nan() -> None:
    undefined = report(constant_views=("cls", "token"))
    page, text = Page(html.render(undefined)).text, markdown.render(undefined)
    assert "0 embeddingsgeneral0.0000———1.0000.000" in page
    assert "| 0 embeddings | general | 0.0000 | — | — | — |" in text
    assert "nan" not in (page + text).lower()


def test_the_words_follow_the_numbers() -> None:
    found = report()
    assert words.headline(found).startswith("Drift (1 - CKA) goes from 0.000 at the embeddings to 1.000 at block 3")
    assert "layers 0 to 1 kept" in words.headline(found)
    assert words.advice(found).startswith("Freeze the embeddings and the first 1 blocks next time (predicted).")
    assert not any("No interval was computed" in limit for limit in words.limits(found))
    assert any("No interval was computed" in limit for limit in words.limits(report(intervals=False)))
    identical = report(warnings=[{"code": "identical_models", "message": "same"}])
    assert words.headline(identical).startswith("Below their heads the two models are identical")


def test_markdown_is_a_table_that_no_name_can_break() -> None:
    lines = markdown.render(report(name="a | b\n# c `d` <e>")).splitlines()
    assert lines[0] == "# a \\| b \\# c \\`d\\` \\<e\\>"
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {11}
    assert len(table) == 2 + 4


def test_equal_reports_give_equal_pages() -> None:
    assert html.render(report()) == html.render(report())
