"""`make bench-two-jobs`: two equal analyses on one machine at once, beside one alone.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from deploy.embedded.demo_inputs import DemoInputs, fetch
from deploy.embedded.stack import Stack
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.benchmarks.document import publish

WAIT_SECONDS = 1_800.0
INPUTS = Path("var/demo").resolve()
REPEATS = 2


def main() -> None:
    """Prints and publishes the figures."""
    inputs = fetch(INPUTS)
    alone = _seconds(inputs, workers=1, jobs=1)
    together = _seconds(inputs, workers=2, jobs=2)
    one, two = statistics.median(alone), statistics.median(together)
    figures = {"one_s": round(one, 1), "two_s": round(two, 1), "ratio": round(two / one, 2)}
    publish(
        "Two jobs at once (`make bench-two-jobs`)",
        f"""
A fine-tune of all-MiniLM-L6-v2 on 200 movie reviews, compared with its base on 200 others, with autoencoders of 20,000
tokens. One alone has all cores; of two at once (LAYERDRIFT_WORKERS=2) each has its share. From the first POST to the
last end, median of {REPEATS} runs, each with another seed.

| | |
|---|---|
| one alone | {one:.1f} s |
| two at once | {two:.1f} s |
| ratio | {two / one:.2f} |
""",
    )
    print(json.dumps(figures))


def _seconds(inputs: DemoInputs, workers: int, jobs: int) -> list[float]:
    """Seconds that so many jobs take together, one run after another."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        variables = {"LAYERDRIFT_HOME": home, "LAYERDRIFT_MODEL_ROOTS": str(INPUTS), "LAYERDRIFT_WORKERS": str(workers)}
        with Stack({**os.environ, **variables}) as stack, Client(stack.url) as client:
            for run in range(REPEATS):
                started = time.monotonic()
                made = [client.submit(_request(inputs, seed=10 * run + job)).id for job in range(jobs)]
                for analysis_id in made:
                    client.wait(analysis_id, WAIT_SECONDS)
                found.append(time.monotonic() - started)
                print(f"{jobs} at once: {found[-1]:.1f} s", flush=True)
    return found


def _request(inputs: DemoInputs, seed: int) -> AnalysisRequest:
    return AnalysisRequest.model_validate(
        {
            "base": {"uri": inputs.model.as_uri()},
            "finetune": {"train_examples": 200, "epochs": 1},
            "dataset": {"uri": inputs.reviews.as_uri(), "max_examples": 200},
            "analysis": {"sae": {"tokens": 20_000}},
            "seed": seed,
        }
    )


if __name__ == "__main__":
    main()
