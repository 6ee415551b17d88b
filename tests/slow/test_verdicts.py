"""Five real pairs through the whole service: every verdict, every advice and every sentence must be right."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.embedded.demo_inputs import DemoInputs, fetch
from deploy.embedded.stack import Stack
from layerdrift import policies
from layerdrift.contract.policy import Verdict
from layerdrift.contract.report import Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.gate import evaluate_policy
from layerdrift.render import sentences
from layerdrift.sdk import Client
from tests.slow.real_pairs import SOUND, WRECKING, first_reviews, smol_base, smol_lora, town_texts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KEPT = Path("var") / "real-pairs"
TEXTS, TOKENS, LENGTH = 150, 2500, 48
JOB_SECONDS = 3000


@pytest.fixture(scope="module")
def inputs() -> DemoInputs:
    return fetch(Path("var") / "demo")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, inputs: DemoInputs) -> Iterator[Client]:
    roots = f"{KEPT.resolve()}:{inputs.model.parent.parent.resolve()}"
    home = tmp_path_factory.mktemp("home")
    with Stack({"LAYERDRIFT_HOME": str(home), "LAYERDRIFT_MODEL_ROOTS": roots}) as stack, Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def smol(inputs: DemoInputs) -> Path:
    KEPT.mkdir(parents=True, exist_ok=True)
    return smol_base(KEPT).resolve()


def reported(client: Client, body: dict[str, Any]) -> tuple[Report, Verdict]:
    report = client.wait(client.submit(AnalysisRequest.model_validate(body)).id, JOB_SECONDS)
    return report, evaluate_policy(policies.load(policies.starter()), report)


def language_models(client: Client, inputs: DemoInputs, base: Path, tuned: Path) -> tuple[Report, Verdict]:
    reviews = first_reviews(inputs.reviews, TEXTS, KEPT / "reviews.csv").resolve()
    analysis = {"sae": None, "max_tokens": TOKENS, "max_length": LENGTH, "grafts": False}
    sides = {"base": {"uri": base.as_uri()}, "tuned": {"uri": tuned.as_uri()}}
    return reported(client, {**sides, "dataset": {"uri": reviews.as_uri()}, "analysis": analysis})


def classifier(client: Client, inputs: DemoInputs, **finetune: Any) -> tuple[Report, Verdict]:
    body = {
        "base": {"uri": inputs.model.resolve().as_uri()},
        "finetune": {"train_examples": 600, "epochs": 2, "batch_size": 16, **finetune},
        "dataset": {"uri": inputs.reviews.resolve().as_uri(), "max_examples": 300, "label_column": "label"},
        "analysis": {"sae": None},
    }
    return reported(client, body)


def decisions(verdict: Verdict) -> dict[str, str]:
    return {check.id: check.decision for check in verdict.checks if check.decision != "pass"}


def test_a_wrecked_chat_model_fails_and_its_curve_rises(service: Client, inputs: DemoInputs, smol: Path) -> None:
    """Drift is that of a computation apart, in float64, within 0.01 at every layer."""
    adapter = smol_lora(smol, KEPT / "wrecked", WRECKING, town_texts()).resolve()
    report, verdict = language_models(service, inputs, smol, adapter)
    assert verdict.decision == "fail"
    assert decisions(verdict)["perplexity-kept"] == "fail"
    assert report.recommendation.basis == "none"
    assert sentences.advice(report).startswith("No advice on what to freeze. The tuned model's perplexity")
    assert report.outputs is not None
    assert report.outputs.perplexity_ratio is not None
    assert (report.outputs.perplexity_ratio.low or 0) > 5
    assert any("performs worse" in line for line in sentences.cautions(report))
    assert not {layer.index for layer in report.layers if layer.index > 0 and not layer.drifted}
    with (KEPT / "reviews.csv").open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    expected = drift_apart(smol, adapter, texts[: report.dataset.analysed_texts])
    found = [layer.drift for layer in report.layers]
    assert found[12:] == pytest.approx(expected[12:], abs=0.01)
    assert found[28] > 3 * found[12]
    hidden = [layer.all_tokens.drift for layer in report.layers if layer.all_tokens]
    assert max(hidden[12:29]) < 0.01
    assert "excluded_tokens" in [warning.code for warning in report.warnings]


def drift_apart(base: Path, adapter: Path, texts: list[str]) -> list[float]:
    """1 - debiased CKA, layer by layer, from transformers' own states; the judge.

    Of all tokens but first ones and those that are longer than 10 medians at some layer of one of the models.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows: list[list[Tensor]] = []
    for adapted in (False, True):
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        if adapted:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        layers: list[list[Tensor]] = []
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=LENGTH)["input_ids"]
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states
            layers.append([state[0, 1:].double() for state in states])
        rows.append([torch.cat(parts) for parts in zip(*layers, strict=True)])
        del model
    outlying = torch.stack([_outlying(layer) for side in rows for layer in side]).any(0)
    return [1 - debiased_cka(one[~outlying], other[~outlying]) for one, other in zip(*rows, strict=True)]


