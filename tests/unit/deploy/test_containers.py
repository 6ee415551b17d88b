"""Dockerfile and compose.yaml cannot be built everywhere; what they name is checked to exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.settings import Settings
from deploy.audit import report as audited
from deploy.lock import only

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
SETTINGS = {f"LAYERDRIFT_{name.upper()}" for name in Settings.model_fields}


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def test_every_file_that_is_copied_exists() -> None:
    sources = [source for line in instructions("COPY") for source in shlex.split(line)[:-1]]
    assert sources
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source in sources:
        assert (ROOT / source).exists(), source
        assert Path(source).parts[0] not in ignored, source


@pytest.mark.parametrize("command", instructions("CMD"))
def test_every_command_starts_a_module_that_exists(command: str) -> None:
    argv = json.loads(command)
    assert argv[:2] == ["python", "-m"]
    assert importlib.util.find_spec(argv[2]) is not None
    if argv[2] == "celery":
        module = argv[argv.index("-A") + 1]
        assert hasattr(importlib.import_module(module), "app")


def test_extras_that_are_installed_are_declared() -> None:
    import tomllib

    declared = {
        place: set(tomllib.loads((ROOT / place / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        for place in (".", "clients")
    }
    asked = re.findall(r"'(\./clients|\.)\[([a-z,]+)\]'", DOCKERFILE)
    assert asked
    for place, extras in asked:
        assert set(extras.split(",")) <= declared["." if place == "." else "clients"]


def test_the_service_image_does_not_ask_for_torch() -> None:
    stage = DOCKERFILE.split(" AS service")[1].split("FROM ")[0]
    assert "worker" not in stage
    assert "torch" not in stage
    assert "pip install --no-index --find-links /wheels ./clients '.[service,otel]'" in stage


def test_images_install_what_the_lock_has_hashes_of() -> None:
    downloads = re.findall(r"pip download (.*)", DOCKERFILE)
    assert [line.split()[:4] for line in downloads] == [
        ["--no-deps", "--require-hashes", "-r", "requirements.lock"],
        ["-c", "constraints.txt", "torch", "-d"],
    ]
    installs = re.findall(r"pip install (.*)", DOCKERFILE)
    assert len(installs) == 3
    assert all(line.startswith("--no-index --find-links /wheels") for line in installs)
    entries = re.split(r"\n(?=[a-z])", (ROOT / "requirements.lock").read_text().strip())
    assert len(entries) > 100
    assert all(re.match(r"[a-z0-9._-]+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", one) for one in entries)
    assert not [one for one in entries if one.startswith(("torch==", "nvidia-"))]


def test_the_lock_keeps_what_it_is_asked_for_alone() -> None:
    def entry(name: str) -> str:
        return f"{name} \\\n    --hash=sha256:1\n"

    hashed = entry("a-b==1") + entry("torch==2") + "# a comment\n\n" + entry("setuptools==3")
    assert only(hashed, "A_b==1\nsetuptools==3\n") == entry("a-b==1") + entry("setuptools==3")
    with pytest.raises(SystemExit, match="no hashes of d"):
        only(hashed, "d==1\n")


def test_an_audit_that_asked_nobody_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    skipped: dict[str, object] = {"name": "a", "skip_reason": "not found"}
    clean: dict[str, object] = {"name": "b", "version": "1", "vulns": []}
    bad: dict[str, object] = {"name": "c", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
    assert (audited([skipped]), capsys.readouterr().out) == (
        0,
        "not audited: the data base of vulnerabilities could not be reached\n",
    )
    assert (audited([skipped, clean]), capsys.readouterr().out) == (0, "1 of 2 packages audited, 0 vulnerabilities\n")
    assert audited([clean, bad]) == 1
    assert "c 1: CVE-1, mended in 2" in capsys.readouterr().out


def test_images_are_pinned_to_a_version() -> None:
    images = [line.split(" AS ")[0] for line in instructions("FROM") if not line.startswith(("base", "wheels"))]
    images += [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    assert len(images) == 4
    for image in images:
        assert re.search(r":\d+(\.\d+)+", image), image


def test_compose_builds_targets_that_there_are_and_sets_settings_that_there_are() -> None:
    targets = {match for line in instructions("FROM") for match in re.findall(r"AS (\w+)", line)}
    built = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
    assert set(built) == {"service", "worker", "worker-gpu"}
    for service in built.values():
        assert service["build"]["target"] in targets
        assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
        assert set(service["environment"]) <= SETTINGS
        assert set(service["depends_on"]) <= set(COMPOSE["services"])


def test_compose_publishes_the_api_and_the_object_store_on_loopback_alone() -> None:
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"service": ["127.0.0.1:8000:8000"], "seaweedfs": ["127.0.0.1:8333:8333"]}


def test_compose_lets_nobody_in_without_a_key() -> None:
    given = COMPOSE["services"]["service"]["environment"]
    assert given["LAYERDRIFT_HOST"] == "0.0.0.0"
    assert given["LAYERDRIFT_ADMIN_KEY"].startswith("${LAYERDRIFT_ADMIN_KEY:?")


def test_compose_mounts_volumes_that_are_declared() -> None:
    volumes = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", [])]
    mounted = {volume.split(":")[0] for volume in volumes}
    named = {source for source in mounted if re.fullmatch(r"[a-z]+", source)}
    assert named == set(COMPOSE["volumes"])


def test_the_embedded_binary_takes_the_options_compose_gives() -> None:
    """SeaweedFS here is the version that compose names, so its options can be tried."""
    import subprocess
    import sys

    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert weed is not None
    version = subprocess.run([weed, "version"], capture_output=True, text=True, check=True).stdout
    assert COMPOSE["services"]["seaweedfs"]["image"].rpartition(":")[2] in version
    options = subprocess.run([weed, "mini", "-h"], capture_output=True, text=True, check=False)
    for option in COMPOSE["services"]["seaweedfs"]["command"][1:]:
        assert f"\n  {option.split('=')[0]}" in options.stdout + options.stderr
