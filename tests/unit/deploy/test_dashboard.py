from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY

from backends.observability import metrics

ROOT = Path(__file__).parents[3]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "layerdrift.json").read_text())
STANDING = {"layerdrift_jobs", "layerdrift_queue_waiting", "layerdrift_queue_length", "layerdrift_workers"}
STANDING |= {"layerdrift_tenant_seconds", "layerdrift_tenant_stored_bytes"}


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def told() -> set[str]:
    """Names of all samples: those that `metrics.standing` tells, and those that processes count."""
    families = {family.name: family for family in REGISTRY.collect() if family.name.startswith("layerdrift_")}
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return STANDING | {name + suffix for name, family in families.items() for suffix in suffixes[family.type]}


def test_every_panel_asks_for_metrics_that_there_are() -> None:
    assert metrics.JOBS is not None  # importing it is what makes them known
    asked = {name for expression in expressions() for name in re.findall(r"layerdrift_\w+", expression)}
    assert asked
    assert asked <= told()


def test_every_metric_is_explained_to_operators() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for name in {re.sub(r"_(bucket|count|sum)$", "", name) for name in told()}:
        assert f"`{name}" in text, name


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
