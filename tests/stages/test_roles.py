"""Layers over the tokens of one role: those of both ways to run, beside the rows of that role alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from backends.tables.chats import Chat, Turn
from tests.builders.chats import TEMPLATE, chat_rows
from tests.builders.families import made
from tests.builders.models import tiny_tokenizer
from tests.builders.stages import pair_context, request, resolved
from tests.builders.texts import make_texts
from tests.stages.test_layered import assert_same, layered, with_head
from workers.analysis.moments import Frame, PairMoments
from workers.analysis.similarity import similarities
from workers.analysis.streams import Rows
from workers.models.chats import TOKEN_ROLES
from workers.models.texts import batches
from workers.stages.common.context import PairContext
from workers.stages.common.inputs import Split
from workers.stages.common.model_pair import load_pair
from workers.stages.compare.stage import compare
from workers.stages.extract.whole_models import extract_whole

TEXTS = 90


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> PairContext:
    """A pair that differs in its last block, on chats whose answers are as long as the questions."""
    folder = tmp_path_factory.mktemp("pair")
    base: Any = with_head(made("llama", 0))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.model.layers[1].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(folder / name)
        tokenizer = tiny_tokenizer(folder / name)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
    questions, answers = make_texts(TEXTS, 1), make_texts(TEXTS, 2)
    chats = [Chat((Turn("user", one), Turn("assistant", other))) for one, other in zip(questions, answers, strict=True)]
    rows = chat_rows(folder / "base", chats)
    given = replace(resolved(folder / "base"), split=Split(rows, [], []), length=64, usable_rows=len(rows))
    return pair_context(given, folder / "tuned", folder / "scratch", request(analysis={"sae": None}))


def whole(context: PairContext) -> Any:
    return extract_whole(context, None)


def test_a_role_has_the_numbers_of_its_rows_alone(context: PairContext) -> None:
    extracted = whole(context)
    assert set(extracted.views) == {"token", "cls", "mean", "user", "assistant"}  # the template says too little
    pair = load_pair(context.resolved.base, context.tuned, context.resolved.tokenizer, 64)
    rows: dict[str, list[Rows]] = {"user": [], "assistant": []}
    texts = [row.content for row in context.resolved.split.analysed]
    for batch in batches(context.resolved.tokenizer, texts, 8, 64):
        states = [torch.stack(side) for side in pair.states(batch)]
        judged = extracted.tokenization.known(batch)
        assert batch.roles is not None
        for role, found in rows.items():
            chosen = judged.real & (batch.roles == TOKEN_ROLES.index(role))
            found.append(Rows(*(side[:, chosen] for side in states)))
    for role, found in rows.items():
        every = Rows.joined(found)
        moments = PairMoments.zeros(Frame.of(*every))
        moments.add(*every)
        view = extracted.views[role]
        assert view.rows == every.n
        for one, other in zip(view.sites, similarities(moments), strict=True):
            assert one.cka == pytest.approx(other.cka, abs=1e-5)
            assert one.relative_l2 == pytest.approx(other.relative_l2, abs=1e-5)


def test_block_by_block_the_roles_are_the_same(context: PairContext) -> None:
    one, other = compare(context, whole(context)), compare(context, layered(context))
    for left, right in zip(one.similarity, other.similarity, strict=True):
        assert set(left) == set(right)
        for role in ("user", "assistant"):
            assert left[role].cka.low is not None
            assert left[role].cka.noise_floor is not None
            assert_same(left[role], right[role], 2e-3)


def test_shown_chats_tell_whose_each_token_is(context: PairContext) -> None:
    for way in (whole, layered):
        (text, *_) = way(context).tokens.texts
        assert text.roles is not None
        assert len(text.roles) == len(text.tokens)
        assert {"template", "user", "assistant"} == set(text.roles)


def test_texts_have_no_roles(context: PairContext) -> None:
    plain = replace(context, resolved=resolved(context.resolved.base.light, texts=90))
    extracted = whole(plain)
    assert set(extracted.views) == {"token", "cls", "mean"}
    assert extracted.tokens.texts[0].roles is None
