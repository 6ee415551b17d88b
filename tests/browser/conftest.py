"""A real browser on the running service: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from deploy.embedded.stack import Stack

SHOTS = Path(__file__).parents[2] / "var" / "screenshots"
"""Pictures of the pages, kept as the tests' output."""

SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Ended with its tests: while it runs, Playwright's event loop is that of the thread."""
    path = shutil.which("chromium")
    assert path is not None, "these tests need Debian's chromium: make test-browser installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, stack: Stack) -> Iterator[Page]:
    """A page in a context of its own; an error on its console, or in its scripts, fails the test."""
    yield from opened(chromium, stack.url)


def opened(chromium: Browser, url: str, **settings: object) -> Iterator[Page]:
    context = chromium.new_context(base_url=url, **settings)  # type: ignore[arg-type]
    found = context.new_page()
    found.set_default_timeout(20_000)
    errors: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error" and not expected(message.text):
            errors.append(message.text)

    found.on("console", heard)
    found.on("pageerror", lambda error: errors.append(str(error)))
    yield found
    context.close()
    assert errors == []


def expected(text: str) -> bool:
    """Chromium writes every answer that is an error, and every lost connection, to the console by itself."""
    return text.startswith("Failed to load resource")


def accessible(page: Page, name: str) -> None:
    """No serious violation that axe-core knows of, in this state; its picture is kept."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
    found = Axe().run(page).response["violations"]
    serious = [
        f"{one['id']}: {one['help']} at {one['nodes'][0]['target']}" for one in found if one["impact"] in SERIOUS
    ]
    assert serious == []
