"""Options that say what is analysed, shared by `submit` and `review`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[str | None, typer.Option("--base", help="The checkpoint before: a URI, or a local folder.")]
Tuned = Annotated[str | None, typer.Option("--tuned", help="The checkpoint after: a URI, or a local folder.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Texts to compare on: a URI, or a local file.")]
Finetune = Annotated[
    bool, typer.Option("--finetune", help="Make the checkpoint after from --base; details with --set finetune.…=…")
]
RequestFile = Annotated[
    Path | None, typer.Option("--request", "-r", help="A whole request as YAML or JSON; other options go before it.")
]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column of the texts; else `text`.")]
TextPairColumn = Annotated[
    str | None, typer.Option("--text-pair-column", help="Column of the second texts, for models that read pairs.")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Column of the labels; else `label`, where there is one.")
]
MaxExamples = Annotated[int | None, typer.Option("--max-examples", help="Texts that are analysed.")]
Name = Annotated[str | None, typer.Option("--name", help="For people; shown in lists and in the report.")]
Tag = Annotated[list[str], typer.Option("--tag", help="key=value, for people and filters; may be repeated.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of every random choice.")]
NoSae = Annotated[bool, typer.Option("--no-sae", help="Without sparse autoencoders: much faster.")]
Set = Annotated[
    list[str], typer.Option("--set", help="Any field of the request: analysis.max_tokens=20000; may be repeated.")
]
