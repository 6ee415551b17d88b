"""`make bench`: what the similarity measures cost beside two forward passes, and how often they cry wolf.

The last line printed is JSON.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import logging

from backends.tables.reading import Row
from deploy.embedded.demo_inputs import fetch
from deploy.embedded.stack import MEMORY_GIVEN_BACK
from layerdrift.contract.request import AnalysisRequest
from tests.benchmarks.document import publish
from tests.benchmarks.sae_contenders import peak_mb
from tests.builders.rounding import rounded
from workers.models.inliers import Inliers
from workers.models.loading import load_body
from workers.models.states import StateReader
from workers.models.structure import is_causal
from workers.models.texts import Batch, count_tokens, usable_length
from workers.models.tokenizers import load_tokenizer
from workers.stages.common.context import StageContext
from workers.stages.common.inputs import Checkpoint, Resolved, Split
from workers.stages.common.moment_accumulator import MomentAccumulator, TokenizationSpec, group_stores
from workers.stages.common.progress import NO_NUMBERS, Numbers
from workers.stages.compare.stage import compare
from workers.stages.extract.stage import extract

CPU = torch.device("cpu")
REPEATS = 5
TIMED_TOKENS = 100_000
MEMORY_TOKENS = (20_000, 200_000)
TIMES = "times"
IDENTITY_PAIRS, IDENTITY_TEXTS = 20, 100
INPUTS = Path("var/demo").resolve()


def main() -> None:
    """Prints and publishes the figures."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    inputs = fetch(INPUTS)
    if len(sys.argv) > 1:
        print(json.dumps(_times() if sys.argv[1] == TIMES else _peak_mb(int(sys.argv[1]))))
        return
    forward, measured, tokens = _in_process(TIMES)
    peaks = {count: _in_process(str(count)) for count in MEMORY_TOKENS}
    drifted, layers = false_positives(inputs.model, IDENTITY_PAIRS, IDENTITY_TEXTS)
    share = measured / forward - 1
    figures = {
        "forward_s": round(forward, 3),
        "with_measures_s": round(measured, 3),
        "peak_mb_20k": peaks[MEMORY_TOKENS[0]],
        "peak_mb_200k": peaks[MEMORY_TOKENS[1]],
    }
    publish(
        "Similarity measures (`make bench`)",
        f"""
All-MiniLM-L6-v2 (7 layers, 384 wide) against itself with noise on its weights, on {tokens:,} tokens of movie reviews;
all measures that stream (docs/numbers.md) in three views, with what the intervals need. Median of
{REPEATS} runs that take turns.

| | |
|---|---|
| two forward passes alone | {forward:.2f} s |
| with all measures | {measured:.2f} s ({share:+.1%}) |
| peak memory of the process, {MEMORY_TOKENS[0]:,} tokens | {peaks[MEMORY_TOKENS[0]]:,} MB |
| peak memory of the process, {MEMORY_TOKENS[1]:,} tokens | {peaks[MEMORY_TOKENS[1]]:,} MB |

False positives: {IDENTITY_PAIRS} pairs that differ by rounding alone (weights rounded to float16, to bfloat16, and
{IDENTITY_PAIRS - 2} times at random to one of the two nearest bfloat16), {IDENTITY_TEXTS} texts each: {drifted} of
{layers} layers were called drifted.
""",
    )
    print(f"the measures add {share:+.1%} to two forward passes over {tokens} tokens")
    print(f"false positives: {drifted} of {layers} layers of {IDENTITY_PAIRS} pairs")
    print(json.dumps(figures))