def _outlying(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1)
    outlying: Tensor = norms > 10 * norms.median()
    return outlying


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """From the n x n Gram matrices, as Song et al. 2012 define the estimator."""
    grams = []
    for rows in (x, y):
        gram = (rows - rows.mean(0)) @ (rows - rows.mean(0)).T
        grams.append(gram.fill_diagonal_(0))

    def hsic(one: Tensor, other: Tensor) -> float:
        n = len(one)
        cross = float(one.sum(0) @ other.sum(1))
        total = float(one.sum() * other.sum()) / ((n - 1) * (n - 2))
        return (float((one * other).sum()) + total - 2 / (n - 2) * cross) / (n * (n - 3))

    return hsic(*grams) / float((hsic(grams[0], grams[0]) * hsic(grams[1], grams[1])) ** 0.5)


def test_a_sound_chat_model_passes(service: Client, inputs: DemoInputs, smol: Path) -> None:
    with inputs.reviews.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)][2000:2400]
    adapter = smol_lora(smol, KEPT / "sound", SOUND, texts).resolve()
    report, verdict = language_models(service, inputs, smol, adapter)
    assert (verdict.decision, decisions(verdict)) == ("pass", {})
    assert report.outputs is not None
    assert report.outputs.perplexity_ratio is not None
    assert (report.outputs.perplexity_ratio.value or 9) < 1.0
    assert sentences.cautions(report) == []


def test_a_chat_model_and_itself_are_identical(service: Client, inputs: DemoInputs, smol: Path) -> None:
    report, verdict = language_models(service, inputs, smol, smol)
    assert [layer.drift for layer in report.layers] == [0.0] * len(report.layers)
    assert verdict.decision == "warn"
    assert "something-was-tuned" in decisions(verdict)
    assert sentences.headline(report).startswith("The models are identical at every layer")
    assert "freeze" not in sentences.advice(report).lower()


def test_a_sound_classifier_passes_and_gets_advice(service: Client, inputs: DemoInputs) -> None:
    report, verdict = classifier(service, inputs, learning_rate=5e-5)
    assert verdict.decision == "pass", decisions(verdict)
    assert report.recommendation.basis == "predicted"
    assert report.outputs is not None
    assert report.outputs.tuned is not None
    assert report.outputs.tuned.accuracy is not None
    assert (report.outputs.tuned.accuracy.low or 0) > (report.outputs.majority_accuracy or 1)


def test_a_wrecked_classifier_fails_and_gets_no_advice(service: Client, inputs: DemoInputs) -> None:
    report, verdict = classifier(service, inputs, learning_rate=2e-2, keep="last")
    assert verdict.decision == "fail"
    assert {"early-layers-kept", "better-than-majority-class"} <= set(decisions(verdict))
    assert report.recommendation.basis == "none"
    assert "majority class" in sentences.advice(report)
