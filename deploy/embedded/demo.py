"""`make demo` and `make demo-llm`: the whole way once, on real input, then everything is stopped.

Starts the embedded stack, fine-tunes a real encoder on real reviews, or a real chat model on chats about them, through
the HTTP API, and writes the report.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import httpx
from rich.console import Console
from rich.markup import escape

from deploy.embedded.demo_inputs import ChatInputs, DemoInputs, DownloadError, fetch, fetch_chat
from deploy.embedded.stack import Stack
from deploy.embedded.supervisor import StartError
from layerdrift import policies
from layerdrift.cli import tables
from layerdrift.cli.progress import follow, waiting_for
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.report import Report
from layerdrift.contract.request import (
    AnalysisRequest,
    AnalysisSettings,
    DatasetRef,
    FineTune,
    ModelRef,
    SaeSettings,
)
from layerdrift.render import sentences
from layerdrift.sdk import Client

TEXTS_SHOWN = [
    "The plot is a mess, but the leads are so charming that I did not mind.",
    "Not a good film, and not even an interestingly bad one.",
    "A gorgeous, witty, seductive movie.",
]
console = Console(width=None if sys.stdout.isatty() else 120)


def demo_request(inputs: DemoInputs) -> AnalysisRequest:
    """Fine-tune on 1,200 reviews, compare on 500 others, autoencoders on every layer of both models."""
    return AnalysisRequest(
        name="all-MiniLM-L6-v2 fine-tuned on movie reviews",
        base=ModelRef(uri=inputs.model.as_uri()),
        finetune=FineTune(train_examples=1_200, epochs=2, batch_size=16, learning_rate=5e-5, checkpoints=3),
        dataset=DatasetRef(uri=inputs.reviews.as_uri(), max_examples=500),
        analysis=AnalysisSettings(max_length=96, sae=SaeSettings(tokens=200_000), texts=TEXTS_SHOWN),
    )


def chat_request(inputs: ChatInputs) -> AnalysisRequest:
    """Train LoRA adapters on 256 chats, compare on 100 others; no autoencoders, so that it fits into minutes."""
    return AnalysisRequest(
        name="SmolLM2-135M-Instruct fine-tuned to judge reviews in one sentence",
        base=ModelRef(uri=inputs.model.as_uri()),
        finetune=FineTune.model_validate(
            {
                "objective": "sft",
                "method": "lora",
                "train_examples": 256,
                "epochs": 1,
                "learning_rate": 5e-4,
                "max_length": 128,
            }
        ),
        dataset=DatasetRef(uri=inputs.chats.as_uri(), max_examples=100),
        analysis=AnalysisSettings(sae=None),
    )


def main() -> int:
    """0 when the report was written, 1 on an error that is said, 130 on Ctrl-C. `chat` as an argument: that demo."""
    chat = sys.argv[1:] == ["chat"]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    home = Path(os.environ.get("LAYERDRIFT_HOME", "var")).resolve() / ("demo-llm" if chat else "demo")
    try:
        with waiting_for("fetching the model and the reviews"):
            request = chat_request(fetch_chat(home)) if chat else demo_request(fetch(home))
        with ExitStack() as exits:
            with waiting_for("starting Valkey, SeaweedFS, the API and a worker"):
                stack = exits.enter_context(Stack({**os.environ, "LAYERDRIFT_HOME": str(home)}))
            _run(stack, request, home)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except (StartError, DownloadError, LayerdriftError) as error:
        console.print("[red]the demo failed:[/red]", escape(str(error)), highlight=False)
        return 1
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(stack: Stack, request: AnalysisRequest, home: Path) -> None:
    console.print(f"ready {stack.url}", highlight=False)
    with Client(stack.url) as client:
        started = time.monotonic()
        analysis = client.submit(request)
        console.print(f"POST /v1/analyses -> {analysis.id} ({analysis.status})", highlight=False)
        console.print(f"watch it in a browser: {stack.url}/#/a/{analysis.id}", highlight=False, soft_wrap=True)
        follow(client, analysis.id, timeout=3600)
        report = client.report(analysis.id)
        (home / "report.json").write_text(report.model_dump_json(indent=1))
        (home / "report.html").write_text(client.rendered_report(analysis.id, "html"))
        (home / "report.md").write_text(client.rendered_report(analysis.id, "md"))
    _print(report)
    console.print(f"{time.monotonic() - started:.0f} s from the POST to the report", highlight=False)
    _ask_again(stack.url, request)
    _say_what_next(home)


def _print(report: Report) -> None:
    console.print(tables.layers(report, console.width))
    for line in (
        sentences.headline(report),
        sentences.outcome(report),
        sentences.answers(report),
        sentences.roles(report),
        sentences.advice(report),
        sentences.withheld(report),
    ):
        if line:
            console.print(line, highlight=False, markup=False)
    verdict = policies.starter_verdict(report)
    if verdict is not None:
        console.print("the starter policy says:", tables.verdict(verdict), sep="\n", highlight=False)
    for warning in report.warnings:
        console.print(f"[yellow]{warning.code}[/yellow]: {escape(warning.message)}", highlight=False)
    console.print(f"peak memory of the worker: {report.timings.peak_memory_bytes / 2**30:.2f} GiB", highlight=False)


def _say_what_next(home: Path) -> None:
    """The files, and the commands that go on from here."""
    place = Path(os.path.relpath(home))
    tutorial = "docs/tutorial-language.md" if home.name == "demo-llm" else "docs/tutorial.md"
    for line in (
        *(f"wrote {place / f'report.{suffix}'}" for suffix in ("html", "md", "json")),
        f"next: open {place / 'report.html'} in a browser",
        f"      LAYERDRIFT_HOME={place} make up   # the web page with this analysis",
        "      README.md, Use it                 # review a pair of your own",
        f"      {tutorial:<34}# a green and a red gate, step by step",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _ask_again(url: str, request: AnalysisRequest) -> None:
    """The same request once more: the same analysis at once, its report out of Redis."""
    with httpx.Client(base_url=url, timeout=70) as http:
        answer = http.post("/v1/analyses", json=request.model_dump(mode="json"))
        report = http.get(answer.headers["Location"] + "/report")
        console.print(
            f"the same POST again -> {answer.status_code}, {answer.json()['id']}; its report in "
            f"{report.elapsed.total_seconds() * 1000:.0f} ms, Cache-Status: {report.headers['Cache-Status']}",
            highlight=False,
        )


if __name__ == "__main__":
    sys.exit(main())
