"""Alerts name metrics that there are, and paragraphs of the runbook that say what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.deploy.test_dashboard import told

ROOT = Path(__file__).parents[3]
RULES: list[dict[str, Any]] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"][0][
    "rules"
]
NAMES = [rule["alert"] for rule in RULES]


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page end with."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_an_alert_asks_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    asked = set(re.findall(r"layerdrift_\w+", rule["expr"]))
    assert asked
    assert asked <= told()


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_an_alert_leads_to_its_paragraph_which_names_it(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor in anchors(ROOT / page)
    text = (ROOT / page).read_text()
    section = next(part for part in text.split("\n## ")[1:] if anchor in part.splitlines()[0].lower().replace(" ", "-"))
    assert f"`{rule['alert']}`" in section


def test_the_runbook_names_no_other_alert() -> None:
    named = re.findall(r"`(Layerdrift\w+)`", (ROOT / "docs" / "runbook.md").read_text())
    assert sorted(named) == sorted(NAMES)


def test_settings_and_kinds_of_errors_in_the_runbook_are_real() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    known = (ROOT / "backends" / "settings.py").read_text().upper() + (ROOT / "deploy" / "compose.yaml").read_text()
    for name in set(re.findall(r"LAYERDRIFT_([A-Z_]+)", text)):
        assert name in known, name
    errors = (ROOT / "clients" / "layerdrift" / "contract" / "errors.py").read_text()
    errors += (ROOT / "workers" / "faults.py").read_text()
    for kind in set(re.findall(r"urn:layerdrift:([a-z-]+)", text)):
        assert kind in errors, kind
