from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy import lock


def entry(name: str, version: str = "1.0") -> str:
    return f"{name}=={version} \\\n    --hash=sha256:{name}1 \\\n    --hash=sha256:{name}2\n"


@pytest.mark.parametrize(
    ("hashed", "versions", "expected"),
    [
        (entry("a") + entry("b"), "a==1.0\nb==1.0\n", entry("a") + entry("b")),
        (entry("a") + entry("nvidia-cuda") + entry("b"), "b==1.0\na==1.0\n", entry("a") + entry("b")),
        (entry("typing-extensions"), "Typing_Extensions==1.0\n", entry("typing-extensions")),
        (entry("ruamel-yaml"), "ruamel.yaml==1.0\n", entry("ruamel-yaml")),
        ("# by a tool\n\n" + entry("a") + "\n# unsafe\n" + entry("b"), "a==1.0\nb==1.0", entry("a") + entry("b")),
        (entry("a"), "# a comment\n\na==1.0\n-e .\n", entry("a")),
        ("", "", ""),
    ],
    ids=["all", "dependency", "case", "dots", "comments", "other lines", "nothing"],
)
def test_the_lock_has_the_packages_that_are_named_and_no_others(hashed: str, versions: str, expected: str) -> None:
    assert lock.only(hashed, versions) == expected


def test_a_package_without_hashes_is_an_error_and_no_shorter_lock() -> None:
    with pytest.raises(SystemExit, match="no hashes of b, c-d"):
        lock.only(entry("a"), "a==1.0\nC_d==1.0\nb==1.0\n")


def test_names_that_begin_alike_are_told_apart() -> None:
    assert lock.only(entry("torch") + entry("torchvision"), "torch==1.0\n") == entry("torch")


def test_the_lock_is_written_from_what_pip_tools_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions, target = tmp_path / "versions.txt", tmp_path / "requirements.lock"
    versions.write_text("a==1.0\n")

    def run(command: list[str], check: bool) -> None:
        assert check
        assert command[-1] == str(versions)
        Path(command[command.index("--output-file") + 1]).write_text(entry("a") + entry("b"))

    monkeypatch.setattr(subprocess, "run", run)
    lock.main(versions, target)
    assert (target.read_text(), versions.read_text()) == (entry("a"), "a==1.0\n")


def test_where_pip_tools_fails_the_lock_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    versions, target = tmp_path / "versions.txt", tmp_path / "requirements.lock"
    versions.write_text("a==1.0\n")
    target.write_text("before")

    def run(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(subprocess.CalledProcessError):
        lock.main(versions, target)
    assert target.read_text() == "before"
