"""What people do with the web page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from backends.deployment import Deployment
from backends.jobs.records import JobRecord
from backends.sources.pinning import PinnedDataset, PinnedModel, Pins
from deploy.embedded.stack import Stack
from layerdrift.contract.analysis import Analysis, Status
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.browser.cable import cable
from tests.browser.conftest import accessible, opened
from tests.builders.operator import ADMIN
from tests.builders.texts import make_texts

WAIT_MS = 120_000
BIG = {"tokens": 50_000_000, "comparisons": ["transfer"], "early_stop": False}


def body(base: Path, tuned: Path, **changes: Any) -> AnalysisRequest:
    given = {
        "base": {"uri": base.as_uri()},
        "tuned": {"uri": tuned.as_uri()},
        "dataset": {"inline": {"texts": make_texts(80)}},
        "analysis": {"sae": {"tokens": 20_000}},
    }
    return AnalysisRequest.model_validate(given | changes)


@pytest.fixture(scope="module")
def done(client: Client, base_folder: Path, noised_folder: Path) -> Analysis:
    analysis = client.submit(body(base_folder, noised_folder, name="films v7", tags={"team": "browser"}))
    client.wait(analysis.id, timeout=200)
    return client.get(analysis.id)


@pytest.fixture(scope="module")
def other(client: Client, base_folder: Path, noised_folder: Path) -> Analysis:
    analysis = client.submit(body(base_folder, noised_folder, name="films v8", seed=5, analysis={"sae": None}))
    client.wait(analysis.id, timeout=200)
    return client.get(analysis.id)


def test_a_pair_is_submitted_by_the_form_watched_to_its_end_and_read(
    page: Page, base_folder: Path, noised_folder: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "tuned.zip", "w") as archive:
        for path in noised_folder.iterdir():
            if path.is_file():
                archive.write(path, path.name)
    (tmp_path / "texts.txt").write_text("\n".join(make_texts(80)) + "\n")
    page.goto("/")
    page.get_by_role("link", name="New analysis").click()
    accessible(page, "form")
    page.get_by_role("button", name="Submit").click()
    field = page.get_by_label("Base model", exact=True)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    expect(page.locator(".error", has_text="must not be empty").first).to_be_visible()
    field.fill("file:///nowhere/at/all")
    page.get_by_label("Tuned model: file").set_input_files(tmp_path / "tuned.zip")
    expect(page.get_by_label("Tuned model", exact=True)).to_have_value(re.compile("^upload://"))
    page.get_by_label("Data set: file").set_input_files(tmp_path / "texts.txt")
    expect(page.get_by_label("Data set", exact=True)).to_have_value(re.compile("^upload://"))
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".error", has_text="is outside the folders")).to_be_visible()
    accessible(page, "form-errors")
    field.fill(base_folder.as_uri())
    page.get_by_label("Name", exact=True).fill("by hand <b>")
    page.get_by_label(re.compile("^Sparse autoencoders \\(")).uncheck()
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#status")).to_be_visible()
    accessible(page, "running")
    expect(page.get_by_role("link", name="Inspect texts")).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_role("heading", name="by hand <b>")).to_be_visible()
    frame = page.frame_locator("iframe")
    expect(frame.locator("#drift svg").first).to_be_visible()
    expect(frame.get_by_role("heading", name="by hand <b>")).to_be_hidden()  # the page says it already
    page.wait_for_timeout(500)
    accessible(page, "report")


def test_the_form_offers_previews_checks_and_estimates(
    page: Page, base_folder: Path, noised_folder: Path, roots: Path
) -> None:
    rows = "".join(f"{text},{'good' if 'good' in text else 'other'}\n" for text in make_texts(60))
    (roots / "films.csv").write_text("review,stars\n" + rows)
    page.goto("/#/new")
    offered = page.locator("datalist option")
    expect(page.locator(f"datalist option[value='{base_folder.as_uri()}']").first).to_be_attached()
    assert offered.count() >= 3
    page.get_by_label("Base model", exact=True).fill(base_folder.as_uri())
    page.get_by_label("Tuned model", exact=True).fill(noised_folder.as_uri())
    page.get_by_label("Data set", exact=True).fill((roots / "films.csv").as_uri())
    wrong = page.locator(".error", has_text="has no column 'text'; it has: review, stars")
    expect(wrong.first).to_be_visible()
    data = page.get_by_role("group", name="Data", exact=True)
    data.get_by_label("Text column", exact=True).fill("review")
    data.get_by_label("Label column", exact=True).fill("stars")
    preview = page.locator("#preview")
    expect(preview.locator("tbody tr")).to_have_count(5)
    expect(preview).to_contain_text("First 5 rows of about 60; columns: review, stars")
    expect(page.locator("#estimate")).to_contain_text("the first drift curve after")
    expect(wrong).to_have_count(0)
    page.get_by_text("Advanced: every setting").click()
    expect(page.get_by_label("Weight decay", exact=True)).to_be_hidden()  # of fine-tunes alone
    page.get_by_label("k", exact=True).last.fill("0")  # the first one is of autoencoders of the difference
    expect(page.locator(".error", has_text="must be at least 1; it is 0")).to_be_visible()
    accessible(page, "form-advanced")


def test_a_language_model_is_trained_with_the_defaults_of_its_objective(page: Page, base_folder: Path) -> None:
    """What the form sends: settings of several lines and lists of objects as they are, and no default of its own."""
    sent: list[dict[str, Any]] = []

    def keep(one: Request) -> None:
        if one.url.endswith("/v1/estimates"):
            sent.append(one.post_data_json or {})

    page.on("request", keep)
    page.goto("/#/new")
    page.get_by_label("One checkpoint, fine-tuned here").check()
    page.get_by_role("combobox", name=re.compile("^Objective")).select_option("dpo")
    page.get_by_label("Base model", exact=True).fill(base_folder.as_uri())
    page.get_by_text("Advanced: every setting").click()
    template = "{% for m in messages %}\n  {{ m.content }}\n{% endfor %}"
    page.get_by_label("Chat template", exact=True).first.fill(template)
    traits = [{"name": "cheer", "prompts": ["a", "b", "c", "d"], "opposite": ["e", "f", "g", "h"]}]
    page.get_by_label("Traits", exact=True).fill(json.dumps(traits))
    with page.expect_request(lambda one: one.url.endswith("/v1/estimates")):
        page.get_by_label("Data set", exact=True).fill("s3://data/chats.jsonl")
    body = sent[-1]
    assert body["finetune"]["objective"] == "dpo"
    assert "learning_rate" not in body["finetune"]
    assert "batch_size" not in body["finetune"]
    assert body["dataset"]["chat_template"] == template
    assert body["analysis"]["learned"]["traits"] == traits


def test_a_folder_is_dropped_on_the_form(page: Page, noised_folder: Path) -> None:
    page.goto("/#/new")
    drop = page.locator(".drop").nth(1)
    drop.scroll_into_view_if_needed()
    box = drop.bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(noised_folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        place = {"x": box["x"] + 20, "y": box["y"] + 10}
        session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    expect(page.get_by_label("Tuned model", exact=True)).to_have_value(re.compile("^upload://up_"))


def test_what_is_known_is_shown_while_the_analysis_runs(
    page: Page, client: Client, base_folder: Path, noised_folder: Path
) -> None:
    analysis = client.submit(body(base_folder, noised_folder, seed=31, analysis={"sae": BIG}))
    try:
        watched_while_running(page, analysis.id)
    finally:
        client.cancel(analysis.id)
    expect(page.locator("#status")).to_have_text("cancelled", timeout=WAIT_MS)
    expect(page.locator("#preliminary iframe")).to_have_count(0)


def watched_while_running(page: Page, analysis_id: str) -> None:
    page.goto(f"/#/a/{analysis_id}")
    early = page.frame_locator("#preliminary iframe")
    expect(early.locator(".preliminary")).to_contain_text("Preliminary report", timeout=WAIT_MS)
    expect(early.locator("#drift svg").first).to_be_visible()
    expect(page.locator("#left")).to_contain_text("left")
    expect(page.locator(".stages li.pending")).not_to_have_count(0)
    accessible(page, "preliminary")


def test_the_list_names_what_was_compared(
    page: Page, client: Client, done: Analysis, base_folder: Path, noised_folder: Path
) -> None:
    unnamed = client.submit(body(base_folder, noised_folder, seed=32, analysis={"sae": None, "grafts": False}))
    client.wait(unnamed.id, timeout=200)
    page.goto("/")
    row = page.locator("tr", has_text=f"{base_folder.name} → {noised_folder.name} on inline texts").first
    expect(row.locator(".verdict")).to_be_visible()
    expect(row.locator("svg.spark")).to_be_visible()
    expect(row.locator(".status + .took")).to_contain_text(re.compile(r"\d+ s"))
    named = page.locator("tr", has_text="films v7").first
    expect(named).to_contain_text(f"{base_folder.name} → {noised_folder.name}")
    accessible(page, "list")


def test_a_finished_analysis_can_be_deleted(page: Page, client: Client, base_folder: Path, noised_folder: Path) -> None:
    made = client.submit(body(base_folder, noised_folder, seed=33, name="to go", analysis={"sae": None}))
    client.wait(made.id, timeout=200)
    page.goto(f"/#/a/{made.id}")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Analyses")).to_be_visible()
    expect(page.get_by_role("link", name="to go")).to_have_count(0)


def test_a_report_of_an_older_engine_says_so_and_leads_to_one_of_this(page: Page, done: Analysis, stack: Stack) -> None:
    deployment = Deployment.connect(stack.settings)
    own = deployment.jobs.get(done.id)
    old = own.model_copy(
        update={"id": "an_" + "o" * 26, "engine": "0.0.9", "created_at": datetime(2025, 1, 1, tzinfo=UTC)}
    )
    deployment.jobs.submit(old)
    for format in ("json", "html"):
        deployment.reports.put(old.owned, format, deployment.reports.get(own.owned, format).body)
    page.goto(f"/#/a/{old.id}")
    expect(page.get_by_text("Version 0.0.9 of the engine made this report.")).to_be_visible()
    accessible(page, "older-engine")
    page.get_by_role("button", name="Run again").click()
    expect(page).to_have_url(re.compile(f"#/a/{own.id}$"))
    expect(page.get_by_role("link", name="Inspect texts")).to_be_visible()
    expect(page.get_by_text("of the engine made this report")).to_have_count(0)
    deployment.jobs.remove(old)


def test_several_are_compared(
    page: Page, client: Client, done: Analysis, other: Analysis, base_folder: Path, noised_folder: Path
) -> None:
    third = client.submit(body(base_folder, noised_folder, name="films v9", seed=6, analysis={"sae": None}))
    client.wait(third.id, timeout=200)
    page.goto("/")
    expect(page.get_by_role("link", name="films v7")).to_be_visible()
    expect(page.locator("svg.spark").first).to_be_visible()
    page.get_by_label("Choose films v7 for a comparison").check()
    expect(page.get_by_role("button", name="Compare")).to_be_disabled()
    page.get_by_label("Choose films v8 for a comparison").check()
    page.get_by_role("button", name="Compare 2").click()
    expect(page.get_by_text("A and B differ in settings")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(5)
    accessible(page, "compare")
    page.goto(f"/#/compare/{done.id}/{other.id}/{third.id}")
    expect(page.locator("svg.chart polyline")).to_have_count(3)
    expect(page.get_by_role("columnheader", name="Drift of C")).to_be_visible()
    accessible(page, "compare-three")


def test_filters_find_and_the_list_follows_what_runs(page: Page, done: Analysis, other: Analysis) -> None:
    page.goto("/")
    page.get_by_label("Name").fill("V8")
    expect(page.get_by_role("link", name="films v7")).to_have_count(0)
    expect(page.get_by_role("link", name="films v8")).to_be_visible()
    page.get_by_label("Name").fill("")
    page.get_by_label("Tag").fill("team=browser")
    expect(page.get_by_role("link", name="films v8")).to_have_count(0)
    expect(page.get_by_role("link", name="films v7")).to_be_visible()
    page.get_by_label("Tag").fill("")
    page.get_by_label("Status").select_option("failed")
    expect(page.get_by_role("link", name="films v7")).to_have_count(0)


@pytest.mark.slow
def test_one_that_runs_loses_the_connection_comes_back_and_is_cancelled(
    chromium: Browser, stack: Stack, client: Client, base_folder: Path, noised_folder: Path
) -> None:
    analysis = client.submit(body(base_folder, noised_folder, name="long", analysis={"sae": BIG}))
    with cable(stack.url) as line:
        for page in opened(chromium, line.url):
            page.goto(f"/#/a/{analysis.id}")
            expect(page.locator("svg.chart[aria-label='Unexplained variance by step']")).to_be_visible(timeout=WAIT_MS)
            line.pull()
            lost = page.locator("#connection")
            expect(lost).to_contain_text("trying again")
            training = page.locator(".stages li").nth(3).locator(".soft")
            stopped = training.inner_text()
            page.wait_for_timeout(2_000)
            expect(training).to_have_text(stopped)
            line.put_in()
            expect(lost).to_be_hidden()
            expect(training).not_to_have_text(stopped)
            page.get_by_text("Log", exact=True).click()
            said = page.get_by_label("Log").inner_text()
            assert said.count("extract succeeded") == 1  # nothing was told twice
            accessible(page, "live")
            page.get_by_role("button", name="Cancel").click()
            expect(page.locator("#status")).to_have_text("cancelled", timeout=WAIT_MS)
            expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_job_that_fails_says_why(page: Page, client: Client, base_folder: Path, noised_folder: Path) -> None:
    texts = {"inline": {"texts": ["the film"] * 20}}
    analysis = client.submit(body(base_folder, noised_folder, dataset=texts, analysis={"sae": {"tokens": 20_000}}))
    *_, last = client.watch(analysis.id, timeout=200)
    page.goto(f"/#/a/{analysis.id}")
    if last.status is Status.FAILED:
        assert last.error is not None
        expect(page.get_by_role("alert")).to_contain_text(last.error.detail)
    else:
        expect(page.frame_locator("iframe").get_by_role("heading").first).to_be_visible()
    page.goto("/#/a/an_" + "a" * 26)
    expect(page.get_by_role("alert")).to_contain_text("there is no analysis")


def test_a_sentence_goes_through_both_models(page: Page, done: Analysis) -> None:
    page.goto(f"/#/a/{done.id}")
    page.get_by_role("link", name="Inspect texts").click()
    page.get_by_label("Texts, one per line").fill("the film is good\na dull plot")
    page.get_by_role("button", name="Run through both models").click()
    cards = page.locator("section.card")
    expect(cards).to_have_count(3, timeout=WAIT_MS)
    first, second = cards.nth(1), cards.nth(2)
    first.get_by_role("button", name="film").click()
    expect(first.get_by_role("heading", name="“film”: drift 0.")).to_be_visible()
    expect(first.get_by_role("heading", name="tuned model")).to_be_visible()
    expect(first.locator("li").first).to_contain_text("latent")
    before = [card.locator("h2").inner_text() for card in (first, second)]
    page.get_by_role("slider").press("Home")
    expect(page.locator("output")).to_have_text("layer 0: embeddings")
    assert [card.locator("h2").inner_text() for card in (first, second)] != before
    accessible(page, "inspect")


def test_a_wrong_key_is_refused_and_a_right_one_kept_for_the_tab(chromium: Browser, keyed: Stack) -> None:
    for page in opened(chromium, keyed.url):
        page.goto("/")
        accessible(page, "sign-in")
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("unknown API key")
        page.get_by_label("API key").fill(ADMIN)
        page.get_by_label("API key").press("Enter")
        expect(page.get_by_role("heading", name="Analyses")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Analyses")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


@pytest.fixture(scope="module")
def crowded(start_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that has had 500 analyses."""
    with start_stack(tmp_path_factory.mktemp("crowded")) as stack:
        deployment = Deployment.connect(stack.settings)
        uri = {"uri": "s3://b/m"}
        request = AnalysisRequest.model_validate({"base": uri, "tuned": uri, "dataset": {"uri": "s3://b/d.csv"}})
        model = PinnedModel(uri="s3://b/m", files=[])
        pins = Pins(base=model, tuned=model, dataset=PinnedDataset(source="s3://b/d.csv"))
        for number in range(500):
            digest = base64.b32encode(hashlib.sha256(str(number).encode()).digest()).decode().lower()
            record = JobRecord(
                id=f"an_{digest[:26]}",
                status=Status.SUCCEEDED,
                created_at=datetime.now(UTC) - timedelta(minutes=number),
                request=request.model_copy(update={"name": f"number {number}"}),
                pins=pins,
                drift=[layer * number / 2500 for layer in range(6)],
            )
            deployment.jobs.submit(record)
        yield stack


