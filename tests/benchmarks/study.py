"""`make bench-study`: a study of eight fine-tunes beside eight analyses alone, and by two workers beside one.

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
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import StudyRequest
from layerdrift.sdk import Client
from tests.benchmarks.document import publish

WAIT_SECONDS = 3_600.0
INPUTS = Path("var/demo").resolve()
MEMBERS = 8
TEXTS, SAE_TOKENS = 200, 100_000


def main() -> None:
    """Prints and publishes the figures."""
    inputs = fetch(INPUTS)
    with tempfile.TemporaryDirectory(dir=INPUTS / "models") as folder:
        tuned = [_noised(inputs.model, Path(folder) / f"member-{number}", number) for number in range(MEMBERS)]
        alone = sum(_alone(inputs, one) for one in tuned)
        study = _study(inputs, tuned, workers=1, cores=2)
        one = _study(inputs, tuned, workers=1, cores=1)
        two = _study(inputs, tuned, workers=2, cores=2)
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
reviews, with autoencoders at every layer ({SAE_TOKENS:,} training tokens each) and without grafts. From the first POST
to the last end, one run each, on a fresh service that has run another small analysis before; analyses alone run on a
service that has seen none of the others. The study compares its members with one another too.

| | |
|---|---|
| {MEMBERS} analyses, each alone; one worker, two cores | {alone:.1f} s |
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


def _asked(inputs: DemoInputs, tuned: list[Path]) -> StudyRequest:
    return StudyRequest.model_validate(
        {
            "base": {"uri": inputs.model.as_uri()},
            "dataset": {"uri": inputs.reviews.as_uri(), "max_examples": TEXTS},
            "analysis": {"sae": {"tokens": SAE_TOKENS}, "grafts": False},
            "members": [{"name": one.name, "tuned": {"uri": one.as_uri()}} for one in tuned],
        }
    )


def _alone(inputs: DemoInputs, tuned: Path) -> float:
    """Seconds of one member's analysis."""
    asked = next(iter(_asked(inputs, [tuned, inputs.model]).analyses())).request  # of two members, as studies have
    with _service(inputs, workers=1, cores=2) as client:
        started = time.monotonic()
        client.wait(client.submit(asked).id, WAIT_SECONDS)
        seconds = time.monotonic() - started
    print(f"{tuned.name} alone: {seconds:.1f} s", flush=True)
    return seconds


def _study(inputs: DemoInputs, tuned: list[Path], workers: int, cores: int) -> float:
    """Seconds of the study."""
    with _service(inputs, workers, cores) as client:
        started = time.monotonic()
        client.wait_study(client.submit_study(_asked(inputs, tuned)).id, WAIT_SECONDS)
        seconds = time.monotonic() - started
    print(f"a study, {workers} workers, {cores} cores: {seconds:.1f} s", flush=True)
    return seconds


@contextmanager
def _service(inputs: DemoInputs, workers: int, cores: int) -> Iterator[Client]:
    """A fresh service whose workers have run something else."""
    with tempfile.TemporaryDirectory() as home, _on(cores):
        variables = {"LAYERDRIFT_HOME": home, "LAYERDRIFT_MODEL_ROOTS": str(INPUTS), "LAYERDRIFT_WORKERS": str(workers)}
        with Stack({**os.environ, **variables}) as stack, Client(stack.url) as client:
            for seed in range(workers):
                client.wait(client.submit(_warm_up(inputs, seed)).id, WAIT_SECONDS)
            yield client


def _warm_up(inputs: DemoInputs, seed: int) -> AnalysisRequest:
    """The base beside itself on a few other texts."""
    model = {"uri": inputs.model.as_uri()}
    texts = [f"A sentence number {number} of run {seed}." for number in range(40)]
    body = {"base": model, "tuned": model, "dataset": {"inline": {"texts": texts}}, "analysis": {"sae": None}}
    return AnalysisRequest.model_validate(body)


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
