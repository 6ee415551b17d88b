"""`make screenshots`: the pictures of the README, taken of the demo in a headless Chromium.

Writes docs/images/report.png (the report that `make demo` left) and docs/images/page.png (the web page with the demo's
analyses), each below 150 kB.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, ViewportSize, sync_playwright

from deploy.embedded.stack import Stack
from layerdrift.sdk import Client

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH, REPORT_HEIGHT, PAGE_HEIGHT = 1180, 900, 400
MAX_BYTES = 150_000


def main() -> int:
    """0 when both pictures are written; 1 without a demo to take them of, or where one is too large."""
    home = Path(os.environ.get("LAYERDRIFT_HOME", "var")).resolve() / "demo"
    chromium = shutil.which("chromium")
    if chromium is None or not (home / "report.html").exists():
        sys.stderr.write("this needs chromium and a finished `make demo`\n")
        return 1
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, Stack({**os.environ, "LAYERDRIFT_HOME": str(home)}) as stack:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        _shoot(browser, (home / "report.html").as_uri(), "#drift svg", IMAGES / "report.png", REPORT_HEIGHT)
        with Client(stack.url) as client:
            newest = client.list(limit=1).items[0]
        _shoot(browser, f"{stack.url}/", f"#open-{newest.id}", IMAGES / "page.png", PAGE_HEIGHT)
        browser.close()
    sizes = {path: path.stat().st_size for path in (IMAGES / "report.png", IMAGES / "page.png")}
    for path, size in sizes.items():
        sys.stdout.write(f"{path}: {size / 1000:.0f} kB\n")
    return int(max(sizes.values()) > MAX_BYTES)


def _shoot(browser: Browser, url: str, ready: str, target: Path, height: int) -> None:
    page = browser.new_page(viewport=ViewportSize(width=WIDTH, height=height), color_scheme="light")
    page.goto(url)
    page.wait_for_selector(ready)
    page.wait_for_timeout(500)
    page.screenshot(path=target)
    page.close()


if __name__ == "__main__":
    sys.exit(main())
