"""What a tuned model's metric is made of, text by text, so that models can be compared on the texts they share."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from backends.tables.rows import Row

ScoreName = Literal["accuracy", "answers_perplexity", "perplexity"]

SCHEMA: Final = pa.schema([("text", pa.string()), ("unit", pa.int64()), ("sum", pa.float64()), ("count", pa.float64())])
"""text: a hash of the text, its pair and its label. unit: of texts that are alike. sum: right answers, or negative
log-likelihoods in nats; count: of answers, or tokens."""


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """Sums and counts of N texts, [N] each; their ratio, or its exponential, is the metric.

    texts: hashes. units: numbers; a text by itself is a unit.
    """

    name: ScoreName
    texts: tuple[str, ...]
    units: tuple[int, ...]
    sums: tuple[float, ...]
    counts: tuple[float, ...]

    def parquet(self) -> bytes:
        """As a file."""
        columns = {"text": self.texts, "unit": self.units, "sum": self.sums, "count": self.counts}
        table = pa.table({name: list(values) for name, values in columns.items()}, schema=SCHEMA)
        target = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"metric": self.name}), target)
        return target.getvalue()

    @classmethod
    def read(cls, body: bytes) -> TextScores:
        """From a file."""
        table = pq.read_table(io.BytesIO(body))
        name: ScoreName = table.schema.metadata[b"metric"].decode()
        columns = {column: tuple(table[column].to_pylist()) for column in SCHEMA.names}
        return cls(
            name=name, texts=columns["text"], units=columns["unit"], sums=columns["sum"], counts=columns["count"]
        )


def hashes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Of each row's text, pair and label: 16 characters, the same wherever the row stands."""
    return tuple(hashlib.sha256(json.dumps([row.text, row.pair, row.label]).encode()).hexdigest()[:16] for row in rows)
