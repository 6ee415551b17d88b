"""`make bench-demo`: how soon the demo and a default review show their first curve, and how soon they end.

The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from deploy.embedded.demo import demo_request
from deploy.embedded.demo_inputs import fetch
from deploy.embedded.stack import Stack
from layerdrift.contract.analysis import Analysis
from layerdrift.contract.request import AnalysisRequest
from layerdrift.sdk import Client
from tests.benchmarks.document import publish

WAIT_SECONDS = 3_600.0
INPUTS = Path("var/demo").resolve()


def main() -> None:
    """Prints and publishes the figures."""
    inputs = fetch(INPUTS)
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "LAYERDRIFT_HOME": home, "LAYERDRIFT_MODEL_ROOTS": str(INPUTS)}
        with Stack(environment) as stack, Client(stack.url) as client:
            demo, analysis_id = timed(client, demo_request(inputs))
            print("demo", demo, flush=True)
            tuned = client.report(analysis_id).models["tuned"].uri
            body = {
                "base": {"uri": inputs.model.as_uri()},
                "tuned": {"uri": tuned},
                "dataset": {"uri": inputs.reviews.as_uri()},
            }
            review, _ = timed(client, AnalysisRequest.model_validate(body))
            print("review", review, flush=True)
    _publish(demo, review)
    print(json.dumps({"demo": demo, "review": review}))


def timed(client: Client, request: AnalysisRequest) -> tuple[dict[str, Any], str]:
    """Seconds from the POST to the preliminary report and to the end, and those of each stage; and the id."""
    estimated = client.estimate(request)
    started = time.monotonic()
    made = client.submit(request)
    first: float | None = None
    for analysis in client.watch(made.id, WAIT_SECONDS):
        if first is None and analysis.report != "none":
            first = time.monotonic() - started
    end = time.monotonic() - started
    report = client.report(made.id)
    figures = {
        "first_curve_s": round(first or end, 1),
        "end_s": round(end, 1),
        "stages": _stages(analysis),
        "estimated_s": round(estimated.seconds, 1),
        "peak_memory_gib": round(report.timings.peak_memory_bytes / 2**30, 2),
    }
    return figures, made.id


def _stages(analysis: Analysis) -> dict[str, float]:
    return {
        stage.name.value: round((stage.finished_at - stage.started_at).total_seconds(), 1)
        for stage in analysis.progress.stages
        if stage.started_at and stage.finished_at
    }


def _publish(demo: dict[str, Any], review: dict[str, Any]) -> None:
    titles = {"first_curve_s": "POST to the first curve", "end_s": "POST to the end", "estimated_s": "estimated before"}
    lines = [f"| {title} | {demo[key]:.1f} s | {review[key]:.1f} s |" for key, title in titles.items()]
    for name in dict.fromkeys([*demo["stages"], *review["stages"]]):
        seconds = [one["stages"].get(name) for one in (demo, review)]
        cells = " | ".join("—" if value is None else f"{value:.1f} s" for value in seconds)
        lines.append(f"| stage `{name}` | {cells} |")
    memory = " | ".join(f"{one['peak_memory_gib']:.2f} GiB" for one in (demo, review))
    lines.append(f"| peak memory of the worker | {memory} |")
    publish(
        "The demo and a default review (`make bench-demo`)",
        """
The demo fine-tunes all-MiniLM-L6-v2 and compares it with its base; the review compares the two ready checkpoints on
2,000 movie reviews with default settings. One run each, one after the other, on the embedded stack.

| | demo | review |
|---|---|---|
"""
        + "\n".join(lines),
    )


if __name__ == "__main__":
    main()
