"""The command line as a shell runs it: a process for each command, on the running service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from junitparser import JUnitXml
from markdown_it import MarkdownIt

from deploy.embedded.ports import LOOPBACK, choose
from deploy.embedded.stack import Stack
from tests.builders.models import save_model, tiny_bert
from tests.builders.texts import make_texts

SECONDS = 240
HOLDS = """
rules:
  - {id: same-depth, path: models.base.blocks, min: 3, max: 3, message: another depth}
"""
BREAKS = """
rules:
  - id: early-layers-kept
    path: layers[0:2].drift
    max: 0.000001
    message: the first layers moved
  - id: late-layers
    severity: warn
    path: layers[2:].drift
    max: 0.000001
    message: the last layers moved
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(stack: Stack, tmp_path: Path) -> Run:
    """Runs the program in a folder of its own."""

    def once(*arguments: str | Path, **changes: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*arguments), **options(stack, tmp_path), **changes, timeout=SECONDS)

    return once


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "layerdrift", *map(str, arguments)]


def options(stack: Stack, folder: Path) -> dict[str, Any]:
    path = os.pathsep.join(sys.path)
    env = {**os.environ, "LAYERDRIFT_URL": stack.url, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"}
    return {"cwd": folder, "env": env, "capture_output": True, "text": True, "check": False}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints and a data set that lie where the service may not read."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(tiny_bert(0), folder / "base")
    tuned = tiny_bert(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.encoder.layer.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    save_model(tuned, folder / "tuned")
    lines = [json.dumps({"text": text}) for text in make_texts(80)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def pair(inputs: Path) -> list[str]:
    given = {"--base": inputs / "base", "--tuned": inputs / "tuned", "--dataset": inputs / "texts.jsonl"}
    return [str(part) for option in given.items() for part in option] + ["--no-sae"]


@pytest.fixture(scope="module")
def done(stack: Stack, inputs: Path) -> str:
    """The id of a finished analysis of what was uploaded."""
    submitted = subprocess.run(command("submit", *pair(inputs), "--tag", "team=cli"), **options(stack, inputs))
    assert submitted.returncode == 0, submitted.stderr
    analysis = str(submitted.stdout.strip())
    waited = subprocess.run(command("wait", analysis, "--timeout", "200"), **options(stack, inputs))
    assert waited.returncode == 0, waited.stderr
    assert waited.stdout.startswith("Drift (1 - CKA) goes from")
    return analysis


def test_local_folders_are_uploaded_once_and_the_same_again_is_the_same_analysis(
    run: Run, inputs: Path, done: str
) -> None:
    again = run("submit", *pair(inputs), "--tag", "team=cli", "--json")
    assert json.loads(again.stdout)["id"] == done
    assert json.loads(again.stdout)["request"]["base"]["uri"].startswith("upload://up_")
    first, second = (run("upload", inputs / "base").stdout for _ in range(2))
    assert first == second == json.loads(again.stdout)["request"]["base"]["uri"] + "\n"


def test_review_says_yes_and_writes_everything(run: Run, inputs: Path, done: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(HOLDS)
    files = ["--junit", "o.xml", "--markdown", "o.md", "--html", "o.html", "--report", "o.json", "--png", "o.png"]
    found = run("review", *pair(inputs), "--tag", "team=cli", "-p", "policy.yaml", *files, "--verdict", "v.json")
    assert found.returncode == 0, found.stderr
    assert f"{done} succeeded" in found.stderr
    assert "PASS Policy passed." in found.stdout
    (suite,) = JUnitXml.fromfile(str(tmp_path / "o.xml"))
    assert (suite.tests, suite.failures) == (1, 0)
    page = MarkdownIt("gfm-like", {"linkify": False}).render((tmp_path / "o.md").read_text())
    assert "<h2>✅ Policy passed.</h2>" in page
    assert page.count("<table>") == 2
    assert "<title>" in (tmp_path / "o.html").read_text()
    assert json.loads((tmp_path / "o.json").read_text())["analysis_id"] == done
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "v.json").read_text())["decision"] == "pass"
    assert not list(tmp_path.glob(".*.part"))


def test_a_gate_that_fails_exits_with_1_and_names_the_layers(run: Run, done: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(BREAKS)
    found = run("gate", done, "--policy", "policy.yaml", "--junit", "out.xml")
    assert found.returncode == 1
    assert "2 of 2 above 1e-06: layers[3].drift is" in found.stdout
    (suite,) = JUnitXml.fromfile(str(tmp_path / "out.xml"))
    assert (suite.tests, suite.failures) == (2, 1)
    machine = run("gate", done, "--policy", "policy.yaml", "--json")
    assert machine.returncode == 1
    assert [check["decision"] for check in json.loads(machine.stdout)["checks"]] == ["fail", "warn"]
    assert run("report", done, "-o", "report.json").returncode == 0
    offline = run("gate", "report.json", "--policy", "policy.yaml", "--url", nowhere(), "--json")
    assert (offline.returncode, json.loads(offline.stdout)) == (1, json.loads(machine.stdout))


def test_a_closed_pipe_does_not_turn_a_red_gate_green(stack: Stack, done: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(BREAKS)
    gate = " ".join(command("gate", done, "-p", "policy.yaml", "--json"))
    given = options(stack, tmp_path)
    found = subprocess.run(["bash", "-c", f"{gate} | true; echo ${{PIPESTATUS[0]}}"], **given)
    assert found.stdout.strip() == "1", found.stderr
    listed = subprocess.run(["bash", "-o", "pipefail", "-c", f"{' '.join(command('list'))} | head -1"], **given)
    assert (listed.returncode, listed.stderr) == (0, "")


def test_a_rule_that_cannot_be_judged_is_no_pass_and_points_at_its_line(run: Run, done: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(HOLDS + "  - {id: far, path: 'layers[9].drift', max: 1, message: far}\n")
    found = run("gate", done, "--policy", "policy.yaml")
    assert found.returncode == 2
    assert found.stderr.strip() == "error: policy.yaml:4:15: rule far: layers[9].drift matches nothing in this report"


def test_a_policy_is_checked_without_a_service(run: Run, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(HOLDS.replace("blocks", "blocs"))
    found = run("policy", "check", "policy.yaml")
    assert found.returncode == 2
    assert "policy.yaml:3:22: path: models.base.blocs does not exist: did you mean blocks?" in found.stderr
    (tmp_path / "starter.yaml").write_text(run("policy", "starter").stdout)
    assert run("policy", "check", "starter.yaml").stdout == "starter.yaml: 19 rules, no errors\n"
    assert "rules" in json.loads(run("policy", "schema").stdout)["properties"]


def test_every_answer_comes_as_json_too(run: Run, done: str) -> None:
    assert json.loads(run("status", done, "--json").stdout)["status"] == "succeeded"
    listed = json.loads(run("list", "--json", "--tag", "team=cli").stdout)
    assert [one["id"] for one in listed] == [done]
    assert json.loads(run("compare", done, done, "--json").stdout)["same_base"] is True
    assert json.loads(run("report", done, "--json").stdout)["analysis_id"] == done
    events = [json.loads(line) for line in run("watch", done, "--json").stdout.splitlines()]
    assert events[-1]["event"] == "done"
    inspected = json.loads(run("inspect", done, "the film is good", "--json").stdout)
    assert inspected["texts"][0]["text"] == "the film is good"
    absent = run("status", "an_" + "a" * 26, "--json")
    assert (absent.returncode, json.loads(absent.stderr)["type"]) == (3, "urn:layerdrift:not-found")


def test_a_name_is_no_markup(run: Run, inputs: Path) -> None:
    analysis = run("submit", *pair(inputs), "--seed", "9", "--name", "v7 [/final] [red]").stdout.strip()
    for command in (("status", analysis), ("list", "--name", "final")):
        found = run(*command)
        assert found.returncode == 0, found.stderr
        assert "v7 [/final] [red]" in found.stdout
    run("cancel", analysis)


def test_people_get_tables(run: Run, done: str) -> None:
    assert "2 block 2" in run("report", done).stdout
    assert "resolve" in run("status", done).stdout
    assert done in run("list").stdout
    assert "→" in run("compare", done, done).stdout
    assert "film" in run("inspect", done, "-", input="the film is good\n").stdout
    assert "CKA" in run("report", done, "-f", "md").stdout
    assert run("watch", done).stderr.splitlines()[-1].startswith("report succeeded (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "--base", "no/where", "--tuned", "s3://b/t", "--dataset", "s3://b/d.csv"],
         "it is not a supported URI"),
        (["submit", "--base", "hf://a/b"], "dataset: this field is required"),
        (["submit", "--set", "analysis.sae.k=0", "--base", "s3://b/c", "--tuned", "s3://b/d", "--dataset", "s3://b/e.csv"],
         "analysis.sae.k: must be at least 1; it is 0"),
        (["submit", "--tag", "nothing", "--base", "s3://b/c"], "--tag nothing: write key=value"),
        (["review", "--base", "s3://b/c", "-p", "absent.yaml"], "absent.yaml"),
        (["review", "--base", "s3://b/c", "--junit", "absent/out.xml"],
         "absent does not exist; create the folder first"),
        (["report"], "Missing argument"),
        (["no-such-command"], "No such command"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_exits_with_2_and_says_why(run: Run, arguments: list[str], message: str) -> None:
    found = run(*arguments)
    assert found.returncode == 2
    assert message in found.stderr


def test_a_service_that_is_away_a_job_that_fails_and_a_timeout_have_codes_of_their_own(
    run: Run, inputs: Path, tmp_path: Path
) -> None:
    away = run("list", "--url", nowhere())
    assert away.returncode == 3
    assert "could not be reached" in away.stderr
    wide = save_model(tiny_bert(0, hidden=16), tmp_path / "wide")
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    arguments = pair(inputs)
    arguments[arguments.index("--tuned") + 1] = str(wide)
    failed = run("review", *arguments)
    assert failed.returncode == 3
    assert "failed in stage" in failed.stderr
    late = run("review", *pair(inputs), "--seed", "7", "--timeout", "0")
    assert late.returncode == 4
    assert "timed out after 0 s" in late.stderr
    listed = json.loads(run("list", "--json", "-n", "1").stdout)[0]
    assert listed["request"]["seed"] == 7
    run("cancel", listed["id"])


def test_ctrl_c_leaves_the_analysis_and_says_how_to_come_back(stack: Stack, inputs: Path, tmp_path: Path) -> None:
    given = options(stack, tmp_path)
    with_autoencoders = [one for one in pair(inputs) if one != "--no-sae"]  # so that it takes some seconds
    arguments = command("review", *with_autoencoders, "--seed", "8", "--set", "analysis.sae.tokens=20000")
    given.pop("check")
    given.pop("capture_output")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given) as review:
        assert review.stderr is not None
        analysis = next(line.split()[0] for line in review.stderr if line.startswith("an_"))
        time.sleep(0.5)
        review.send_signal(signal.SIGINT)
        said = review.stderr.read()
        assert review.wait(30) == 130
    assert f"layerdrift cancel {analysis}" in said
    waited = subprocess.run(command("wait", analysis), **options(stack, tmp_path))
    assert waited.returncode == 0, waited.stderr


def nowhere() -> str:
    return f"http://{LOOPBACK}:{choose({'nobody': 0})['nobody']}"
