"""Every family of transformers that can be made small, block by block."""

from __future__ import annotations

import pytest

from tests.cases import layer_families

pytestmark = pytest.mark.slow


BESIDE = "depend on the texts that run beside it"
"""A text alone and among others: the same to the last bit where the processor's kernels sum in the same order."""


def alike(found: str, known: str) -> bool:
    """Whether two machines say the same of a family, but for rounding."""
    exact = [one.startswith("exact") or BESIDE in one for one in (found, known)]
    return found == known or all(exact)


@pytest.mark.timeout(1200)
def test_families_run_block_by_block_as_the_page_says() -> None:
    found = layer_families.families()
    known = layer_families.known()
    assert found.keys() == known.keys()
    assert {name: (one, known[name]) for name, one in found.items() if not alike(one, known[name])} == {}
    assert not [name for name, one in found.items() if one.startswith("differs")]
    assert sum(one.startswith("exact") for one in found.values()) >= 0.9 * len(found)
