"""What every stage after `resolve` works on: the staged checkpoints, the tokenizer, and the rows by use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from backends.tables.reading import Row
from workers.results.warnings import ReportWarning


@dataclass(frozen=True)
class Split:
    """Rows by use; no row is in two of them.

    analysed: texts the models are compared on. train: rows of the fine-tune. spare: the others, for the autoencoders.
    held_out: rows that the fine-tune's best weights are chosen by.
    """

    analysed: list[Row]
    train: list[Row]
    spare: list[Row]
    held_out: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class ReferenceTexts:
    """Texts that forgetting is measured on; none is among those of the data set."""

    rows: list[Row]
    source: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A staged checkpoint: its folder here, where it came from, and the hash of its files.

    adapter: where the tuned model is one and need not be merged: its folder, and what merges it into `light`.
    """

    light: Path
    uri: str
    fingerprint: str
    adapter: UnmergedAdapter | None = None

    @property
    def folder(self) -> Path:
        """With whole weights: an adapter is merged now where it was not. InputError where it cannot be.

        `light` is the same folder; of an adapter it has the configuration and the tokenizer, weights only after this.
        """
        if self.adapter is not None and not any(self.light.glob("*.safetensors")):
            self.adapter.merge(self.light)
        return self.light


@dataclass(frozen=True)
class UnmergedAdapter:
    """A staged adapter. merge: writes the merged checkpoint into a folder."""

    folder: Path
    merge: Callable[[Path], object]


@dataclass(frozen=True)
class Resolved:
    """What the other stages work on.

    tokenizer: the base model's, for both. length: tokens of a text that are read, as far as the models have positions.
    benign: another fine-tune of the base, which teaches nothing of interest.
    units: of each analysed row, the number of its unit of rows that are nearly the same; None: all are alone.
    """

    base: Checkpoint
    tuned: Checkpoint | None
    tokenizer: PreTrainedTokenizerBase
    length: int
    split: Split
    usable_rows: int
    dataset_sha256: str
    warnings: list[ReportWarning]
    units: tuple[int, ...] | None = None
    reference: ReferenceTexts | None = None
    benign: Checkpoint | None = None
