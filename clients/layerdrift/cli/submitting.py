"""Options that say what is analysed, shared by `submit`, `review` and `estimate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[str | None, typer.Option("--base", help="Base model: a URI or a local folder.")]
Tuned = Annotated[
    str | None, typer.Option("--tuned", help="Fine-tuned model or PEFT adapter: a URI or a local folder.")
]
Dataset = Annotated[str | None, typer.Option("--dataset", help="Texts to compare on: a URI or a local file.")]
Finetune = Annotated[
    bool,
    typer.Option(
        "--finetune", help="Fine-tune --base on --dataset instead of giving --tuned; settings: --set finetune.epochs=3."
    ),
]
RequestFile = Annotated[
    Path | None, typer.Option("--request", "-r", help="Request as YAML or JSON. Other options override it.")
]
TextColumn = Annotated[str | None, typer.Option("--text-column", show_default="text", help="Column with the texts.")]
TextPairColumn = Annotated[
    str | None, typer.Option("--text-pair-column", help="Column with the second texts, for models that read pairs.")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", show_default="label, if it exists", help="Column with the labels.")
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option("--chat-template", help="Jinja file that renders messages, instead of the tuned or base model's."),
]
MaxExamples = Annotated[int | None, typer.Option("--max-examples", show_default="2000", help="Texts to analyse.")]
Name = Annotated[
    str | None,
    typer.Option("--name", show_default="base → tuned on data set", help="Name shown in lists and in the report."),
]
Tag = Annotated[list[str], typer.Option("--tag", help="Tag as key=value; may be repeated.", show_default=False)]
Seed = Annotated[int | None, typer.Option("--seed", show_default="0", help="Random seed.")]
NoSae = Annotated[bool, typer.Option("--no-sae", help="Skip the sparse autoencoders, which take most of the time.")]
Set = Annotated[
    list[str],
    typer.Option(
        "--set", help="Any field of the request: --set analysis.max_tokens=20000; may be repeated.", show_default=False
    ),
]


@dataclass(frozen=True)
class PairOptions:
    """What is compared, on which texts."""

    base: Base = None
    tuned: Tuned = None
    dataset: Dataset = None
    finetune: Finetune = False


@dataclass(frozen=True)
class RequestOptions:
    """Everything else that a request says."""

    request: RequestFile = None
    text_column: TextColumn = None
    text_pair_column: TextPairColumn = None
    label_column: LabelColumn = None
    chat_template: ChatTemplate = None
    max_examples: MaxExamples = None
    name: Name = None
    tag: Tag = field(default_factory=list)
    seed: Seed = None
    no_sae: NoSae = False
    set_: Set = field(default_factory=list)
