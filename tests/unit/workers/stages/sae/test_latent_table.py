from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

from tests.builders.latents import LABELS, TEXTS, side, stored
from tests.builders.models import tiny_tokenizer
from workers.scratch import ActivationStore
from workers.stages.common.progress import NO_NUMBERS
from workers.stages.sae.findings import Dictionaries
from workers.stages.sae.latent_table import strongest, write_latents
from workers.stages.sae.latents import ENCODED_ROWS, EXAMPLES


def test_the_table_has_every_latent_with_the_tokens_it_is_strongest_on(tmp_path: Path) -> None:
    """One latent for each word: it fires where the word stands, in the tuned model twice as strongly."""
    rows, contexts, size = stored(tmp_path)
    stack = side(size, 0).stack
    write_latents(
        tmp_path / "latents.parquet",
        Dictionaries([0], stack, torch.zeros(2, size), stack, [[]], [[]], [torch.zeros(size, 2)]),
        rows,
        contexts,
        lambda fraction, detail="", numbers=NO_NUMBERS: None,
    )
    table = parquet.read_table(tmp_path / "latents.parquet").to_pylist()
    assert [(row["autoencoder"], row["layer"], row["latent"]) for row in table] == [
        (name, 0, latent) for name in ("base", "tuned", "warm-start") for latent in range(size)
    ]
    words = [word for text in TEXTS for word in text.split()]
    vocabulary = tiny_tokenizer(tmp_path).get_vocab()
    for row in table:
        word = next(word for word, index in vocabulary.items() if index == row["latent"])
        strength = 1.0 if row["autoencoder"] == "base" else 2.0
        assert row["rate"] == pytest.approx(words.count(word) / len(words))
        assert row["mean_activation"] == (strength if word in words else None)
        assert len(row["examples"]) == min(EXAMPLES, words.count(word))
        for example in row["examples"]:
            assert (example["token"], example["activation"]) == (word, strength)
            shown = f"{example['before']} {word} {example['after']}".replace("…", "").strip()
            assert shown in TEXTS[example["text"]]
            assert example["label"] == LABELS[example["text"]]


def test_the_strongest_are_found_over_all_parts_and_outlying_rows_do_not_count(tmp_path: Path) -> None:
    """Against sorting everything at once; the activations are in the units of the rows."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * ENCODED_ROWS + 100
    data = 2 * torch.rand(2, count, 6, generator=generator)
    data[1, 7] *= 1000
    inliers = torch.arange(count) != 7
    rows = ActivationStore(tmp_path / "rows", max_rows=count)
    for part in data.split(1000, dim=1):
        rows.add(part)
    stack = side(6, 1).stack
    stack.scale[:] = 2.0
    found = strongest(stack, 1, rows)
    read = torch.cat(list(rows.shards()), 1)[1].float()
    read[7] = 0
    latents = torch.where(read / 2 > 0.5, read, 0.0)
    expected = latents.sort(dim=0, descending=True).values[:EXAMPLES]
    torch.testing.assert_close(found.values, expected)
    torch.testing.assert_close(latents.gather(0, found.places), expected)
    torch.testing.assert_close(found.rates, (latents[inliers] > 0).double().mean(0))
    torch.testing.assert_close(found.means, latents.double().sum(0) / (latents > 0).sum(0), rtol=1e-5, atol=0)
