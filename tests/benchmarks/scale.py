"""`make bench-scale`: pairs of language models, each through a worker of its own; time and memory beside the estimates.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from deploy.embedded.demo_inputs import fetch
from deploy.embedded.stack import Stack
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.benchmarks.document import publish
from tests.benchmarks.scale_models import llama_8b, lora_of, qwen3, smollm

INPUTS = Path("var/demo").resolve()
SCRATCH = Path("var/scale").resolve()
WAIT_SECONDS = 3_600.0
MIB = 2**20
PLAIN: dict[str, Any] = {"sae": None, "grafts": False, "probes": False, "learned": None}
SHORT_TEXTS = 2_000


@dataclass(frozen=True)
class Figures:
    """Of one pair. holds: within what was asked of it."""

    name: str
    seconds: float
    peak_mb: int
    estimated_mb: int
    estimated_s: float
    execution: str
    holds: bool


@dataclass(frozen=True)
class Asked:
    """A pair, the analysis that is asked for, and what must hold of a report."""

    name: str
    base: Path
    tuned: Path
    analysis: dict[str, Any]
    holds: Callable[[Report, float], bool]


def main() -> None:
    """Prints and publishes the figures; names of pairs on the command line leave out the others."""
    wanted = sys.argv[1:]
    reviews = fetch(INPUTS).reviews
    chat = smollm(SCRATCH)
    passes = _two_passes(chat)
    print(f"two forward passes of SmolLM2 over 5,000 tokens in float32: {passes:.1f} s", flush=True)
    shallow: list[int] = []
    found = []
    for name, made in _pairs(chat, passes, shallow).items():
        if not wanted or name in wanted:
            found.append(_measured(made(), reviews))
            print(found[-1], flush=True)
            _publish(found, passes)  # an hour's run that is broken off leaves what it has
    print(json.dumps({"pairs": [asdict(one) for one in found]}))


def _publish(found: list[Figures], passes: float) -> None:
    rows = "\n".join(
        f"| {one.name} | {one.execution} | {one.seconds:.0f} s | {one.peak_mb:,} MiB | {one.estimated_s:.0f} s | "
        f"{one.estimated_mb:,} MiB | {'yes' if one.holds else 'no'} |"
        for one in found
    )
    publish(
        "Language models (`make bench-scale`)",
        f"""
Each pair through the API and a fresh worker; no autoencoders, no grafts, no probes unless the analysis is the default
one. Peak: the worker's resident memory, mapped files included. Two forward passes of SmolLM2 over 5,000 tokens in
float32 take {passes:.0f} s here. Held means: SmolLM2 within twice its two passes and 1.5 GB; its default analysis
within 20 minutes and 4 GiB; 28 blocks within 3 GiB; 56 blocks within 10 % of the peak of 28; 8B within 8 GiB.

| pair | ran | time | peak | estimated time | estimated peak | holds |
|---|---|---|---|---|---|---|
{rows}
""",
    )


def _pairs(chat: Path, passes: float, shallow: list[int]) -> dict[str, Callable[[], Asked]]:
    def of_chat() -> Asked:
        return Asked(
            "SmolLM2-135M-Instruct and a LoRA, 5,000 tokens",
            chat,
            lora_of(chat),
            {**PLAIN, "max_tokens": 5_000},
            lambda report, seconds: seconds < 2 * passes and report.timings.peak_memory_bytes < 1.5e9,
        )

    def of_default() -> Asked:
        return Asked(
            f"the same pair, {SHORT_TEXTS:,} short texts, default analysis",
            chat,
            lora_of(chat),
            {},
            lambda report, seconds: seconds < 1_200 and report.timings.peak_memory_bytes < 4 * 2**30,
        )

    of_4_000 = {**PLAIN, "max_tokens": 4_000}

    def of_28() -> Asked:
        def holds(report: Report, _: float) -> bool:
            shallow.append(report.timings.peak_memory_bytes)
            return shallow[0] < 3 * 2**30

        return Asked("random Qwen3, 28 blocks, bfloat16, 4,000 tokens", *qwen3(chat, 28, SCRATCH), of_4_000, holds)

    def of_56() -> Asked:
        def holds(report: Report, _: float) -> bool:
            return bool(shallow) and report.timings.peak_memory_bytes < 1.1 * shallow[0]

        return Asked("random Qwen3, 56 blocks, bfloat16, 4,000 tokens", *qwen3(chat, 56, SCRATCH), of_4_000, holds)

    def of_8b() -> Asked:
        return Asked(
            "random Llama of 8B shape, bfloat16, and a LoRA of rank 16, 1,000 tokens",
            *llama_8b(chat, SCRATCH),
            {**PLAIN, "max_tokens": 1_000},
            lambda report, _: report.timings.peak_memory_bytes < 8 * 2**30,
        )

    return {
        "smollm2": of_chat,
        "smollm2-default": of_default,
        "qwen3-28": of_28,
        "llama-8b": of_8b,
        "qwen3-56": of_56,
    }


def _measured(asked: Asked, reviews: Path) -> Figures:
    request = AnalysisRequest.model_validate(
        {
            "base": {"uri": asked.base.as_uri()},
            "tuned": {"uri": asked.tuned.as_uri()},
            "dataset": {"uri": reviews.as_uri(), "label_column": None, "max_examples": SHORT_TEXTS},
            "analysis": asked.analysis,
        }
    )
    with tempfile.TemporaryDirectory() as home:
        variables = {"LAYERDRIFT_HOME": home, "LAYERDRIFT_MODEL_ROOTS": f"{INPUTS}{os.pathsep}{SCRATCH}"}
        with Stack({**os.environ, **variables}) as stack, Client(stack.url) as client:
            estimate = client.estimate(request)
            started = time.monotonic()
            made = client.submit(request)
            report = client.wait(made.id, WAIT_SECONDS)
            seconds = time.monotonic() - started
    print(report.timings.stages, flush=True)
    return Figures(
        asked.name,
        round(seconds, 1),
        report.timings.peak_memory_bytes // MIB,
        estimate.memory_bytes // MIB,
        estimate.seconds,
        report.engine.execution,
        asked.holds(report, seconds),
    )


def _two_passes(folder: Path) -> float:
    """Seconds of two forward passes over 5,000 tokens, in batches of 1,000."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    ids = torch.randint(0, 40_000, (10, 100), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        model(input_ids=ids)
        started = time.monotonic()
        for _ in range(10):
            model(input_ids=ids)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
