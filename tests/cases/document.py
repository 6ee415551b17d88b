"""docs/compatibility.md out of the cases, so that users can look up their checkpoint: `make compatibility`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from tests.cases import good_inputs, layer_families, of_a_kind, right_before, wrong_numbers
from tests.cases.case import Area, Case

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
CASES: list[Case] = [*wrong_numbers.CASES, *good_inputs.CASES, *of_a_kind.CASES, *right_before.CASES]
_HEAD = """# Supported inputs: models, adapters, formats

Made by `make compatibility` from the cases in `tests/cases`. Each is a tiny input that a test sends through the API.

- *supported*: compared as it is.
- *converted*: turned into a plain checkpoint first (an adapter is merged, a prefix taken off, weights dequantised).
- *warned*: compared, and the report says what to know.
- *refused*: a problem document names the place, what was found and what to change.

Other families work where their blocks can be found (one list of modules as long as the configured depth, or one block
that runs as often) and pass on states of one width. Any other model is refused with what was found.
"""


def page() -> str:
    """The page, an area after another."""
    parts = [_HEAD]
    for area in get_args(Area):
        rows = [case for case in CASES if case.area == area]
        if rows:
            parts.append(f"## {area[0].upper()}{area[1:]}\n")
            parts.append("| input | answer | to know |\n|---|---|---|")
            parts += [f"| {_cell(case.what)} | {case.answer} | {_cell(case.note)} |" for case in rows]
            parts.append("")
    parts += _families()
    return "\n".join(parts)


def _families() -> list[str]:
    """How the families of transformers that can be made small run where they are large."""
    found = layer_families.known()
    exact = sorted(name for name, one in found.items() if one == "exact")
    rounded = sorted(name for name, one in found.items() if one == "exact but for rounding")
    rows = [f"| {name} | {_cell(one)} |" for name, one in sorted(found.items()) if name not in {*exact, *rounded}]
    return [
        "## Large models: block by block or whole\n",
        "Pairs of large models run block by block ([decision 13](decisions/0013-layer-order.md)). Of "
        f"{len(found)} text families of transformers that can be made small, {len(exact)} give the states of the whole "
        "model to the last bit (`make layer-families` tries them). The others run whole:\n",
        "| family | why |\n|---|---|",
        *rows,
        "\nWhether a text has the same states alone and among others, to the last bit, depends on the processor: where "
        "it has, a family whose reason that is runs block by block. The worker finds out for every job.\n",
        f"\nExact: {', '.join(exact)}.\n",
        f"Exact but for rounding, which depends on where weights lie in memory: {', '.join(rounded)}.\n",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
