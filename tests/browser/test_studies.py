"""Studies in a browser: submitted as JSON, followed to the end, read, with figures that follow the picked member."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from layerdrift.sdk import Client
from tests.browser.conftest import accessible
from tests.builders.texts import make_texts

WAIT_MS = 240_000


def asked(base: Path, tuned: Path, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "base": {"uri": base.as_uri()},
        "dataset": {"inline": {"texts": make_texts(60)}},
        "analysis": {"sae": None, "grafts": False},
        "members": [{"name": f"tuned-{seed}", "tuned": {"uri": tuned.as_uri()}, "seed": seed} for seed in (31, 32)],
    }


def test_a_study_is_submitted_followed_and_read(page: Page, base_folder: Path, noised_folder: Path) -> None:
    page.goto("/#/studies")
    accessible(page, "studies-empty")
    page.get_by_role("link", name="New study").click()
    page.get_by_label("Study, as JSON").fill(json.dumps(asked(base_folder, noised_folder, "two seeds of texts")))
    accessible(page, "study-new")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", name="two seeds of texts")).to_be_visible()
    frame = page.frame_locator("iframe.report")
    expect(frame.locator("#drift svg").first).to_be_visible(timeout=WAIT_MS)
    accessible(page, "study-report")
    frame.get_by_label("Member", exact=True).select_option("tuned-32")
    expect(frame.locator("tr.picked").first).to_contain_text("tuned-32")
    lines = frame.locator("#drift .mark-line path[opacity]")
    expect(lines).to_have_count(2)
    opacities = sorted(float(one.get_attribute("opacity") or 1) for one in lines.all())
    assert opacities == [0.1, 1.0]
    page.get_by_text("Members and their analyses").click()
    page.get_by_role("link", name="tuned-31").click()
    expect(page.get_by_role("heading", name="tuned-31")).to_be_visible()
    page.goto("/#/studies")
    expect(page.get_by_role("link", name="two seeds of texts")).to_be_visible()


def test_what_is_wrong_with_a_study_is_named_by_its_place(page: Page, base_folder: Path, noised_folder: Path) -> None:
    page.goto("/#/studies/new")
    field = page.get_by_label("Study, as JSON")
    field.fill("{")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("this is not JSON")
    body = asked(base_folder, noised_folder, "wrong")
    body["members"][1] = {**body["members"][0]}
    field.fill(json.dumps(body))
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("/members/1/name")


def test_a_study_is_cancelled_and_deleted(page: Page, client: Client, base_folder: Path, noised_folder: Path) -> None:
    body = asked(base_folder, noised_folder, "to be cancelled")
    members = [{**one, "seed": 40 + place} for place, one in enumerate(body["members"] * 2)]
    study = client.submit_study({**body, "members": [{**one, "name": f"m{one['seed']}"} for one in members]})
    page.goto(f"/#/s/{study.id}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("cancelled")
