"""A review in Weights & Biases: what is logged into a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import wandb

from layerdrift.contract.errors import InputError
from layerdrift.contract.report import Report
from layerdrift.integrations.wandb import log, opened
from tests.builders.policies import check, verdict
from tests.builders.reports import preliminary, report


class Run:
    """What a run of W&B keeps: rows, a summary, artifacts by name with the text of their files."""

    def __init__(self) -> None:
        self.metrics: dict[str, str | None] = {}
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, dict[str, str]] = {}

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def log_artifact(self, artifact: Any) -> None:
        files = {name: Path(entry.local_path).read_text() for name, entry in artifact.manifest.entries.items()}
        self.artifacts[artifact.name] = files


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose artifacts are staged in a folder of the test."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    return Run()


def logged(run: Run, *given: Any) -> None:
    """Logs a review into the run."""
    log(cast(wandb.Run, run), *given)


def test_every_layer_is_a_row_and_layers_are_the_axis_of_all_curves(run: Run) -> None:
    given = report()
    given.layers[0].probe = None
    logged(run, given, None, "<html>")
    assert [row["layerdrift/layer"] for row in run.rows] == [0, 1, 2, 3]
    assert [row["layerdrift/drift"] for row in run.rows] == [layer.drift for layer in given.layers]
    assert "layerdrift/probe" not in run.rows[0]
    assert run.metrics == {"layerdrift/layer": None, "layerdrift/*": "layerdrift/layer"}


def test_the_summary_has_what_runs_are_sorted_by(run: Run) -> None:
    logged(run, report(), verdict("fail", check("fail")), "<html>")
    assert run.summary == {
        "layerdrift/analysis_id": report().analysis_id,
        "layerdrift/freeze_first": 1,
        "layerdrift/largest_drift": 1.0,
        "layerdrift/verdict": "fail",
    }


def test_without_a_policy_there_is_no_verdict(run: Run) -> None:
    logged(run, report(), None, "<html>")
    assert "layerdrift/verdict" not in run.summary


def test_the_report_is_kept_as_an_artifact(run: Run) -> None:
    logged(run, report(), None, "<html>é")
    ((name, files),) = run.artifacts.items()
    assert name == f"layerdrift-{report().analysis_id}"
    assert files["report.html"] == "<html>é"
    assert Report.model_validate_json(files["report.json"]) == report()


def test_a_preliminary_report_leaves_nothing_in_a_run(run: Run) -> None:
    with pytest.raises(InputError, match="preliminary"):
        logged(run, preliminary(("sae", None)), None, "<html>")
    assert (run.rows, run.summary, run.artifacts, run.metrics) == ([], {}, {}, {})


@pytest.mark.parametrize(
    ("name", "run_id", "asked"),
    [
        ("demo", None, {"name": "demo", "id": None, "resume": None}),
        ("", None, {"name": report().analysis_id, "id": None, "resume": None}),
        ("demo", "abc", {"name": None, "id": "abc", "resume": "allow"}),
    ],
    ids=["new", "without a name", "there already"],
)
def test_a_run_that_is_there_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, run_id: str | None, asked: dict[str, Any]
) -> None:
    given: dict[str, Any] = {}

    class Opened:
        def __enter__(self) -> SimpleNamespace:
            return SimpleNamespace(url="https://wandb")

        def __exit__(self, *_: object) -> None:
            given["finished"] = True

    def init(**arguments: Any) -> Opened:
        given.update(arguments)
        return Opened()

    monkeypatch.setattr(wandb, "init", init)
    with opened("reviews", report(name=name), run_id) as made:
        assert made.url == "https://wandb"
        assert "finished" not in given
    assert given == {"project": "reviews", "finished": True, **asked}
