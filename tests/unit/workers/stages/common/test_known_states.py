"""A model that reads texts from the middle answers as it does from the start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
)

from backends.tables.reading import Row
from tests.builders.heads import BERT_SIZES, causal_lm, classifier, seeded
from tests.builders.models import BLOCKS, HIDDEN, tiny_tokenizer
from tests.builders.texts import make_texts
from workers.models.loading import HeadKind, body_of
from workers.models.states import StateReader
from workers.models.structure import block_list
from workers.stages.common import known_states
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.known_states import KnownStates, above
from workers.stages.common.moment_accumulator import TokenizationSpec

ROWS = [Row(text, None) for text in make_texts(100)]


def asked(folder: Path, kind: HeadKind) -> EvalSet:
    spec = TokenizationSpec(tiny_tokenizer(folder), 32, kind == "causal_lm", StateReader(BLOCKS + 1, HIDDEN))
    return EvalSet(spec, ROWS, kind)


def answers(model: PreTrainedModel, given: EvalSet) -> torch.Tensor:
    return torch.cat([given.predict(model, batch).log_probs for batch in given.batches()])


@pytest.mark.parametrize(("kind", "model"), [("classifier", classifier()), ("causal_lm", causal_lm())])
@pytest.mark.parametrize("layer", range(BLOCKS + 1))
def test_blocks_above_a_layer_may_change_and_those_below_do_not_run(
    kind: HeadKind, model: PreTrainedModel, layer: int, tmp_path: Path
) -> None:
    given = asked(tmp_path, kind)
    known = KnownStates.of(model, given)
    assert known is not None
    blocks = block_list(body_of(model))
    own = [parameter.clone() for parameter in blocks[BLOCKS - 1].parameters()]
    runs: list[int] = []
    handle = blocks[0].register_forward_hook(lambda *_: runs.append(1))
    try:
        with torch.no_grad():
            for parameter in blocks[BLOCKS - 1].parameters():
                parameter.mul_(1.3)
        expected, whole = answers(model, given), len(runs)
        runs.clear()
        found = answers(model, above(known, layer, model, given))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert (len(runs) < whole) is (0 < layer < BLOCKS)
    finally:
        handle.remove()
        with torch.no_grad():
            for parameter, value in zip(blocks[BLOCKS - 1].parameters(), own, strict=True):
                parameter.copy_(value)


def test_states_that_do_not_fit_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_states, "KEPT_BYTES", 10_000)
    given = asked(tmp_path, "classifier")
    assert KnownStates.of(classifier(), given) is None
    assert above(None, 1, classifier(), given) is given


def test_masked_language_models_read_other_inputs(tmp_path: Path) -> None:
    model = seeded(BertForMaskedLM, BertConfig(**BERT_SIZES))
    assert KnownStates.of(model, asked(tmp_path, "masked_lm")) is None


def test_blocks_that_share_their_weights_are_not_skipped(tmp_path: Path) -> None:
    """One block runs at every layer there: which run an edit is at is counted from the first."""
    config = AlbertConfig(**BERT_SIZES, embedding_size=HIDDEN)
    model = seeded(AlbertForSequenceClassification, config)
    assert KnownStates.of(model, asked(tmp_path, "classifier")) is None