@pytest.mark.slow
def test_five_hundred_analyses_are_paged_and_a_phone_shows_them(crowded: Stack, chromium: Browser) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "is_mobile": True, "has_touch": True}
    for page in opened(chromium, crowded.url, **phone):
        page.goto("/")
        expect(page.locator("tbody tr")).to_have_count(50)
        for shown in range(100, 501, 50):
            page.get_by_role("button", name="More").click()
            expect(page.locator("tbody tr")).to_have_count(shown)
        expect(page.get_by_role("button", name="More")).to_be_hidden()
        wider = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wider <= 0
        page.evaluate("() => scrollTo(0, 0)")
        accessible(page, "phone-dark")


def test_the_keyboard_is_enough(page: Page, done: Analysis) -> None:
    page.goto("/")
    expect(page.get_by_role("link", name="films v7")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("() => document.activeElement.textContent.trim()"))
        if "films v7" in seen:
            break
    assert {"New analysis", "films v7"} <= seen
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="films v7")).to_be_visible()


def test_nothing_is_fetched_from_elsewhere(page: Page, done: Analysis, stack: Stack) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto("/")
    assert answer is not None
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    page.goto(f"/#/a/{done.id}")
    frame = page.frame_locator("iframe")
    expect(frame.locator(".headline")).to_be_visible()
    assert all(url.startswith((stack.url, "data:", "blob:")) for url in asked), asked
    assert json.loads(page.evaluate("() => JSON.stringify(Object.keys(localStorage))")) == []


def test_a_report_has_no_origin_and_no_way_to_the_api(chromium: Browser, done: Analysis, stack: Stack) -> None:
    with chromium.new_context(base_url=stack.url) as context:
        page = context.new_page()
        page.goto(f"/#/a/{done.id}")
        expect(page.frame_locator("iframe").locator(".headline")).to_be_visible()
        inside = next(one for one in page.frames if "frame.html" in one.url)
        assert inside.evaluate("() => self.origin") == "null"
        assert inside.evaluate("(url) => fetch(url).then(() => true, () => false)", f"{stack.url}/v1/analyses") is False
