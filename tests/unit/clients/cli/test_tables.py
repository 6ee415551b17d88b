"""The table of layers that commands print: what is known, on terminals of every width."""

from __future__ import annotations

import pytest
from rich.console import Console

from layerdrift.cli import tables
from tests.builders.records import record
from tests.builders.reports import report


def printed(width: int, known: bool = True) -> list[str]:
    found = report()
    if not known:
        missing = {"graft": None, "sae": None}
        found = found.model_copy(update={"layers": [one.model_copy(update=missing) for one in found.layers]})
    console = Console(width=width)
    with console.capture() as capture:
        console.print(tables.layers(found, width))
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 103, 104, 160])
def test_each_layer_is_a_line_and_no_number_is_cut(width: int) -> None:
    lines = printed(width)
    assert not any("…" in line for line in lines)
    assert [line.split()[0] for line in lines if line[:1].isdigit()] == [str(one.index) for one in report().layers]
    assert ("resolution" in " ".join(lines)) == (width >= 104)


def test_numbers_that_are_still_to_come_have_no_column() -> None:
    headings = " ".join(printed(80, known=False))
    assert "graft" not in headings
    assert "transfer" not in headings
    assert "resolution" in headings


def test_a_long_name_stays_on_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    one = record().analysis().model_copy(update={"name": "a name that is longer than any terminal " * 3})
    tables.say(*tables.analysis(one))
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.rstrip() == f"{one.id} {one.status}  {one.name}".rstrip()
