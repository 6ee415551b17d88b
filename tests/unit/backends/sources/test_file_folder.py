from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.sources import file_folder
from backends.sources.file_folder import Folder, within


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def names(folder: Folder) -> list[str]:
    return [file.name for file in folder.files()]


def test_files_and_folders_are_told_apart_and_sorted(root: Path) -> None:
    for name in ("b.json", "a.json", ".DS_Store"):
        (root / name).write_text("x")
    for name in ("runs", "best", ".git"):
        (root / name).mkdir()
    folder = Folder(root, [root])
    assert (names(folder), folder.folders()) == (["a.json", "b.json"], ["best", "runs"])


def test_a_file_that_is_written_again_has_another_version_though_its_size_is_the_same(root: Path) -> None:
    (root / "a").write_text("one")
    os.utime(root / "a", ns=(0, 1_000_000_001))
    (before,) = Folder(root, [root]).files()
    os.utime(root / "a", ns=(0, 1_000_000_002))
    (after,) = Folder(root, [root]).files()
    assert (before.size, after.size) == (3, 3)
    assert before.version != after.version


def test_links_are_followed_where_they_lead_under_a_root_and_not_shown_elsewhere(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights").write_text("allowed")
    (tmp_path / "secret").write_text("no")
    for link, target in [
        ("allowed", other / "weights"),
        ("out", tmp_path / "secret"),
        ("up", root / ".." / "secret"),
        ("loop", root / "loop"),
        ("dangling", root / "absent"),
        ("folder", other),
        ("outside", tmp_path),
    ]:
        os.symlink(target, root / link)
    folder = Folder(root, [root, other])
    assert (names(folder), folder.folders()) == (["allowed"], ["folder"])
    assert names(folder.inside("folder")) == ["weights"]
    assert names(Folder(root, [root])) == []


def test_a_single_file_is_shown_alone_even_if_it_is_named_like_junk(root: Path) -> None:
    for name in ("a.csv", "b.csv", "._c.csv"):
        (root / name).write_text(name)
    assert names(Folder(root, [root], only="b.csv")) == ["b.csv"]
    assert names(Folder(root, [root], only="._c.csv")) == ["._c.csv"]
    assert names(Folder(root, [root], only="absent.csv")) == []
    (root / "folder.csv").mkdir()
    assert names(Folder(root, [root], only="folder.csv")) == []


def test_a_single_file_that_is_a_link_out_of_the_roots_is_not_shown(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("no")
    os.symlink(tmp_path / "secret.csv", root / "a.csv")
    assert names(Folder(root, [root], only="a.csv")) == []


def test_names_that_would_break_a_line_are_not_shown(root: Path) -> None:
    (root / "two\nlines").write_text("x")
    (root / "naïve 🎬").write_text("x")
    assert names(Folder(root, [root])) == ["naïve 🎬"]


def test_a_file_is_read_from_its_beginning_or_in_pieces(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_folder, "CHUNK_BYTES", 2)
    (root / "a").write_bytes(b"abcde")
    (root / "empty").write_bytes(b"")
    folder = Folder(root, [root])
    assert (folder.read("a", 3), folder.read("a", 9)) == (b"abc", b"abcde")
    assert list(folder.chunks("a")) == [b"ab", b"cd", b"e"]
    assert list(folder.chunks("empty")) == []


@pytest.mark.parametrize(
    ("path", "inside"),
    [("/data", True), ("/data/a/b", True), ("/more/a", True), ("/database", False), ("/", False), ("/da", False)],
)
def test_a_path_lies_in_a_root_by_its_folders_not_by_its_letters(path: str, inside: bool) -> None:
    assert within(Path(path), [Path("/data"), Path("/more")]) is inside
    assert not within(Path(path), [])
