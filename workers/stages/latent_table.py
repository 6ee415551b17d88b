"""Every latent of every kept autoencoder as a row of a Parquet file: how often it fires, how strongly, where most."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from workers.analysis.sae import SaeStack
from workers.scratch import ActivationStore
from workers.stages.contexts import Contexts
from workers.stages.sae_files import NamedSae, named
from workers.stages.splicing import Dictionaries
from workers.stages.tick import Tick

EXAMPLES = 5
ENCODED_ROWS = 2048

_EXAMPLE = pa.struct(
    [
        ("activation", pa.float32()),
        ("before", pa.string()),
        ("token", pa.string()),
        ("after", pa.string()),
        ("text", pa.int32()),
        ("label", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("autoencoder", pa.string()),
        ("layer", pa.int32()),
        ("latent", pa.int32()),
        ("rate", pa.float32()),
        ("mean_activation", pa.float32()),
        ("examples", pa.list_(_EXAMPLE)),
    ]
)
"""autoencoder: base, tuned or warm-start. rate: share of the held-out tokens that it fires on. mean_activation: over
these, null where there are none. examples: the tokens that it is strongest on, strongest first, at most EXAMPLES."""


class Strongest(NamedTuple):
    """Of one autoencoder's F latents on N rows.

    rates, sums: [F], share of the rows that a latent fires on, and its sum over them. values, places: [E, F], the
    largest activations, descending, and the rows where they are; E is EXAMPLES, or N where that is less.
    """

    rates: Tensor
    sums: Tensor
    values: Tensor
    places: Tensor


def strongest(stack: SaeStack, site: int, rows: ActivationStore) -> Strongest:
    """Reads a site's rows once; rows of outlying norm count as silent."""
    latents = stack.b_enc.shape[1]
    fired, sums = torch.zeros(2, latents, dtype=torch.float64)
    values, places = torch.zeros(0, latents), torch.zeros(0, latents, dtype=torch.int64)
    read = 0
    for shard in rows.shards():
        for part in shard[site].split(ENCODED_ROWS):
            found = torch.where(stack.usual(site, part)[:, None], stack.encode(site, part), 0.0)
            fired += (found > 0).sum(0)
            sums += found.sum(0)
            top = found.T.contiguous().topk(min(EXAMPLES, len(part)), dim=1)
            values, places = torch.cat([values, top.values.T]), torch.cat([places, top.indices.T + read])
            values, order = values.topk(min(EXAMPLES, len(values)), dim=0)
            places = places.gather(0, order)
            read += len(part)
    return Strongest(fired / max(1, read), sums, values, places)


def write_latents(
    path: Path, dictionaries: Dictionaries, rows: ActivationStore, contexts: Contexts, tick: Tick
) -> None:
    """Writes the file, a row group for each autoencoder; the rows are held-out ones, base sites before tuned ones."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for sae in named(dictionaries):
            tick(1.0, f"writing down the latents of {sae.name}")
            writer.write_table(_table(sae, rows, contexts))


def _table(sae: NamedSae, rows: ActivationStore, contexts: Contexts) -> Any:
    found = strongest(sae.stack, sae.site, rows)
    count = len(found.rates)
    means = found.sums / (found.rates * rows.rows)
    examples = [
        [
            {"activation": value, **contexts.words(row)._asdict()}
            for value, row in zip(values, places, strict=True)
            if value > 0
        ]
        for values, places in zip(found.values.T.tolist(), found.places.T.tolist(), strict=True)
    ]
    columns = {
        "autoencoder": [sae.name.split("/")[0]] * count,
        "layer": [sae.layer] * count,
        "latent": list(range(count)),
        "rate": found.rates.tolist(),
        "mean_activation": [mean if rate else None for mean, rate in zip(means.tolist(), found.rates, strict=True)],
        "examples": examples,
    }
    return pa.table(columns, schema=SCHEMA)
