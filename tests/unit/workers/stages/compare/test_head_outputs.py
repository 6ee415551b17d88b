"""Which heads can be asked on which texts, and what is said where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from tests.builders.heads import BERT_SIZES, causal_lm, classifier, seeded
from tests.builders.models import BLOCKS, HIDDEN, save_model, tiny_bert, tiny_tokenizer
from tests.builders.stages import resolved
from workers.models.states import StateReader
from workers.results.warnings import ReportWarning
from workers.stages.common.inputs import Checkpoint
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.compare.head_outputs import base_with_head, evaluable_model


def masked_lm(seed: int = 0) -> PreTrainedModel:
    return seeded(BertForMaskedLM, BertConfig(**BERT_SIZES), seed)


@pytest.fixture
def tokenization(tmp_path: Path) -> TokenizationSpec:
    return TokenizationSpec(tiny_tokenizer(tmp_path), 32, False, StateReader(BLOCKS + 1, HIDDEN))


def checkpoint(model: PreTrainedModel, folder: Path) -> Checkpoint:
    return Checkpoint(save_model(model, folder), "file:///tuned", "0" * 64)


def codes(warnings: list[ReportWarning]) -> list[str]:
    return [warning.code for warning in warnings]


@pytest.mark.parametrize(
    ("model", "causal", "kind"),
    [(classifier, False, "classifier"), (causal_lm, True, "causal_lm"), (masked_lm, False, "masked_lm")],
)
def test_a_head_is_found_by_what_it_is(
    tokenization: TokenizationSpec, tmp_path: Path, model: Callable[[], PreTrainedModel], causal: bool, kind: str
) -> None:
    found, warnings = evaluable_model(checkpoint(model(), tmp_path / "tuned"), replace(tokenization, causal=causal))
    assert found is not None
    assert (found.kind, warnings) == (kind, [])


def test_a_head_that_predicts_what_the_model_sees_is_not_asked(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    found, warnings = evaluable_model(checkpoint(causal_lm(), tmp_path / "tuned"), tokenization)
    assert found is None
    assert codes(warnings) == ["answers_not_evaluated"]
    assert "predicts the next token, but the model sees later tokens" in warnings[0].message


def test_a_masked_head_without_a_mask_token_is_not_asked(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    tokenization.tokenizer.mask_token = None
    found, warnings = evaluable_model(checkpoint(masked_lm(), tmp_path / "tuned"), tokenization)
    assert found is None
    assert codes(warnings) == ["answers_not_evaluated", "no_mask_token"]


def test_a_model_without_a_head_says_so(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    found, (warning,) = evaluable_model(checkpoint(tiny_bert(), tmp_path / "tuned"), tokenization)
    assert found is None
    assert "were not evaluated: it has no head. Its representations were still compared" in warning.message


def test_a_head_that_the_files_lack_is_not_drawn_at_random(tokenization: TokenizationSpec, tmp_path: Path) -> None:
    given = checkpoint(classifier(), tmp_path / "tuned")
    path = given.folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("classifier")}
    save_file(tensors, path, metadata={"format": "pt"})
    found, (warning,) = evaluable_model(given, tokenization)
    assert found is None
    assert "do not contain the complete head that config.json names" in warning.message


@pytest.mark.parametrize(
    ("base", "there"),
    [(classifier, True), (tiny_bert, False), (masked_lm, False)],
    ids=["the same kind", "no head", "another kind"],
)
def test_a_base_model_is_asked_where_its_head_is_of_the_same_kind(
    tokenization: TokenizationSpec, tmp_path: Path, base: Callable[[], PreTrainedModel], there: bool
) -> None:
    tuned, _ = evaluable_model(checkpoint(classifier(), tmp_path / "tuned"), tokenization)
    assert tuned is not None
    found = base_with_head(resolved(save_model(base(), tmp_path / "base"), texts=1), tuned)
    assert (found is not None) is there
