"""What stage `extract` leaves for the later ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from layerdrift.contract.names import PartName, ViewName
from workers.analysis.moments import Frame
from workers.analysis.similarity import SiteSimilarity
from workers.models.texts import Text
from workers.results.models import ModelInfo, WeightDrift
from workers.results.tokens import TokenDrift
from workers.results.warnings import ReportWarning
from workers.stages.common.moment_accumulator import TextSample, TokenizationSpec
from workers.stages.common.view_similarity import ViewSimilarity
from workers.stages.extract.heldout_rows import HeldoutRows
from workers.stages.extract.last_states import LastStates
from workers.stages.extract.nulls import Nulls
from workers.stages.extract.reference import ReferenceDrift

MOMENTS_SHARE = 0.25
"""Of the scratch, for the sums of groups of texts."""


@dataclass(frozen=True)
class Execution:
    """How the models ran: whole or block by block, and why whole where the models are large."""

    mode: Literal["whole", "layers"]
    reason: str | None = None


@dataclass(frozen=True)
class TokenCounts:
    """Of the analysed texts. first, outliers: tokens that do not count, by why. unread: tokens beyond the length."""

    first: int
    outliers: int
    counted: int
    unread: int

    @property
    def excluded_share(self) -> float:
        """Of the tokens that were read."""
        return (self.first + self.outliers) / max(1, self.first + self.outliers + self.counted)

    @property
    def truncated_share(self) -> float:
        """Of all tokens."""
        return self.unread / max(1, self.first + self.outliers + self.counted + self.unread)


@dataclass(frozen=True)
class Extracted:
    """All that was taken from the models.

    tokenization: how texts were read, and which tokens counted.
    views: what each view's rows say of every layer. frame: what the token view's rows were centred at.
    all_tokens: by layer, CKA and relative L2 of the token view with the tokens that do not count; None where all do.
    token_sample: base and tuned rows at random tokens, each [L + 1, N, D].
    last_states: of the base and the tuned model. reference_states: the same on the texts of the reference, where the
        models ran block by block.
    heldout: compared rows that autoencoders are measured on; None where none are asked for.
    analysed: how many texts were read. shown: those whose tokens are told, as in `tokens`.
    """

    tokenization: TokenizationSpec
    counts: TokenCounts
    views: dict[ViewName, ViewSimilarity]
    frame: Frame
    all_tokens: list[SiteSimilarity] | None
    token_sample: tuple[Tensor, Tensor]
    text_sample: TextSample
    analysed: int
    tokens: TokenDrift
    last_states: tuple[LastStates, LastStates]
    heldout: HeldoutRows | None
    weights: list[dict[PartName, WeightDrift]]
    nulls: Nulls
    reference: ReferenceDrift | None
    models: dict[str, ModelInfo]
    execution: Execution
    warnings: list[ReportWarning]
    shown: list[Text]
    reference_states: tuple[LastStates, LastStates] | None = None

    @property
    def layers(self) -> int:
        """L + 1."""
        return self.tokenization.states.layers
