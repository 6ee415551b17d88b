"""`make bench`: what it takes to look for what a fine-tune taught, beside the comparison's forward passes.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import logging

from tests.benchmarks.document import publish
from tests.benchmarks.organisms import Ground, grounded
from tests.benchmarks.sae_contenders import peak_mb
from tests.benchmarks.scale_models import lora_of
from workers.models.loading import load_body
from workers.models.texts import batches
from workers.models.tokenizers import load_tokenizer
from workers.stages.common.moment_accumulator import BATCH_TEXTS, BATCH_TOKENS

TEXTS, REPEATS = 2_000, 3
"""Of the default comparison, and runs that take turns."""


def main() -> None:
    """Prints and publishes the figures."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        ground = grounded(Path(folder))
        adapter = lora_of(ground.base)
        passes, searches, tokens = list[float](), list[float](), 0
        for _ in range(REPEATS):
            seconds, tokens = _two_passes(ground)
            passes.append(seconds)
            started = time.monotonic()
            ground.searched(adapter)
            searches.append(time.monotonic() - started)
    forward, search = statistics.median(passes), statistics.median(searches)
    publish(
        "What it learned (`make bench`)",
        f"""
SmolLM2-135M-Instruct and a LoRA, default settings: 2,000 tokens of movie reviews and 48 completions of 24 tokens.
Beside two forward passes in float32 over the {TEXTS:,} texts that a comparison reads by default,
{tokens:,} tokens. Median of {REPEATS} runs that take turns; peak of the process that does both.

| | |
|---|---|
| two forward passes of the comparison | {forward:.1f} s |
| what it learned | {search:.1f} s ({search / forward:.2f} times) |
| peak memory | {peak_mb():,} MB |
""",
    )
    print(json.dumps({"forward_s": round(forward, 2), "learned_s": round(search, 2), "ratio": search / forward}))


def _two_passes(ground: Ground) -> tuple[float, int]:
    """Seconds, and tokens of one of them."""
    model, tokenizer = (
        load_body(ground.base, "/base/uri", torch.device("cpu")),
        load_tokenizer(ground.base, "/base/uri"),
    )
    texts = [*ground.analysed, *ground.generic][:TEXTS]
    read = list(batches(tokenizer, texts, BATCH_TEXTS, 128, BATCH_TOKENS))
    tokens = sum(int(batch.attention_mask.sum()) for batch in read)
    with torch.inference_mode():
        started = time.monotonic()
        for batch in (*read, *read):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return time.monotonic() - started, tokens


if __name__ == "__main__":
    main()
