from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import PluginCollection
from mkdocs.structure.files import Files
from pydantic import BaseModel, Field

from backends.settings import Settings
from deploy.docs import reference


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    """A leaf.

    It has
    two paragraphs.
    """

    colour: Colour | None = Field(default=None, description="red | blue, if <any>")


class Tree(BaseModel):
    """A tree."""

    name: str
    height: float = Field(gt=0, le=100.5, description="metres")
    kind: Literal["oak", "ash"] = "oak"
    leaves: list[Leaf] = []
    by_name: dict[str, Leaf] = {}
    first: Leaf = Field(default_factory=Leaf)
    age: Annotated[int, Field(ge=1)] | None = None
    note: str = ""


@pytest.fixture(scope="module")
def page() -> str:
    return reference.models("Trees", "What a tree is.", Tree)


def row(page: str, name: str) -> list[str]:
    """The cells of a field's row, without its name."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    return line.removeprefix(f"| `{name}` | ").removesuffix(" |").split(" | ")


def test_a_page_has_a_section_for_every_model_that_can_be_reached_once(page: str) -> None:
    assert [line for line in page.splitlines() if line.startswith("#")] == ["# Trees", "## Tree", "## Leaf"]
    assert "A leaf.\n\nIt has two paragraphs." in page


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("name", ["string", "—", ""]),
        ("height", ["number > 0 ≤ 100.5", "—", "metres"]),
        ("kind", ["`oak`, `ash`", "`'oak'`", ""]),
        ("leaves", ["list of [Leaf](#leaf)", "empty", ""]),
        ("by_name", ["map to [Leaf](#leaf)", "empty", ""]),
        ("first", ["[Leaf](#leaf)", "its defaults", ""]),
        ("age", ["integer ≥ 1 or null", "`None`", ""]),
        ("note", ["string", "empty", ""]),
    ],
)
def test_a_field_is_told_with_its_type_range_and_default(page: str, name: str, cells: list[str]) -> None:
    assert row(page, name) == cells


def test_what_a_description_holds_breaks_no_table(page: str) -> None:
    (line,) = [line for line in page.splitlines() if line.startswith("| `colour` |")]
    assert line.endswith("| red \\| blue, if &lt;any> |")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The text of every page by its path, as mkdocs is given it."""
    config = MkDocsConfig()
    config.plugins = PluginCollection()
    config.plugins._current_plugin = "deploy/docs/reference.py"  # as mkdocs names the hook that it calls
    return {file.src_uri: file.content_string for file in reference.on_files(Files([]), config)}


def test_the_pages_are_added_under_reference(pages: dict[str, str]) -> None:
    names = ("report", "request", "policy", "study", "analysis", "api", "cli", "settings")
    assert set(pages) == {f"reference/{name}.md" for name in names}
    assert [name for name, text in pages.items() if not text.startswith("# ")] == []


def test_every_setting_is_told_by_the_name_of_its_variable(pages: dict[str, str]) -> None:
    page = pages["reference/settings.md"]
    assert page.count("| `LAYERDRIFT_") == len(Settings.model_fields)
    assert row(page, "LAYERDRIFT_PORT") == ["`8000`", "port of the API"]


def test_no_secret_of_the_environment_reaches_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERDRIFT_ADMIN_KEY", "a secret of twenty-four by")
    assert "twenty-four" not in reference.settings()


def test_every_command_and_option_is_told(pages: dict[str, str]) -> None:
    page = pages["reference/cli.md"]
    sections = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert {"layerdrift review", "layerdrift gate", "layerdrift keys create"} <= set(sections)
    assert len(sections) == len(set(sections))
    assert "| `--seed`" in page
    assert "| option | meaning |" in page


def test_every_call_is_told_with_what_it_can_answer(pages: dict[str, str]) -> None:
    page = pages["reference/api.md"]
    section = page.split("## GET /v1/analyses/{analysis_id}/report\n")[1].split("\n## ")[0]
    assert "| `accept` | header | string |" in section
    assert [f"| {status} |" in section for status in (200, 304, 404, 406, 409)] == [True] * 5
    assert "## DELETE /v1/keys/{key_id}" in page
