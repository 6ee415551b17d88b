"""The documentation does what it says: the tutorial's commands, the Python examples, the site with all its links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from junitparser import Failure, JUnitXml

from deploy.embedded.demo_inputs import fetch, fetch_chat
from deploy.embedded.stack import Stack
from layerdrift import policies
from tests.builders.texts import make_texts

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STEP = re.compile(r"<!-- exit (\d) -->\n```bash\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
YAML = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE)

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(stack: Stack, tmp_path: Path) -> Shell:
    """Runs a program in a folder as a reader would, with the environment's scripts on the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "LAYERDRIFT_URL": stack.url, "NO_COLOR": "1"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)

    def run(*command: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=timeout
        )

    return run


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_the_tutorial_ends_in_a_green_a_red_and_a_yellow_gate(shell: Shell, tmp_path: Path) -> None:
    inputs = fetch(ROOT / "var" / "demo")
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "demo").symlink_to(inputs.model.parents[1])
    steps = STEP.findall((DOCS / "tutorial.md").read_text())
    assert [code for code, _ in steps] == ["0", "1", "0", "0", "1"]
    said = []
    for code, commands in steps:
        done = shell("bash", "-eo", "pipefail", "-c", commands)
        assert done.returncode == int(code), f"{commands}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    assert "PASS Policy passed." in said[0]
    assert re.search(r"fail +early-layers-kept .*\n.*below 0\.9: layers\[[12]\]", said[1])
    assert "WARN" in said[2]
    assert "both checkpoints are the same files" in said[2]
    verdicts = {
        name: JUnitXml.fromfile(str(tmp_path / "var" / "reviews" / f"{name}.xml"))
        for name in ("sound", "wrecked", "itself")
    }
    assert [suites.failures for suites in verdicts.values()] == [0, 4, 0]
    cases = [case for suite in verdicts["wrecked"] for case in suite]  # those of a skipped rule have a result too
    failed = [case.name for case in cases if any(isinstance(one, Failure) for one in case.result)]
    early = ["early-layers-kept", "early-features-kept", "early-layers-not-scaled"]
    assert failed == [*early, "better-than-majority-class"]
    assert re.search(r"fail +early-layers-kept .*\n.*below 0\.9999: layers\[", said[4])
    assert (tmp_path / "var" / "reviews" / "wrecked.html").read_text().startswith("<!doctype html>")


@pytest.mark.timeout(2700)
@pytest.mark.slow
def test_the_tutorial_for_language_models_fails_each_model_for_its_own_reason(shell: Shell, tmp_path: Path) -> None:
    inputs = fetch_chat(ROOT / "var" / "demo-llm")
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "demo-llm").symlink_to(inputs.model.parents[1])
    steps = STEP.findall((DOCS / "tutorial-language.md").read_text())
    assert [code for code, _ in steps] == ["0", "1", "1"]
    for code, commands in steps:
        done = shell("bash", "-eo", "pipefail", "-c", commands, timeout=900)
        assert done.returncode == int(code), f"{commands}\n{done.stdout}\n{done.stderr}"
    failed = {}
    for name in ("sound", "wrecked", "endless"):
        suites = JUnitXml.fromfile(str(tmp_path / "var" / "reviews" / f"chat-{name}.xml"))
        cases = [case for suite in suites for case in suite]
        failed[name] = [case.name for case in cases if any(isinstance(one, Failure) for one in case.result)]
    assert failed["sound"] == []
    assert "answers-no-worse" in failed["wrecked"]
    assert "learnt-to-stop" not in failed["wrecked"] or len(failed["wrecked"]) > 1
    assert failed["endless"] == ["learnt-to-stop"]


def test_the_python_examples_run(shell: Shell, tmp_path: Path, base_folder: Path, noised_folder: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(base_folder)
    (tmp_path / "models" / "tuned").symlink_to(noised_folder)
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in make_texts(60)))
    examples = PYTHON.findall((DOCS / "how-to" / "python.md").read_text())
    assert len(examples) == 4
    outputs = []
    for example in examples:
        done = shell(sys.executable, "-c", example)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0].count("\n") == 4
    assert "done {'status': 'succeeded'" in outputs[1]
    assert "early-layers-kept" in outputs[2]
    assert re.fullmatch(r"\[\d+, \d+\]\n", outputs[3])


def test_the_policies_of_the_documentation_can_be_read() -> None:
    examples = [block for block in YAML.findall((DOCS / "how-to" / "policy.md").read_text()) if "path:" in block]
    assert len(examples) == 5
    for example in examples:
        policies.load(example if "rules:" in example else f"rules:\n{example}")


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "reference" / "report.html").read_text()
    assert "excess_drift" in page
    assert 'id="layer"' in page
    assert "layerdrift review" in (tmp_path / "reference" / "cli.html").read_text()
    assert "LAYERDRIFT_MLFLOW_URL" in (tmp_path / "reference" / "settings.html").read_text()


def test_every_make_target_of_the_documents_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named: set[str] = set()
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for line in re.findall(r"(?:^|`)make ([a-z -]+)(?:`|$)", path.read_text(), re.MULTILINE):
            named |= set(line.split())
    assert {"setup", "demo-inputs", "up"} <= named
    assert named <= targets
