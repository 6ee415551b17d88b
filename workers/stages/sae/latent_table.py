"""Every latent of every kept autoencoder as a row of a Parquet file: how often it fires, how strongly, where most."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from workers.analysis.sae import SaeStack
from workers.scratch import ActivationStore
from workers.stages.common.progress import OnProgress
from workers.stages.extract.contexts import Contexts
from workers.stages.sae.files import NamedSae, named
from workers.stages.sae.findings import Dictionaries
from workers.stages.sae.latents import ENCODED_ROWS, EXAMPLES

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
"""autoencoder: base, tuned or warm-start. rate: share of the held-out tokens of usual norm that it fires on.
mean_activation: over these, null where there are none. examples: the tokens that it is strongest on, strongest
first, at most EXAMPLES. Activations are those that the kept file gives for the raw states."""


class Strongest(NamedTuple):
    """Of one autoencoder's F latents on N rows.

    rates, means: [F], share of the usual rows that a latent fires on, and its mean over these; NaN where it never does.
    values, places: [E, F], the largest activations, descending, and the rows where they are; E is EXAMPLES, or N where
    that is less. Activations are in the units of the raw rows.
    """

    rates: Tensor
    means: Tensor
    values: Tensor
    places: Tensor


def strongest(stack: SaeStack, site: int, rows: ActivationStore) -> Strongest:
    """Reads a site's rows once; rows of outlying norm do not count."""
    latents = stack.b_enc.shape[1]
    fired, sums = torch.zeros(2, latents, dtype=torch.float64)
    values, places = torch.zeros(0, latents), torch.zeros(0, latents, dtype=torch.int64)
    read = inlier_count = 0
    for shard in rows.shards():
        for part in shard[site].split(ENCODED_ROWS):
            inliers = stack.inliers(site, part)
            found = torch.where(inliers[:, None], stack.encode(site, part) * stack.scale[site], 0.0)
            inlier_count += int(inliers.sum())
            fired += (found > 0).sum(0)
            sums += found.sum(0)
            top = found.T.contiguous().topk(min(EXAMPLES, len(part)), dim=1)
            values, places = torch.cat([values, top.values.T]), torch.cat([places, top.indices.T + read])
            values, order = values.topk(min(EXAMPLES, len(values)), dim=0)
            places = places.gather(0, order)
            read += len(part)
    return Strongest(fired / max(1, inlier_count), sums / fired, values, places)


def write_latents(
    path: Path, dictionaries: Dictionaries, rows: ActivationStore, contexts: Contexts, on_progress: OnProgress
) -> None:
    """Writes the file, a row group for each autoencoder; the rows are held-out ones, base sites before tuned ones."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for sae in named(dictionaries):
            on_progress(1.0, f"storing the latents of {sae.name}")
            writer.write_table(_table(sae, rows, contexts))


def _table(sae: NamedSae, rows: ActivationStore, contexts: Contexts) -> Any:
    found = strongest(sae.stack, sae.site, rows)
    count = len(found.rates)
    examples = [
        [
            {"activation": value, **contexts.around(row)._asdict()}
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
        "mean_activation": [None if math.isnan(mean) else mean for mean in found.means.tolist()],
        "examples": examples,
    }
    return pa.table(columns, schema=SCHEMA)
