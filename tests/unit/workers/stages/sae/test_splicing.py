"""Autoencoders put into models: tiny real ones of every family, and dictionaries whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from backends.tables.reading import Row
from tests.builders.families import FAMILIES, made
from tests.builders.heads import causal_lm, classifier
from tests.builders.models import BLOCKS, HIDDEN, tiny_tokenizer
from tests.builders.stages import stage_context
from tests.builders.texts import make_texts
from workers.analysis.sae import SaeStack
from workers.models.states import StateReader, hidden_states
from workers.models.texts import Batch, batches
from workers.models.texts import run as run_batch
from workers.stages.common.evaluation import EvalSet
from workers.stages.common.moment_accumulator import TokenizationSpec, token_rows
from workers.stages.sae.findings import Dictionaries
from workers.stages.sae.splicing import (
    ABLATION_TEXTS,
    DRAWS,
    LayerEdits,
    SplicedLoss,
    ablation,
    layer_edits,
    loss_recovered,
    splices,
)

SITES = 2 * (BLOCKS + 1)


def a_batch(folder: Path) -> Batch:
    return next(batches(tiny_tokenizer(folder), make_texts(4), 4, 32))


def run(model: PreTrainedModel, batch: Batch) -> Tensor:
    return torch.as_tensor(run_batch(model, batch).last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_edited_at_their_layer_and_nowhere_else(family: str, tmp_path: Path) -> None:
    """What the model says of itself at that layer, put in, changes nothing; anything else reaches the end."""
    model, batch = made(family, 0).eval(), a_batch(tmp_path)
    reader, states = StateReader.of(model, ""), hidden_states(model, batch)
    end = states[-1]
    for layer, own in enumerate(states):
        seen: list[Tensor] = []

        def edit(rows: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(rows)
            return rows * 0.5

        with reader.edited(model, layer, lambda rows: rows, batch.real):
            torch.testing.assert_close(run(model, batch), end, atol=1e-5, rtol=1e-5)
        with reader.edited(model, layer, edit, batch.real):
            changed = run(model, batch)
        torch.testing.assert_close(seen[0], own[batch.real], atol=1e-5, rtol=1e-5)
        assert float((changed - end)[batch.real].abs().max()) > 1e-4
        with torch.inference_mode():
            torch.testing.assert_close(run(model, batch), end, atol=1e-5, rtol=1e-5)


def test_an_edit_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, batch = made("bert", 0).eval(), a_batch(tmp_path)
    end = hidden_states(model, batch)[-1]

    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("no")

    reader = StateReader.of(model, "")
    with pytest.raises(RuntimeError, match="no"), reader.edited(model, 1, fails, batch.real):
        run(model, batch)
    torch.testing.assert_close(hidden_states(model, batch)[-1], end)


def perfect(means: Tensor) -> SaeStack:
    """Two latents for each coordinate, one each way: the reconstruction is the input."""
    both = torch.cat([torch.eye(HIDDEN), -torch.eye(HIDDEN)]).expand(SITES, -1, -1).clone()
    zeros = torch.zeros(SITES, 2 * HIDDEN)
    ones = torch.ones(SITES)
    return SaeStack(both, both.clone(), zeros, means.float(), ones, 1e9 * ones, zeros.clone())


def asked(model: PreTrainedModel, folder: Path, labels: bool = True) -> tuple[EvalSet, SplicedLoss, Dictionaries]:
    """Questions to a model, right by its own lights, and a dictionary for its sites that loses nothing."""
    tokenizer = tiny_tokenizer(folder)
    rows = [Row(text, None) for text in make_texts(60)]
    causal = model.config.model_type == "gpt2"
    eval_set = EvalSet(
        TokenizationSpec(tokenizer, 32, causal, StateReader(BLOCKS + 1, HIDDEN)),
        rows,
        "causal_lm" if causal else "classifier",
    )
    targets = _own_answers(eval_set, model) if labels and not causal else None
    body: PreTrainedModel = model.base_model  # type: ignore[assignment]
    found = [token_rows(hidden_states(body, batch), batch) for batch in eval_set.batches()]
    means = torch.cat(found, 1).double().mean(1).repeat(2, 1)
    changed, others = ([list[int]() for _ in range(BLOCKS + 1)] for _ in range(2))
    firing = [torch.zeros(2 * HIDDEN, 2)] * (BLOCKS + 1)
    dictionaries = Dictionaries(list(range(BLOCKS + 1)), perfect(means), means, perfect(means), changed, others, firing)
    return eval_set, SplicedLoss(eval_set, model, targets), dictionaries


def _own_answers(eval_set: EvalSet, model: PreTrainedModel) -> Tensor:
    targets = torch.zeros(len(eval_set.rows), dtype=torch.int64)
    for batch in eval_set.batches():
        found = eval_set.predict(model, batch)
        targets[found.texts] = found.log_probs.argmax(1)
    return targets


@pytest.mark.parametrize("kind", ["classifier", "unlabelled", "causal_lm"])
def test_all_is_recovered_by_a_perfect_code_and_nothing_by_the_mean(kind: str, tmp_path: Path) -> None:
    model = causal_lm() if kind == "causal_lm" else classifier(2)
    eval_set, loss, dictionaries = asked(model, tmp_path, labels=kind == "classifier")
    assert loss.by_divergence is (kind == "unlabelled")
    silent = replace(dictionaries, stack=perfect(dictionaries.means))
    silent.stack.threshold += 1e9
    found = splices(stage_context(tmp_path), dictionaries, eval_set, None, lambda: loss)
    assert found.base is None
    assert found.ablations == [None] * (BLOCKS + 1)
    known = [layer for layer, one in enumerate(found.tuned) if one.value is not None]
    assert known
    for layer in known:
        assert found.tuned[layer].value == pytest.approx(1.0, abs=1e-3)
        (flattened,) = loss.edited([layer_edits(silent, layer, layer, ablates=False, seed=0)], lambda _: None)
        assert loss_recovered(eval_set, flattened).value == pytest.approx(0.0, abs=1e-3)
    if kind != "causal_lm":  # its head reads the first token alone, which no autoencoder touches
        assert found.tuned[-1].value is None
        assert found.tuned[-1].undefined is not None


def test_an_ablation_takes_out_what_its_latents_write(tmp_path: Path) -> None:
    """Both latents of a coordinate taken out leave the mean there; draws are of all of them."""
    eval_set, loss, dictionaries = asked(causal_lm(), tmp_path)
    first, rest = list(range(8)), list(range(8, 16))
    changed = [*first, *(HIDDEN + one for one in first)]
    others = [*rest, *(HIDDEN + one for one in rest)]
    layer = 1
    dictionaries.changed[layer], dictionaries.others[layer] = changed, others
    mean = dictionaries.means[BLOCKS + 1 + layer].float()

    def moved(coordinates: list[int]) -> float:
        def flattened(rows: Tensor) -> Tensor:
            return rows.index_copy(1, torch.tensor(coordinates), mean[coordinates].expand(len(rows), -1))

        (scores,) = loss.edited([LayerEdits(layer, flattened, flattened, [flattened])], lambda _: None)
        (found,) = scores.moved
        assert int((found.counts > 0).sum()) == ABLATION_TEXTS
        return float(found.sums.sum() / found.counts.sum())

    edits = layer_edits(dictionaries, layer, BLOCKS + 1 + layer, ablates=True, seed=0)
    (of_layer,) = loss.edited([edits], lambda _: None)
    found = ablation(eval_set, of_layer, 16)
    assert found is not None
    assert found.latents == 16
    assert found.cost.value == pytest.approx(moved(first), rel=1e-3)
    assert found.draws == DRAWS
    assert found.p is not None
    assert found.p >= 1 / (DRAWS + 1)
    assert found.cost.noise_floor is not None
    assert 0 < found.cost.noise_floor < 2 * moved([*first, *rest])
    assert found.cost.low is not None
    (unchanged,) = loss.edited([layer_edits(dictionaries, 0, BLOCKS + 1, ablates=True, seed=0)], lambda _: None)
    assert ablation(eval_set, unchanged, 0) is None
