"""`make bench-page`: how soon the demo's report page shows something, and all of its first screen.

Needs var/demo/report.html, which `make demo` writes. The last line printed is JSON.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.benchmarks.document import publish

LOADS = 15
PAINTS = "() => performance.getEntriesByType('paint').find((one) => one.name === 'first-contentful-paint')?.startTime"


def main() -> int:
    """Prints and publishes the figures; 1 where there is no report."""
    page = Path("var/demo/report.html").resolve()
    chromium = shutil.which("chromium")
    if not page.exists() or chromium is None:
        print("make demo writes var/demo/report.html first; Debian's chromium must be there", file=sys.stderr)
        return 1
    paints, curves = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(LOADS):
            context = browser.new_context(viewport={"width": 1200, "height": 900})
            tab = context.new_page()
            tab.goto(page.as_uri())
            tab.locator("#drift svg").first.wait_for()
            curves.append(float(tab.evaluate("() => performance.now()")))
            paints.append(float(tab.evaluate(PAINTS)))
            context.close()
        browser.close()
    figures = {
        "first_paint_ms": round(statistics.median(paints)),
        "slowest_first_paint_ms": round(max(paints)),
        "curve_ms": round(statistics.median(curves)),
        "bytes": page.stat().st_size,
    }
    publish(
        "The report's page (`make bench-page`)",
        f"""
The demo's report ({figures["bytes"]:,} bytes), opened from disk {LOADS} times, each time in a browser context of its
own, 1200 by 900 pixels, Debian's Chromium without a window.

| | ms |
|---|---|
| first contentful paint, median | {figures["first_paint_ms"]} |
| first contentful paint, slowest | {figures["slowest_first_paint_ms"]} |
| the drift curve is drawn, median | {figures["curve_ms"]} |
""",
    )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
