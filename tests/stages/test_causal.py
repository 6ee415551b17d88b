"""The stage that asks both models: pairs of classifiers and of language models on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from backends.tables.reading import Row
from tests.builders.heads import causal_lm, classifier
from tests.builders.models import BLOCKS, tiny_tokenizer
from tests.builders.stages import pair_context, resolved
from workers.results.effects import Causal, LayerGraft, Recommendation
from workers.results.outputs import Outputs
from workers.results.warnings import ReportWarning
from workers.stages.causal.stage import measure_effects
from workers.stages.common.inputs import Resolved
from workers.stages.compare.head_outputs import evaluate_outputs
from workers.stages.compare.stage import compare
from workers.stages.extract.stage import extract

NAMES = {0: "no", 1: "yes"}


def saved(model: PreTrainedModel, folder: Path, **config: Any) -> Path:
    model.config.update(config)
    model.save_pretrained(folder)
    tiny_tokenizer(folder).save_pretrained(folder)
    return folder


def noised(model: PreTrainedModel, scale: float) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


class Found(NamedTuple):
    """What the stages `compare` and `causal` found of the outputs."""

    outputs: Outputs | None
    causal: Causal
    grafts: list[LayerGraft] | None
    recommendation: Recommendation
    warnings: list[ReportWarning]


def judged(base: Path, tuned: Path, folder: Path, given: Resolved | None = None) -> Found:
    given = given or resolved(base, texts=80)
    context = pair_context(given, tuned, folder / "scratch")
    extracted = extract(context, None)
    compared = compare(context, extracted)
    evaluated = evaluate_outputs(context, compared.drift, extracted)
    found = measure_effects(context, extracted, compared, evaluated, None)
    warnings = [*evaluated.warnings, *found.warnings]
    return Found(evaluated.outputs, found.causal, found.grafts, found.recommendation, warnings)


def test_two_classifiers_are_compared_answer_by_answer(tmp_path: Path) -> None:
    base = saved(classifier(2), tmp_path / "base", id2label=NAMES)
    tuned = saved(noised(classifier(2), 0.1), tmp_path / "tuned", id2label=NAMES)
    found = judged(base, tuned, tmp_path)
    outputs = found.outputs
    assert outputs is not None
    assert (outputs.kind, outputs.examples, outputs.labels) == ("classifier", 80, ["no", "yes"])
    assert outputs.disagreement is not None
    assert outputs.js_divergence is not None
    assert outputs.js_divergence.value is not None
    assert 0 < outputs.js_divergence.value < 1
    for model in (outputs.base, outputs.tuned):
        assert model is not None
        assert model.accuracy is not None
        assert model.accuracy.low is not None
        assert model.accuracy.value is not None
    assert found.causal.graft is not None
    assert found.causal.graft.measure == "accuracy"
    assert outputs.tuned is not None
    assert outputs.tuned.accuracy is not None
    assert found.causal.graft.ungrafted == outputs.tuned.accuracy.value


def test_a_classifier_and_itself_agree_on_everything(tmp_path: Path) -> None:
    base = saved(classifier(2), tmp_path / "base", id2label=NAMES)
    outputs = judged(base, base, tmp_path).outputs
    assert outputs is not None
    assert outputs.disagreement is not None
    assert outputs.js_divergence is not None
    assert outputs.disagreement.value == 0.0
    assert outputs.js_divergence.value == pytest.approx(0.0, abs=1e-6)
    assert outputs.base == outputs.tuned


def test_classes_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    """The same classifier with its two classes swapped in name and in the head: it answers the same."""
    swapped = classifier(2)
    head = swapped.get_submodule("classifier")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(parameter.flip(0))
    base = saved(swapped, tmp_path / "base", id2label={0: "yes", 1: "no"})
    tuned = saved(classifier(2), tmp_path / "tuned", id2label=NAMES)
    outputs = judged(base, tuned, tmp_path).outputs
    assert outputs is not None
    assert outputs.disagreement is not None
    assert outputs.disagreement.value == 0.0
    assert outputs.base == outputs.tuned


def test_classifiers_of_other_classes_are_not_compared_and_say_so(tmp_path: Path) -> None:
    base = saved(classifier(3), tmp_path / "base")
    tuned = saved(classifier(2), tmp_path / "tuned", id2label=NAMES)
    found = judged(base, tuned, tmp_path)
    assert found.outputs is not None
    assert (found.outputs.base, found.outputs.disagreement) == (None, None)
    assert "different_classes" in [warning.code for warning in found.warnings]


def test_without_labels_grafts_are_judged_by_what_the_tuned_model_answered(tmp_path: Path) -> None:
    base = saved(classifier(2), tmp_path / "base", id2label=NAMES)
    tuned = saved(noised(classifier(2), 0.1), tmp_path / "tuned", id2label=NAMES)
    given = resolved(base, texts=80)
    unlabelled = [Row(row.text, None) for row in given.split.analysed]
    found = judged(base, tuned, tmp_path, replace(given, split=replace(given.split, analysed=unlabelled)))
    assert found.outputs is not None
    assert found.outputs.tuned is None
    assert found.outputs.disagreement is not None
    assert found.causal.graft is not None
    assert (found.causal.graft.measure, found.causal.graft.ungrafted) == ("kl", 0.0)
    assert found.grafts is not None
    assert all(graft.prefix.value is not None and graft.prefix.value > 0 for graft in found.grafts)


def test_labels_that_the_model_does_not_know_are_warned_of(tmp_path: Path) -> None:
    base = saved(classifier(2), tmp_path / "base", id2label={0: "no", 1: "other"})
    (warning,) = (one for one in judged(base, base, tmp_path).warnings if one.code == "unknown_labels")
    assert "they count as errors" in warning.message


def test_two_language_models_have_perplexities_and_grafts_undo_the_difference(tmp_path: Path) -> None:
    base = saved(causal_lm(), tmp_path / "base")
    tuned = saved(noised(causal_lm(), 0.05), tmp_path / "tuned")
    found = judged(base, tuned, tmp_path)
    outputs = found.outputs
    assert outputs is not None
    assert outputs.kind == "causal_lm"
    perplexities = [
        model.perplexity.value
        for model in (outputs.base, outputs.tuned)
        if model is not None and model.perplexity is not None
    ]
    assert len(perplexities) == 2
    assert all(value is not None and value > 1 for value in perplexities)
    assert perplexities[0] != perplexities[1]
    assert found.causal.graft is not None
    assert found.causal.graft.measure == "perplexity"
    assert found.causal.graft.ungrafted == pytest.approx(perplexities[1], rel=1e-6)
    assert found.grafts is not None
    assert len(found.grafts) == BLOCKS + 1
    for graft in found.grafts:
        cost, value = graft.prefix_cost.value, graft.prefix.value
        assert cost is not None
        assert value is not None
        assert value == pytest.approx(found.causal.graft.ungrafted * (1 + cost), rel=1e-6)
