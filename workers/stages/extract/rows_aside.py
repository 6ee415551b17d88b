"""Rows for autoencoders, set aside while layers are measured one after another."""

from __future__ import annotations

from collections.abc import Iterable

from workers.analysis.streams import Rows
from workers.models.texts import Batch
from workers.site_rows import SiteRows
from workers.stages.extract.heldout_rows import HeldoutRows


class RowsAside:
    """Rows of compared tokens at the layers that get autoencoders, site after site."""

    def __init__(self, heldout: HeldoutRows, width: int) -> None:
        self._heldout = heldout
        self._places = {layer: place for place, layer in enumerate(heldout.layers)}
        self._sites = SiteRows(heldout.rows.folder.with_name("heldout-sites"), 2 * len(self._places), width)
        self._count = 0

    def add(self, layer: int, batch: int, rows: Rows) -> None:
        """Takes the token rows [1, N, D] of a batch of both models, until there are enough; batch 0 begins a layer."""
        place = self._places.get(layer)
        if place is None:
            return
        sites = (place, len(self._places) + place)
        if not batch:
            self._count = 0
            for site in sites:
                self._sites.restart(site)
        if self._count < self._heldout.rows.max_rows:
            self._count += rows.n
            for site, side in zip(sites, rows, strict=True):
                self._sites.add(site, side[0])

    def finish(self, batches: Iterable[Batch]) -> None:
        """Once all layers are there: stores the rows, and which tokens of the batches they are."""
        self._sites.into(self._heldout.rows)
        for batch in batches:
            if len(self._heldout.contexts) >= self._heldout.rows.max_rows:
                return
            self._heldout.contexts.add(batch)
