"""Parts of extraction from whole models. The stage on models: tests/stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.builders.models import BLOCKS, HIDDEN, tiny_bert, tiny_tokenizer
from tests.builders.stages import request
from tests.builders.texts import make_texts
from workers.analysis.moments import Frame
from workers.models.inliers import Inliers
from workers.models.states import StateReader, hidden_states
from workers.models.texts import Text, batches
from workers.stages.common.model_pair import Pair
from workers.stages.common.moment_accumulator import TokenizationSpec
from workers.stages.extract.whole_models import INLIER_TOKENS, _token_drift, _with_inliers


@pytest.fixture
def tokenization(tmp_path: Path) -> TokenizationSpec:
    return TokenizationSpec(tiny_tokenizer(tmp_path), 64, False, StateReader(BLOCKS + 1, HIDDEN))


def test_looking_for_outliers_loses_no_batch(tokenization: TokenizationSpec) -> None:
    texts = make_texts(400)  # more tokens than the rule needs
    pair = Pair(tiny_bert(0, blocks=1), tiny_bert(1, blocks=1), tokenization)
    found, stream = _with_inliers(pair, texts)
    read = list(stream)
    assert sorted(index for one in read for index in one.batch.indices) == list(range(400))
    assert sum(int(one.batch.real.sum()) for one in read) > INLIER_TOKENS
    assert found.tokenization.rule.base_limits.shape == (2,)
    assert pair.tokenization.inliers is None


def test_tokens_of_shown_texts_drift_by_the_definition(tokenization: TokenizationSpec) -> None:
    """|y - x|^2 over the mean squared distances of both models' rows from their means; special tokens are marked."""
    base, tuned = tiny_bert(0), tiny_bert(1)
    shown: list[Text] = ["the good film", "bad plot of no film at all"]
    (batch,) = batches(tokenization.tokenizer, [str(text) for text in shown], 2, 64)
    sides = [torch.stack(hidden_states(model, batch)) for model in (base, tuned)]
    frame = Frame.of(*(side[:, batch.real] for side in sides))
    pair = Pair(base, tuned, tokenization).with_inliers(Inliers.everywhere(False, BLOCKS + 1))
    found = _token_drift(request(), pair, shown, frame)
    assert found.source == "dataset"
    assert [text.text for text in found.texts] == shown
    assert found.texts[0].tokens == ["[CLS]", "the", "good", "film", "[SEP]"]
    assert found.texts[0].special == [True, False, False, False, True]
    row = batch.indices.index(0)
    centred = [side[:, row, 2].double() - mean for side, mean in zip(sides, (frame.base, frame.tuned), strict=True)]

    def spread(side: Tensor) -> Tensor:
        rows = side[:, batch.real].double()
        return (rows - rows.mean(1, keepdim=True)).square().sum(2).mean(1)

    expected = (centred[1] - centred[0]).square().sum(1) / (spread(sides[0]) + spread(sides[1]))
    assert [layer[2] for layer in found.texts[0].drift] == pytest.approx(expected.tolist(), abs=1e-4)
