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

from layerdrift.backends.settings import Settings

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
    lines = [line for line in stage.splitlines() if line.startswith("RUN pip")]
    assert lines == ["RUN pip install -c constraints.txt -c requirements.lock './clients[backends,otel]' '.[service]'"]


def test_images_are_pinned_to_a_version() -> None:
    images = [line.split(" AS ")[0] for line in instructions("FROM") if not line.startswith("base")]
    images += [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    assert len(images) == 3
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
