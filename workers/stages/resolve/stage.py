"""Stage `resolve`: fetches the data set and the checkpoints, makes them plain, checks them, and splits the rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from backends.estimates.execution import runs_in_layers
from backends.sources.pair_checks import BENIGN, BENIGN_IS_TUNED
from backends.sources.pinning import Pins, Sources, of_reference
from backends.tables.reading import Row
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import MIN_EXAMPLES, AnalysisRequest
from workers.models.chats import ChatText
from workers.models.loading import head_kind
from workers.models.texts import Text, fitting_length
from workers.models.tokenizers import common_tokenizer
from workers.results.warnings import ReportWarning
from workers.stages.common.context import StageContext
from workers.stages.common.inputs import ReferenceTexts, Resolved
from workers.stages.resolve.chat_rendering import rendered
from workers.stages.resolve.checkpoint_checks import about_checkpoint, doubled_bos
from workers.stages.resolve.dataset import read_dataset
from workers.stages.resolve.fetching import Fetched, fetch_checkpoints
from workers.stages.resolve.splitting import distinct, identity, split_rows, units_of

LENGTH_TEXTS = 2_000
"""Texts whose lengths settle how many tokens of a text are read, where none is asked for."""


def resolve(context: StageContext, pins: Pins, sources: Sources, max_parameters: int) -> Resolved:
    """Fetches what was pinned into the job's folder.

    Raises:
        InputError: something is unusable, or is no longer what was pinned.
    """
    request, folder, on_progress = context.request, context.folder, context.on_progress
    on_progress(
        0.0, f"reading {pins.dataset.source}"
    )  # first: a column that is missing is known before gigabytes are copied
    labelled = request.labelled
    dataset = read_dataset(request.dataset, pins.dataset, labelled, sources, folder / "dataset")
    usable, warnings = distinct(dataset.rows)
    split = split_rows(usable, request)
    reference = _reference(request, pins, sources, folder, usable)
    fetched = fetch_checkpoints(
        pins, sources, folder, max_parameters, on_progress, lambda size: runs_in_layers(request, size)
    )
    tuned = fetched.tuned.light if fetched.tuned else None
    usable, of_chats = rendered(usable, fetched.base.folder, tuned, request.dataset.chat_template)
    split = split_rows(usable, request)
    others, of_other_chats = _rendered_reference(request, reference, fetched)
    common = common_tokenizer(fetched.base.folder, tuned, [row.content for row in (*usable, *others)])
    if common.differing:
        others = [row for number, row in enumerate(others, start=len(usable)) if number not in common.differing]
        usable = [row for number, row in enumerate(usable) if number not in common.differing]
        split = split_rows(usable, request)
    if fetched.benign is not None:
        _check_benign(fetched, [row.content for row in usable])
    if request.finetune is not None and request.dataset.chat_template is not None:
        common.tokenizer.chat_template = request.dataset.chat_template  # the tuned model is saved with it
    read = [row.content for row in split.analysed[:LENGTH_TEXTS]]
    return Resolved(
        base=fetched.base,
        tuned=fetched.tuned,
        tokenizer=common.tokenizer,
        length=request.analysis.max_length or fitting_length(common.tokenizer, read),
        split=split,
        usable_rows=len(usable),
        dataset_sha256=dataset.sha256,
        warnings=[
            *dataset.warnings,
            *warnings,
            *of_chats,
            *of_other_chats,
            *fetched.warnings,
            *common.warnings,
            *_about_language_model(fetched, common.tokenizer, usable),
        ],
        units=units_of(split.analysed),
        reference=replace(reference, rows=others) if reference is not None else None,
        benign=fetched.benign,
    )


def _about_language_model(fetched: Fetched, tokenizer: PreTrainedTokenizerBase, rows: list[Row]) -> list[ReportWarning]:
    """What is wrong with the files of a fine-tuned language model, and with texts for one."""
    if head_kind(fetched.base.light, "/base/uri") != "causal_lm":
        return []
    found = doubled_bos(tokenizer, [row.text for row in rows if not isinstance(row.text, ChatText)])
    if fetched.tuned is None or head_kind(fetched.tuned.light, "/tuned/uri") != "causal_lm":
        return found
    return [*about_checkpoint(fetched.base, fetched.tuned), *found]


def _check_benign(fetched: Fetched, texts: list[Text]) -> None:
    """Refuses a benign fine-tune that is the tuned model itself, or reads texts otherwise than the base model does."""
    benign, tuned = fetched.benign, fetched.tuned
    if benign is None:
        return
    if tuned is not None and benign.fingerprint == tuned.fingerprint:
        raise InputError.at(BENIGN, BENIGN_IS_TUNED)
    try:
        differing = common_tokenizer(fetched.base.folder, benign.light, texts).differing
    except InputError as error:
        raise InputError.at(BENIGN, f"the benign fine-tune cannot be compared: {error.detail}") from error
    if differing:
        detail = f"its tokenizer splits {len(differing)} of the texts otherwise than the base model's"
        raise InputError.at(BENIGN, f"the benign fine-tune cannot be compared: {detail}")


def _rendered_reference(
    request: AnalysisRequest, reference: ReferenceTexts | None, fetched: Fetched
) -> tuple[list[Row], list[ReportWarning]]:
    """The reference's rows, its chats by its own template where it names one."""
    asked = request.dataset.reference
    if reference is None or asked is None:
        return [], []
    tuned, template = fetched.tuned.light if fetched.tuned else None, asked.chat_template
    with of_reference():
        rows, warnings = rendered(reference.rows, fetched.base.folder, tuned, template or request.dataset.chat_template)
        if len(rows) < MIN_EXAMPLES:
            detail = f"{len(rows)} texts of the reference can be read; at least {MIN_EXAMPLES} are needed"
            raise InputError.at("/dataset", detail)
    told = [one for one in warnings if one.code == "unusable_chats"]
    return rows, [replace(one, message=f"of the reference, {one.message}") for one in told]


def _reference(
    request: AnalysisRequest, pins: Pins, sources: Sources, folder: Path, usable: list[Row]
) -> ReferenceTexts | None:
    """A random sample of the reference's texts that are not in the data set; None where none was given."""
    asked = request.dataset.reference
    if asked is None or pins.reference is None:
        return None
    with of_reference():
        found = read_dataset(asked, pins.reference, False, sources, folder / "reference")
        known = {identity(row) for row in usable}
        rows = [row for row in distinct(found.rows)[0] if identity(row) not in known]
        if len(rows) < MIN_EXAMPLES:
            detail = f"{len(rows)} texts of the reference are not also in dataset; at least {MIN_EXAMPLES} are needed"
            raise InputError.at("/dataset", detail)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(request.seed)).tolist()
    return ReferenceTexts([rows[index] for index in order[: asked.max_examples]], pins.reference.source, found.sha256)
