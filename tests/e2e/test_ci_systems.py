"""The GitHub Action's and GitLab template's scripts, run by bash on the running service as those systems would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from junitparser import JUnitXml

from deploy.embedded.stack import Stack
from layerdrift.integrations.comments import CHARTS_BRANCH
from tests.builders.texts import make_texts
from tests.code_hosts import TOKEN, CodeHost, code_host

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "clients/github-action/action.yml").read_text())
TEMPLATE: dict[str, Any] = yaml.safe_load((ROOT / "clients/gitlab/layerdrift.gitlab-ci.yml").read_text())
SECONDS = 240
POLICY = """
rules:
  - {id: late-layers, path: "layers[3].drift", max: 0.000001, message: the last layer moved}
"""


@pytest.fixture
def workspace(tmp_path: Path, base_folder: Path, noised_folder: Path) -> Path:
    """A checkout with a data set and a policy that the pair does not hold."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "texts.txt").write_text("\n".join(make_texts(60)) + "\n")
    (tmp_path / "base model").symlink_to(base_folder)
    (tmp_path / "tuned").symlink_to(noised_folder)
    return tmp_path


def environment(stack: Stack, **more: str) -> dict[str, str]:
    """Of a fresh runner: nothing of this process's but where programs are."""
    kept = {"HOME": os.environ["HOME"], "PYTHONPATH": os.pathsep.join(sys.path)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "LAYERDRIFT_URL": stack.url, "NO_COLOR": "1", **more}


def github(stack: Stack, workspace: Path, host: CodeHost, **inputs: str) -> subprocess.CompletedProcess[str]:
    """The action's script with the variables of GitHub Actions and of action.yml."""
    event = workspace / "event.json"
    event.write_text(json.dumps({"number": 7, "pull_request": {"number": 7}}))
    (workspace / "temp").mkdir(exist_ok=True)
    step = next(step for step in ACTION["runs"]["steps"] if step.get("id") == "review")
    given = {name: ACTION["inputs"][name].get("default", "") for name in ACTION["inputs"]} | inputs
    given |= {"url": stack.url, "token": TOKEN}
    env = {}
    for name, value in step["env"].items():
        asked = re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value)
        assert asked is not None, value
        env[name] = given[asked[1]]
    env |= {
        "GITHUB_ACTION_PATH": str(ROOT / "clients/github-action"),
        "GITHUB_API_URL": host.url,
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_EVENT_NAME": "pull_request",
        "GITHUB_EVENT_PATH": str(event),
        "GITHUB_STEP_SUMMARY": str(workspace / "summary.md"),
        "GITHUB_OUTPUT": str(workspace / "output"),
        "RUNNER_TEMP": str(workspace / "temp"),
    }
    return subprocess.run(
        ["bash", "-c", step["run"]],
        cwd=workspace,
        env=environment(stack, **env),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


INPUTS = {"base": "base model", "tuned": "tuned", "dataset": "texts.txt", "policy": "policy.yaml"}
ARGUMENTS = "--no-sae --set analysis.grafts=false --name 'pull request 7'"


def test_the_action_reviews_summarises_and_keeps_one_comment(stack: Stack, workspace: Path) -> None:
    with code_host("github") as host:
        host.comments[1] = "somebody's words"
        done = github(stack, workspace, host, **INPUTS, arguments=ARGUMENTS)
        assert done.returncode == 1, done.stderr
        output = dict(line.split("=") for line in (workspace / "output").read_text().split())
        assert output["decision"] == "fail"
        analysis = output["analysis-id"]
        summary = (workspace / "summary.md").read_text()
        assert summary.startswith("## ❌ Policy failed.")
        kept = {path.name for path in (workspace / "temp" / "layerdrift").iterdir()}
        assert kept == {"junit.xml", "summary.md", "report.html", "report.json", "drift.png", "verdict.json"}
        (suite,) = JUnitXml.fromfile(str(workspace / "temp/layerdrift/junit.xml"))
        assert (suite.name, suite.failures) == ("pull request 7", 1)
        assert set(host.comments) == {1, 2}
        assert host.comments[2].startswith("<!-- layerdrift:review -->\n## ❌")
        picture = f"https://github.com/o/r/blob/{CHARTS_BRANCH}/pull-7/{analysis}.png?raw=true"
        assert f"![Drift by layer]({picture})" in host.comments[2]
        assert host.files[f"pull-7/{analysis}.png"].startswith(b"\x89PNG")
        (workspace / "policy.yaml").write_text(POLICY.replace("0.000001", "2"))
        again = github(stack, workspace, host, **INPUTS, arguments=ARGUMENTS)
        assert again.returncode == 0, again.stderr
        assert set(host.comments) == {1, 2}
        assert "✅ Policy passed." in host.comments[2]
        host.contents_allowed = False
        assert github(stack, workspace, host, **INPUTS, arguments=ARGUMENTS).returncode == 0
        assert "The drift curve could not be stored" in host.comments[2]


def test_an_action_without_a_verdict_is_an_error_with_the_code_of_its_cause(stack: Stack, workspace: Path) -> None:
    with code_host("github") as host:
        done = github(stack, workspace, host, **INPUTS | {"tuned": "absent"})
        assert done.returncode == 2
        assert "::error title=layerdrift::the review did not come to a verdict (exit code 2)" in done.stdout
        assert host.comments == {}


def test_every_input_of_the_action_is_used_and_every_use_is_an_input() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(ACTION["runs"])))
    assert used == set(ACTION["inputs"])
    assert all("description" in one for one in ACTION["inputs"].values())


def test_the_gitlab_template_reviews_and_notes(stack: Stack, workspace: Path) -> None:
    job = TEMPLATE[".layerdrift-review"]
    assert job["artifacts"]["reports"]["junit"] == "layerdrift/junit.xml"
    request = {
        "base": {"uri": "base model"},
        "tuned": {"uri": "tuned"},
        "dataset": {"uri": "texts.txt"},
        "analysis": {"sae": None, "grafts": False},
    }
    (workspace / "request.yaml").write_text(yaml.safe_dump(request))
    with code_host("gitlab") as host:
        variables = job["variables"] | {
            "LAYERDRIFT_REQUEST": "request.yaml",
            "LAYERDRIFT_POLICY": "policy.yaml",
            "LAYERDRIFT_GITLAB_TOKEN": TOKEN,
            "CI_API_V4_URL": host.url,
            "CI_PROJECT_ID": "5",
            "CI_MERGE_REQUEST_IID": "7",
        }
        for _ in range(2):
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", "\n".join(job["script"])],
                cwd=workspace,
                env=environment(stack, **variables),
                capture_output=True,
                text=True,
                check=False,
                timeout=SECONDS,
            )
            assert done.returncode == 1, done.stderr
    assert list(host.comments) == [1]
    assert "![drift](/uploads/1/drift.png)" in host.comments[1]
    assert "the last layer moved" in host.comments[1]
    assert b"\x89PNG" in host.uploads[0]
    (suite,) = JUnitXml.fromfile(str(workspace / "layerdrift/junit.xml"))
    assert suite.failures == 1
