"""`make bench-study`: a study of eight fine-tunes beside eight analyses posted alone, and by two workers beside one.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModel

from deploy.embedded.demo_inputs import DemoInputs, fetch
from deploy.embedded.stack import Stack
from layerdrift.contract.study import StudyRequest
from layerdrift.sdk import Client
from tests.benchmarks.document import publish

WAIT_SECONDS = 3_600.0
INPUTS = Path("var/demo").resolve()
MEMBERS = 8
TEXTS = 500


def main() -> None:
    """Prints and publishes the figures."""
    inputs = fetch(INPUTS)
    with tempfile.TemporaryDirectory(dir=INPUTS / "models") as folder:
        tuned = [_noised(inputs.model, Path(folder) / f"member-{number}", number) for number in range(MEMBERS)]
        alone = _seconds(inputs, tuned, as_study=False, workers=1, cores=2)
        study = _seconds(inputs, tuned, as_study=True, workers=1, cores=2)
        one = _seconds(inputs, tuned, as_study=True, workers=1, cores=1)
        two = _seconds(inputs, tuned, as_study=True, workers=2, cores=2)
    figures = {
        "alone_s": round(alone, 1),
        "study_s": round(study, 1),
        "ratio": round(study / alone, 2),
        "one_worker_one_core_s": round(one, 1),
        "two_workers_s": round(two, 1),
        "workers_ratio": round(two / one, 2),
    }
    publish(
        "Studies (`make bench-study`)",
        f"""
{MEMBERS} copies of all-MiniLM-L6-v2 with noise on their weights, each compared with it on the same {TEXTS} movie
reviews, without autoencoders and grafts. From the first POST to the last end, one run each; the study compares its
members with one another too.

| | |
|---|---|
| {MEMBERS} analyses posted alone, one worker, two cores | {alone:.1f} s |
| the same as a study | {study:.1f} s ({study / alone:.2f} times) |
| the study, one worker on one core | {one:.1f} s |
| the study, two workers with a core each | {two:.1f} s ({two / one:.2f} times) |
""",
    )
    print(json.dumps(figures))


def _noised(base: Path, folder: Path, seed: int) -> Path:
    """A fine-tune for the machine: the base with noise that grows from block to block."""
    model = AutoModel.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for depth, block in enumerate(model.encoder.layer, start=1):
            for parameter in block.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.02 * depth * parameter.std().nan_to_num() * noise)
    model.save_pretrained(folder)
    return folder


def _seconds(inputs: DemoInputs, tuned: list[Path], as_study: bool, workers: int, cores: int) -> float:
    """Seconds from the first POST to the last end, on a fresh stack."""
    asked = StudyRequest.model_validate(
        {
            "base": {"uri": inputs.model.as_uri()},
            "dataset": {"uri": inputs.reviews.as_uri(), "max_examples": TEXTS},
            "analysis": {"sae": None, "grafts": False},
            "members": [{"name": one.name, "tuned": {"uri": one.as_uri()}} for one in tuned],
        }
    )
    with tempfile.TemporaryDirectory() as home, _on(cores):
        variables = {"LAYERDRIFT_HOME": home, "LAYERDRIFT_MODEL_ROOTS": str(INPUTS), "LAYERDRIFT_WORKERS": str(workers)}
        with Stack({**os.environ, **variables}) as stack, Client(stack.url) as client:
            started = time.monotonic()
            if as_study:
                client.wait_study(client.submit_study(asked).id, WAIT_SECONDS)
            else:
                for made in [client.submit(one.request).id for one in asked.analyses()]:
                    client.wait(made, WAIT_SECONDS)
            seconds = time.monotonic() - started
    print(f"{'a study' if as_study else 'alone'}, {workers} workers, {cores} cores: {seconds:.1f} s", flush=True)
    return seconds


@contextmanager
def _on(cores: int) -> Iterator[None]:
    """Inside, what is started runs on so many cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    main()