class Setting:
    """Two models that differ a little, and texts of so many tokens in all."""

    def __init__(self, tokens: int) -> None:
        inputs = fetch(INPUTS)
        self.base, self.tuned = (load_body(inputs.model, "/base/uri", CPU) for _ in range(2))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.tuned.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.02 * float(parameter.std(correction=0)) * noise)
        tokenizer = load_tokenizer(inputs.model, "/base/uri")
        states = StateReader.of(self.base, "/base/uri")
        self.tokenization = TokenizationSpec(
            tokenizer, usable_length(tokenizer, self.base, 128), is_causal(self.base), states
        )
        with inputs.reviews.open(encoding="utf-8", newline="") as stream:
            texts = [row["text"] for row in csv.DictReader(stream)]
        self.texts, self.tokens = [], 0
        for text, count in zip(texts, count_tokens(tokenizer, texts, self.tokenization.length), strict=True):
            if self.tokens >= tokens:
                break
            self.texts.append(text)
            self.tokens += count
        if self.tokens < tokens:
            raise SystemExit(f"the reviews have {self.tokens} tokens; {tokens} were asked for")

    def forward(self) -> None:
        """Both models over all texts, with their hidden states."""
        for _, batch in self.tokenization.grouped(self.texts):
            self._states(batch)

    def _states(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        read = self.tokenization.states.states
        return read(self.base, batch), read(self.tuned, batch)

    def measure(self) -> None:
        """The same, with moments of all views and of every group, and with the rule for outliers."""
        inliers = Inliers(self.tokenization.causal, *[torch.full((self.tokenization.states.layers,), 1e9)] * 2)
        with tempfile.TemporaryDirectory() as folder:
            accumulator = MomentAccumulator(self.tokenization.causal, 0, group_stores(Path(folder)))
            for group, batch in self.tokenization.grouped(self.texts):
                base, tuned = self._states(batch)
                accumulator.add(group, inliers.mark(batch, base, tuned), base, tuned)
            accumulator.moments()


def _times() -> tuple[float, float, int]:
    setting = Setting(TIMED_TOKENS)
    setting.measure()
    found: dict[str, list[float]] = {"forward": [], "measure": []}
    for _ in range(REPEATS):
        for name, run in (("forward", setting.forward), ("measure", setting.measure)):
            found[name].append(_seconds(run))
    return statistics.median(found["forward"]), statistics.median(found["measure"]), setting.tokens


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _in_process(what: str) -> Any:
    """What this benchmark prints of one thing alone, in a process that is set up as the worker is."""
    command = [sys.executable, "-m", "tests.benchmarks.measures", what]
    environment = {**os.environ, **MEMORY_GIVEN_BACK}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)


def _peak_mb(tokens: int) -> int:
    Setting(tokens).measure()
    return peak_mb()


def false_positives(model: Path, pairs: int, texts: int) -> tuple[int, int]:
    """How many layers are called drifted among pairs that rounding alone tells apart, and how many there are."""
    with fetch(INPUTS).reviews.open(encoding="utf-8", newline="") as stream:
        rows = [Row(row["text"], None) for row, _ in zip(csv.DictReader(stream), range(texts), strict=False)]
    request = AnalysisRequest.model_validate(
        {
            "base": {"uri": "file:///base"},
            "tuned": {"uri": "file:///tuned"},
            "dataset": {"uri": "file:///x.csv"},
            "analysis": {"sae": None, "probes": False},
        }
    )
    base = Checkpoint(model, "base", "0")
    tokenizer = load_tokenizer(model, "base")
    resolved = Resolved(base, None, tokenizer, 128, Split(rows, [], []), len(rows), "0", [])
    drifted = layers = 0
    for number in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            tuned = Path(folder) / "tuned"
            rounded(load_body(model, "/base/uri", CPU), number).save_pretrained(tuned)
            job = StageContext(request=request, folder=Path(folder), scratch_bytes=2**32, on_progress=_no_progress)
            context = job.with_pair(resolved, Checkpoint(tuned, "tuned", "1"))
            compared = compare(context, extract(context, None))
        drifted += sum(layer.drifted for layer in compared.layers)
        layers += len(compared.layers)
    return drifted, layers


def _no_progress(fraction: float, detail: str = "", numbers: Numbers = NO_NUMBERS) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    main()
