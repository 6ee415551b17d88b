"""Every family of transformers that can be made small, block by block."""

from __future__ import annotations

import pytest

from tests.cases import layer_families

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1200)
def test_families_run_block_by_block_as_the_page_says() -> None:
    found = layer_families.families()
    known = layer_families.known()
    same = {name: one.removesuffix(" but for rounding") for name, one in found.items()}  # that depends on the machine
    assert same == {name: one.removesuffix(" but for rounding") for name, one in known.items()}
    assert not [name for name, one in found.items() if one.startswith("differs")]
    assert sum(one.startswith("exact") for one in found.values()) >= 0.9 * len(found)
