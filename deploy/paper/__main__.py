"""Runs the paper's study on the embedded stack, and writes its page and its report."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape

from deploy.embedded.demo_inputs import DownloadError
from deploy.embedded.stack import Stack
from deploy.embedded.supervisor import StartError
from deploy.machine import machine
from deploy.paper.inputs import Task, large_encoder, small_encoder, tasks
from deploy.paper.page import write
from layerdrift.cli.progress import waiting_for
from layerdrift.cli.study_commands import followed
from layerdrift.contract.errors import LayerdriftError
from layerdrift.contract.study import StudyRequest
from layerdrift.sdk import Client

DOCS = Path(__file__).parents[2] / "docs"
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "learning_rate": 5e-5},
    "lora": {"method": "lora", "learning_rate": 5e-4},
}


@dataclass(frozen=True)
class Size:
    """How large the study is. rows: trained on, of each task."""

    name: str
    rows: int
    epochs: int
    texts: int
    seeds: int


SMALL = Size("small", rows=960, epochs=2, texts=400, seeds=3)
LARGE = Size("large", rows=2_000, epochs=2, texts=1_000, seeds=3)
console = Console(width=None if sys.stdout.isatty() else 120)


def study(base: Path, found: list[Task], size: Size) -> StudyRequest:
    """Every task by every method with every seed."""
    members = [
        {
            "name": f"{task.name}-{name}-{seed}",
            "task": task.name,
            "seed": seed,
            "dataset": {"uri": task.path.as_uri(), "max_examples": size.texts},
            "finetune": {
                **method,
                "train_examples": size.rows,
                "epochs": size.epochs,
                "batch_size": 16,
                "keep": "last",
            },
        }
        for task in found
        for name, method in METHODS.items()
        for seed in range(size.seeds)
    ]
    analysis = {"sae": None, "grafts": False, "probes": False, "max_length": 96}
    title = f"{base.name} on {', '.join(task.name for task in found)}"
    body = {"name": title, "base": {"uri": base.as_uri()}, "analysis": analysis, "members": members}
    return StudyRequest.model_validate(body)


def main() -> int:
    """0 when the page was written, 1 on an error that is said, 130 on Ctrl-C. `large` as an argument: `make paper`."""
    size = LARGE if sys.argv[1:] == ["large"] else SMALL
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    home = Path(os.environ.get("LAYERDRIFT_HOME", "var")).resolve() / "paper"
    roots = os.pathsep.join(str(home / name) for name in ("models", "data"))
    try:
        with waiting_for("fetching the model and the texts of three tasks"):
            base = large_encoder(home) if size is LARGE else small_encoder(home)
            asked = study(base, tasks(home), size)
        with Stack({**os.environ, "LAYERDRIFT_HOME": str(home), "LAYERDRIFT_MODEL_ROOTS": roots}) as stack:
            _run(stack, asked, size, home)
    except KeyboardInterrupt:
        console.print("stopped; run it again, and finished members are not computed twice")
        return 130
    except (StartError, DownloadError, LayerdriftError) as error:
        console.print("[red]the study failed:[/red]", escape(str(error)), highlight=False)
        return 1
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(stack: Stack, asked: StudyRequest, size: Size, home: Path) -> None:
    console.print(f"ready {stack.url}", highlight=False)
    started = time.monotonic()
    with Client(stack.url) as client:
        found = client.submit_study(asked)
        console.print(f"watch it in a browser: {stack.url}/#/s/{found.id}", highlight=False, soft_wrap=True)
        followed(client, found.id, None)
        report = client.study_report(found.id)
        (home / f"study-{size.name}.json").write_text(report.model_dump_json(indent=1))
        (home / f"study-{size.name}.html").write_text(client.rendered_study_report(found.id, "html"))
    seconds = time.monotonic() - started
    about = (
        f"{machine()} {asked.base.uri.rsplit('/', 1)[-1]}, {len(asked.members)} fine-tunes on {size.rows:,} rows for "
        f"{size.epochs} epochs, compared on {size.texts} texts each; {seconds / 60:.0f} minutes, without analyses "
        "that were there already."
    )
    page = DOCS / "paper.md" if size is SMALL else home / f"paper-{size.name}.md"
    write(report, page, page.parent / "images", about)
    whole = home / f"study-{size.name}.html"
    console.print(f"wrote {page} and {whole}", highlight=False, soft_wrap=True)
    console.print(
        json.dumps({"study": size.name, "members": len(asked.members), "seconds": round(seconds)}), soft_wrap=True
    )


if __name__ == "__main__":
    sys.exit(main())
