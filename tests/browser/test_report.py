"""The report's page, opened from disk: one picked layer, which every panel follows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.browser.conftest import accessible, opened
from tests.builders.texts import make_texts

TEXTS = ["the film is good", "a dull plot but a funny actor"]


@pytest.fixture(scope="module")
def analysis_id(client: Client, base_folder: Path, noised_folder: Path) -> str:
    request = {
        "base": {"uri": base_folder.as_uri()},
        "tuned": {"uri": noised_folder.as_uri()},
        "dataset": {"inline": {"texts": make_texts(80)}},
        "analysis": {"sae": {"tokens": 60_000, "k": 4, "comparisons": ["warm_start"]}, "texts": TEXTS},
        "name": "the page",
    }
    analysis = client.submit(AnalysisRequest.model_validate(request))
    client.wait(analysis.id, timeout=200)
    return analysis.id


@pytest.fixture(scope="module")
def report(client: Client, analysis_id: str) -> Report:
    return client.report(analysis_id)


@pytest.fixture(scope="module")
def file(client: Client, analysis_id: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(client.rendered_report(analysis_id, "html"))
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Iterator[Page]:
    for found in opened(chromium, file.as_uri()):
        found.goto(file.as_uri())
        expect(found.locator("#drift svg").first).to_be_visible()
        yield found


def test_the_first_screen_says_what_was_found(page: Page, report: Report) -> None:
    page.set_viewport_size({"width": 1200, "height": 900})
    for place in (".verdict", ".headline", "#drift svg"):
        expect(page.locator(place).first).to_be_in_viewport()
    expect(page.locator(".headline")).to_contain_text(f"to {report.layers[-1].drift:.3f} at block 3")
    accessible(page, "report-from-disk")


def test_a_picked_layer_is_followed_by_every_panel(page: Page, report: Report) -> None:
    slider = page.get_by_role("slider")
    slider.fill("1")
    expect(page.locator("#layer-name")).to_contain_text("1 · block 1")
    expect(page.locator("#facts")).to_contain_text(f"drift {report.layers[1].drift:.4f}")
    rows = page.locator("tr.picked")
    assert rows.count() >= 3
    assert {row.get_attribute("data-layer") for row in rows.all()} == {"1"}
    before = page.locator("#drift .pick-line").get_attribute("x1")
    slider.press("ArrowRight")
    expect(page.locator("#layer-name")).to_contain_text("2 · block 2")
    assert page.locator("#drift .pick-line").get_attribute("x1") != before
    page.locator("tr[data-layer='3']").first.click()
    expect(page.locator("#layer-name")).to_contain_text("3 · block 3")
    page.locator("#drift .mark-symbol path").first.hover()
    expect(page.locator("#layer-name")).to_contain_text("0 · embeddings")
    page.locator("#grafts").scroll_into_view_if_needed()
    expect(page.locator("#grafts .pick-line")).to_have_count(1)


def test_tokens_show_their_drift_and_their_latents_in_both_models(page: Page, report: Report) -> None:
    page.get_by_role("slider").fill("2")
    text = page.locator("#texts .text").first
    token = text.locator("span", has_text="film")
    token.hover()
    place = report.tokens.texts[0].tokens.index("film")
    drift = report.tokens.texts[0].drift[2][place]
    expect(page.locator("#token h3")).to_have_text(f"“film” at layer 2: drift {drift:.3f}")
    latents = report.tokens.texts[0].latents
    assert latents is not None
    for side, found in (("base", latents.base), ("tuned", latents.tuned)):
        box = page.locator("#token .pair > div", has_text=f"in the {side} model")
        index, activation = found[2][place][0]
        expect(box.locator("li").first).to_have_text(f"latent {index}, activation {activation:g}")
    text.focus()
    text.press("ArrowRight")
    expect(page.locator("#token h3")).to_contain_text("“is” at layer 2")
    accessible(page, "tokens")


def test_every_figure_comes_down_as_png_and_csv(page: Page, report: Report, tmp_path: Path) -> None:
    with page.expect_download() as found:
        page.get_by_role("button", name="Download drift as PNG").click()
    found.value.save_as(tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    with page.expect_download() as found:
        page.get_by_role("button", name="Download the data of drift as CSV").click()
    found.value.save_as(tmp_path / "drift.csv")
    rows = list(csv.DictReader((tmp_path / "drift.csv").read_text().splitlines()))
    drawn = {int(row["layer"]): float(row["drift"]) for row in rows if row["drift"]}
    assert drawn == pytest.approx({layer.index: layer.drift for layer in report.layers})
    figures = page.locator(".figure").count()
    for figure in page.locator(".figure").all():
        figure.scroll_into_view_if_needed()
        expect(figure.locator("svg").first).to_be_visible()
    expect(page.get_by_role("button", name="CSV")).to_have_count(figures)


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("x"),1']


def test_no_text_of_a_download_is_a_formula_to_a_spreadsheet(chromium: Browser, file: Path, tmp_path: Path) -> None:
    opening, closing = '<script id="data" type="application/json">', "</script>"
    before, rest = file.read_text().split(opening)
    stored, after = rest.split(closing, 1)
    data = json.loads(stored)
    rows: list[dict[str, object]] = [{"text": text, "=name": -1.5, "plain": 'a, "b"'} for text in FORMULAS]
    data["specs"]["drift"] = {"mark": "point", "datasets": {"of a user": rows}, "data": {"name": "of a user"}}
    changed = tmp_path / "report.html"
    changed.write_text(before + opening + json.dumps(data) + closing + after)
    for page in opened(chromium, changed.as_uri()):
        page.goto(changed.as_uri())
        with page.expect_download() as found:
            page.get_by_role("button", name="Download the data of drift as CSV").click()
        found.value.save_as(tmp_path / "drift.csv")
    with (tmp_path / "drift.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["text", "'=name", "plain"]
    assert lines == [[f"'{text}", "-1.5", 'a, "b"'] for text in FORMULAS]


def test_the_contents_lead_to_every_part_and_the_dark_theme_reaches_the_figures(chromium: Browser, file: Path) -> None:
    for page in opened(chromium, file.as_uri(), color_scheme="dark", viewport={"width": 1300, "height": 900}):
        page.goto(file.as_uri())
        expect(page.locator("#drift svg").first).to_be_visible()
        parts = page.locator("section[id]").count()
        assert parts > 8
        expect(page.locator("#contents a")).to_have_count(parts)
        page.get_by_role("link", name="Provenance").click()
        expect(page.locator("#provenance")).to_be_in_viewport()
        page.get_by_role("link", name="Summary").click()
        ink = page.evaluate("() => getComputedStyle(document.body).color")
        assert ink == "rgb(231, 235, 239)"
        label = page.locator("#drift svg .role-axis-label text").first
        assert label.get_attribute("fill") == "#a9b4bf"
        accessible(page, "report-dark")


def test_how_to_read_a_figure_is_folded_away(page: Page) -> None:
    folded = page.locator("#drift-table details.how")
    expect(folded.locator("p")).to_be_hidden()
    folded.get_by_text("How to read this").click()
    expect(folded.locator("p")).to_be_visible()


def test_a_phone_and_a_printer_can_show_it(page: Page, file: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    wider = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert wider <= 0
    page.emulate_media(media="print")
    assert len(page.pdf()) > 10_000


def test_the_latents_of_the_picked_layer_can_be_shown_alone(page: Page, report: Report) -> None:
    if not report.latents:
        withheld = any(layer.sae is not None and layer.sae.withheld for layer in report.layers)
        expect(page.get_by_text("Not reported (differences" if withheld else "so none is shown")).to_be_visible()
        return
    layer = report.latents[0].layer
    page.get_by_role("slider").fill(str(layer))
    page.get_by_label("selected layer only").check()
    shown = sum(one.layer == layer for one in report.latents)
    expect(page.locator("#latent-count")).to_contain_text(f"{shown} of {len(report.latents)} latents")
