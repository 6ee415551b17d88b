"""Which texts are read, and what is said of those that are not."""

from __future__ import annotations

from layerdrift.contract.errors import InputError
from layerdrift.contract.names import RoleName
from layerdrift.contract.request import AnalysisRequest
from workers.analysis.similarity import MIN_ROWS
from workers.models.chats import TOKEN_ROLES
from workers.models.texts import Batch, Text
from workers.results.warnings import ReportWarning
from workers.stages.common.moment_accumulator import GroupPlan, TokenizationSpec
from workers.stages.extract.extracted import TokenCounts

DEFAULT_TEXTS_SHOWN = 4


def shown_texts(request: AnalysisRequest, texts: list[Text]) -> list[Text]:
    """Those whose tokens are told one by one: what the request asks for, else the first ones."""
    return list(request.analysis.texts) or texts[:DEFAULT_TEXTS_SHOWN]


def within(tokenization: TokenizationSpec, texts: list[Text], max_tokens: int) -> tuple[list[Text], int]:
    """As `TokenizationSpec.within`; InputError where all of them have too few tokens."""
    read, tokens = tokenization.within(texts, max_tokens)
    if tokens < MIN_ROWS:
        raise InputError.at(
            "/dataset", f"the texts have {tokens} tokens besides special ones; at least {MIN_ROWS} are needed"
        )
    return read, tokens


def require_tokens(counted: int, left_out: int) -> None:
    """Raises InputError where too few tokens count."""
    if counted < MIN_ROWS:
        raise InputError.at(
            "/dataset",
            f"{counted} tokens are left to compare, but at least {MIN_ROWS} are needed; {left_out} first tokens of "
            "texts and outliers do not count. Use more or longer texts",
        )


def cut_texts(counts: TokenCounts, length: int, wanted: int | None) -> list[ReportWarning]:
    """What was not read of long texts, and a length that was asked for and is not there."""
    found = []
    if counts.unread:
        message = (
            f"{counts.truncated_share:.1%} of the tokens were not read: texts are truncated at {length} tokens "
            "(analysis.max_length); this report does not cover the rest"
        )
        found.append(ReportWarning(code="texts_cut", message=message))
    if wanted is not None and length < wanted:
        message = f"analysis.max_length is {wanted}, but the tokenizer and both models support at most {length} tokens"
        found.append(ReportWarning(code="length_reduced", message=message))
    return found


def unread_texts(texts: int, max_tokens: int) -> list[ReportWarning]:
    """Texts that come after the limit on tokens."""
    if not texts:
        return []
    message = f"{texts} texts were not compared: analysis.max_tokens ({max_tokens}) was reached first"
    return [ReportWarning(code="texts_not_reached", message=message)]


def about_intervals(plan: GroupPlan | None) -> list[ReportWarning]:
    """What the width of the models and the scratch leave of the intervals."""
    limit = "a quarter of LAYERDRIFT_SCRATCH_BYTES"
    if plan is None:
        message = f"no intervals: not even a sample of the rows of the groups of texts fits into {limit}"
        return [ReportWarning(code="no_intervals", message=message)]
    if plan.sampled:
        parts = ", ".join(f"one row in {every} of the {view} view" for view, every in plan.every.items() if every > 1)
        message = (
            f"intervals use a sample of the rows ({parts}), because more does not fit into {limit}: they are wider "
            "than necessary"
        )
        return [ReportWarning(code="wide_intervals", message=message)]
    return []


def shown_text(text: Text) -> str:
    """A text as people read it; of a pair both, with a bar between."""
    return text if isinstance(text, str) else " | ".join(text)


def shown_roles(batch: Batch, row: int, length: int) -> list[RoleName] | None:
    """Whose words the first tokens of a chat are; None of a text."""
    if batch.roles is None:
        return None
    return [TOKEN_ROLES[role] for role in batch.roles[row, :length].tolist()]
