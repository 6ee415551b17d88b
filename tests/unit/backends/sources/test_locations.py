from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from backends.sources.locations import PinnedFile, Tree, is_shown


class Listed(Tree):
    """Files by their paths; `asked`: how often they were listed."""

    def __init__(self, **files: bytes) -> None:
        self._files = files
        self.asked = 0

    def every_file(self) -> Iterable[PinnedFile]:
        self.asked += 1
        return [PinnedFile(name=path, size=len(body), version="1") for path, body in self._files.items()]

    def read_path(self, path: str, length: int) -> bytes:
        return self._files[path][:length]

    def chunks_of_path(self, path: str) -> Iterator[bytes]:
        yield self._files[path]


def tree() -> Listed:
    paths = ["config.json", "b/weights", "b/deep/x", "a/x", "ab/x", ".git/config", "__MACOSX/b/x", "b/.DS_Store"]
    return Listed(**{path: path.encode() for path in paths})


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("model/config.json", True),
        ("gitmodel/a._b", True),
        ("...", True),
        ("model/.gitattributes", False),
        ("model/Thumbs.db", False),
        ("Desktop.ini", False),
        ("__MACOSX/model/config.json", False),
        ("._config.json", False),
        ("a//b", False),
        ("a/", False),
        ("/a", False),
        ("./a", False),
        ("../a", False),
        ("a/..", False),
        ("", False),
    ],
)
def test_what_a_system_left_or_leads_out_of_the_folder_is_not_shown(path: str, shown: bool) -> None:
    assert is_shown(path) is shown


@pytest.mark.parametrize(
    ("folder", "files", "folders"),
    [
        ("", ["config.json"], ["a", "ab", "b"]),
        ("b", ["weights"], ["deep"]),
        ("b/deep", ["x"], []),
        ("a", ["x"], []),  # and not what is in `ab`
        ("absent", [], []),
        (".git", ["config"], []),  # who asks for it by its name may have it
    ],
)
def test_a_folder_of_a_tree_shows_what_is_directly_in_it(folder: str, files: list[str], folders: list[str]) -> None:
    view = tree().inside(folder) if folder else tree()
    assert [file.name for file in view.files()] == files
    assert view.folders() == folders


def test_a_file_is_read_by_its_name_in_the_folder_however_the_folder_was_reached() -> None:
    for view in (tree().inside("b/deep"), tree().inside("b").inside("deep")):
        assert (view.read("x", 3), b"".join(view.chunks("x"))) == (b"b/d", b"b/deep/x")


def test_looking_into_a_folder_leaves_the_view_of_the_whole_as_it_is() -> None:
    whole = tree()
    whole.inside("b").files()
    assert [file.name for file in whole.files()] == ["config.json"]


def test_a_tree_is_listed_once_for_all_its_folders() -> None:
    whole = tree()
    for view in (whole, whole.inside("a"), whole.inside("b").inside("deep")):
        view.files()
        view.folders()
    assert whole.asked == 1
