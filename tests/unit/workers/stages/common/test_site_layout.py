from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.stages.common.site_layout import SiteLayout, joined


@given(st.integers(1, 40), st.booleans())
def test_every_site_belongs_to_one_layer_of_one_part(layers: int, again: bool) -> None:
    layout = SiteLayout(layers, again)
    parts = [layout.base_sites, layout.tuned_sites]
    if again:
        parts.append([layout.base_again(layer) for layer in range(layers)])
    assert sorted(site for part in parts for site in part) == list(range(layout.sites))
    for part in parts:
        assert [layout.layer(site) for site in part] == list(range(layers))
    assert [layout.of_tuned(site) for site in range(layout.sites)] == [site in parts[1] for site in range(layout.sites)]


def test_joined_rows_stand_where_the_layout_says() -> None:
    base, tuned = torch.zeros(3, 2), torch.ones(3, 2)
    layout = SiteLayout.of_pair(len(joined(base, tuned)))
    assert layout.layers == 3
    for layer in range(3):
        assert torch.equal(joined(base, tuned)[layout.base(layer)], base[layer])
        assert torch.equal(joined(base, tuned)[layout.tuned(layer)], tuned[layer])


def test_a_pair_has_as_many_sites_of_either_model() -> None:
    with pytest.raises(ValueError, match="7 sites"):
        SiteLayout.of_pair(7)


def test_a_part_that_is_not_there_has_no_sites() -> None:
    with pytest.raises(ValueError, match="no second set"):
        SiteLayout(3).base_again(0)
