"""`make bench-statistics`: how often intervals hold the truth, and how often rules and verdicts are wrong.

Everything is simulated through the product's own functions, but for rounding, which two real models are put through.
The last line printed is JSON.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor
from transformers import logging

from deploy.embedded.demo_inputs import fetch
from layerdrift import policies
from layerdrift.contract.policy import Decision
from layerdrift.gate import evaluate_policy
from tests.benchmarks.document import publish
from tests.benchmarks.measures import INPUTS, false_positives
from tests.builders.reports import changed
from tests.slow.real_pairs import smol_base
from workers.analysis.agreement import Agreement, agreement
from workers.analysis.matching import beyond_floor
from workers.analysis.moments import Frame, PairMoments
from workers.analysis.noninferiority import loss_bound
from workers.analysis.permutation import discoveries, matched_draws, p_value
from workers.analysis.proportions import change_interval, share_interval
from workers.analysis.similarity import SiteSimilarity, drift_of, similarities
from workers.results.effects import GraftInfo, LayerGraft, Recommendation, Sweep, SweepPoint
from workers.results.measured import Measured
from workers.scratch import GroupStore
from workers.stages.causal.grafting import predicted_by_grafts
from workers.stages.causal.sweep import advice_of
from workers.stages.common.intervals import change, measured, ratio, share, shared_change
from workers.stages.common.left_out import LeftOut
from workers.stages.compare.stage import LayerDrift, _zones

Rates = dict[str, float]
TEXTS, TOKENS, GROUPS, WIDTH = 200, 20, 20, 16
DRAWS = 300
REAL_PAIRS = {"minilm": (20, 100), "smollm2": (3, 20)}
"""Pairs that rounding alone tells apart, and texts of each."""


def main() -> None:
    """Prints and publishes the figures."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    found: dict[str, Rates] = {}
    for name, run in (
        ("coverage", coverage),
        ("false_positives", wrong_alarms),
        ("false_negatives", missed),
        ("rounding", rounding),
    ):
        found[name] = run()
        for what, rate in found[name].items():
            print(f"{name:16} {what:60} {rate:.3f}", flush=True)
    minutes = (time.perf_counter() - started) / 60
    _publish(found, minutes)
    print(json.dumps({"statistics": {**found, "minutes": round(minutes, 1)}}))


def coverage() -> Rates:
    """Shares of samples whose 95 % interval holds the truth."""
    return {
        "accuracy 0.95 to 0.997, 200 texts": _share_coverage(200, range(950, 998)),
        "accuracy 0.95 to 0.997, 1,000 texts": _share_coverage(1000, range(950, 998)),
        "accuracy 0.5 to 0.95, 200 texts": _share_coverage(200, range(500, 950, 10)),
        "change of accuracy, 20 % differ, equal": _change_coverage(0.2, 0.0),
        "change of accuracy, 20 % differ, 5 points worse": _change_coverage(0.2, -0.05),
        "change of accuracy, 2 % differ, 1 point worse": _change_coverage(0.02, -0.01),
        "disagreement 0.2 % of tokens, alike in a text": _clustered(0.002),
        "disagreement 1 % of tokens, alike in a text": _clustered(0.01),
        "disagreement 20 % of tokens, alike in a text": _clustered(0.2),
        "disagreement 99 % of tokens, alike in a text": _clustered(0.99),
        "perplexity ratio, 100 texts": _perplexity_coverage(100),
        "perplexity ratio, 20 texts": _perplexity_coverage(20),
        "drift, half of the variance its own": _drift_coverage(0.5),
        "drift, 1 % of the variance its own": _drift_coverage(0.01),
        "drift, all of the variance its own": _drift_coverage(1.0),
        "drift, one token in 4 kept for the interval": _drift_coverage(0.3, every=4),
        "centred relative L2": _drift_coverage(0.3, measure="relative_l2_centred"),
        "CKA with standardised features": _drift_coverage(0.3, measure="cka_standardized"),
        "reproducibility of three seeds, half alike": _seeds_coverage(0.5),
        "reproducibility of three seeds, not alike": _seeds_coverage(0.0),
        "one-sided bound of a loss of 3 points, 400 texts, 2 seeds": _bound_coverage(0.03, 400),
        "one-sided bound of a loss of 3 points, 200 texts, 2 seeds": _bound_coverage(0.03, 200),
    }


def wrong_alarms() -> Rates:
    """Shares of samples in which a rule fails, or a finding is told, where there is nothing."""
    return {
        "accuracy-kept: an equal model fails": _accuracy_rule(0.0, "accuracy-kept", "fail"),
        "accuracy-kept: a model 2 points worse fails": _accuracy_rule(-0.02, "accuracy-kept", "fail"),
        "better-than-majority-class: unrelated answers pass, 2 even classes": _mcc_passes([0.5, 0.5]),
        "better-than-majority-class: unrelated answers pass, 5 % rare": _mcc_passes([0.95, 0.05]),
        "better-than-majority-class: unrelated answers pass, 5 classes": _mcc_passes([0.4, 0.3, 0.2, 0.05, 0.05]),
        "better-than-majority-class: 97 % against 95 % fails, 500 texts": 1 - _rare_labels_pass(500),
        "not-worse-than-majority-class: 97 % against 95 % fails": _majority_rule(0.97),
        "perplexity-kept: a model 20 % worse fails": _perplexity_rule(1.2),
        "perplexity-kept: an equal model fails": _perplexity_rule(1.0),
        "advice from grafts: a cost of 5 points is called harmless, 50 texts": _graft_advice(0.05, 50),
        "advice from grafts: a cost of 5 points is called harmless, 200 texts": _graft_advice(0.05, 200),
        "advice from grafts: a cost of 5 points is called harmless, 500 texts": _graft_advice(0.05, 500),
        "advice from grafts: a cost of 0.5 points is called harmless, 5,000 texts": _graft_advice(0.005, 5000),
        "sweep: one of 12 depths at the bound is validated": _sweep_validates(0.005, 12, 2000),
        "sweep: a loss of 3 points is validated, 200 texts": _sweep_validates(0.03, 1, 200),
        "new latents reported although both counts are 20": _new_latents(20, 20),
        "new latents reported although both counts are 200": _new_latents(200, 200),
        "labels of latents: false ones among those told, all unrelated": _false_labels(0),
        "labels of latents: false ones among those told, half related": _false_labels(50),
        "ablation: p of 0.05 or less of latents like the others": _ablation(1.0),
        "zones: steps of a ramp are called supported, and do not recur": _ramp_steps(),
    }


def missed() -> Rates:
    """Shares of samples in which a rule passes, or a finding is not told, where there is one."""
    return {
        "accuracy-kept: a model 10 points worse passes, 200 texts": 1 - _accuracy_rule(-0.1, "accuracy-kept", "fail"),
        "accuracy-shown-kept: a model 5 points worse is not warned of": 1
        - _accuracy_rule(-0.05, "accuracy-shown-kept", "warn"),
        "better-than-majority-class: a collapsed model passes": float(_passes(_table(0.0, 1.0))),
        "not-worse-than-majority-class: 90 % against 95 % passes": 1 - _majority_rule(0.9),
        "perplexity-kept: a model 40 % worse passes": 1 - _perplexity_rule(1.4),
        "advice from grafts: a cost of 0 is not called harmless, 5,000 texts": 1 - _graft_advice(0.0, 5000),
        "sweep: a loss of 0 is not validated, 2,000 texts": 1 - _sweep_validates(0.0, 1, 2000),
        "new latents not reported, 60 against 20": 1 - _new_latents(60, 20),
        "ablation: p above 0.05 of latents that cost twice as much": 1 - _ablation(2.0),
    }


def rounding() -> Rates:
    """Shares of layers that are called drifted between models that rounding alone tells apart."""
    found = {}
    kept = Path("var") / "real-pairs"
    kept.mkdir(parents=True, exist_ok=True)
    models = {"minilm": fetch(INPUTS).model, "smollm2": smol_base(kept)}
    for name, model in models.items():
        pairs, texts = REAL_PAIRS[name]
        drifted, layers = false_positives(model, pairs, texts)
        found[f"{name}: layers called drifted, {pairs} pairs, {layers} layers"] = drifted / layers
    return found


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng([17, *numbers])


def _often(draws: int, one: Callable[[np.random.Generator], bool]) -> float:
    """How often something is so, each time with another generator."""
    return sum(one(_rng(number)) for number in range(draws)) / draws


def _held(number: Measured, truth: float) -> bool:
    return number.low is not None and number.high is not None and number.low <= truth <= number.high


def _share_coverage(texts: int, thousandths: range) -> float:
    """Exactly, over all counts; mean over true shares, since single ones jump with whole counts."""
    found = []
    for share_ in (number / 1000 for number in thousandths):
        hits = np.arange(texts + 1)
        ends = np.array([share_interval(int(one), texts) for one in hits])
        inside = (ends[:, 0] <= share_) & (share_ <= ends[:, 1])
        found.append(float(binom.pmf(hits, texts, share_) @ inside))
    return sum(found) / len(found)


def _outcomes(rng: np.random.Generator, differing: float, change_: float, texts: int = TEXTS) -> tuple[int, int]:
    """Texts that the second model alone has right, and the first alone."""
    gains, losses, _ = rng.multinomial(texts, [(differing + change_) / 2, (differing - change_) / 2, 1 - differing])
    return int(gains), int(losses)


def _change_coverage(differing: float, change_: float) -> float:
    def covers(rng: np.random.Generator) -> bool:
        low, high = change_interval(*_outcomes(rng, differing, change_), TEXTS)
        return low <= change_ <= high

    return _often(20 * DRAWS, covers)


def _clustered(rare: float, alike: float = 0.1) -> float:
    """Tokens of one text have an intraclass correlation; 40 of each of 150 texts."""
    texts, tokens = 150, 40

    def covers(rng: np.random.Generator) -> bool:
        of_text = rng.beta(rare * (1 - alike) / alike, (1 - rare) * (1 - alike) / alike, texts)
        hits = torch.from_numpy(rng.binomial(tokens, of_text).astype(float))
        return _held(share(hits, torch.full((texts,), float(tokens), dtype=torch.float64)), rare)

    return _often(5 * DRAWS, covers)


def _perplexity(rng: np.random.Generator, factor: float, texts: int) -> Measured:
    """Texts of 10 to 60 tokens; their mean rises differ by 0.3 nats, those of a text's tokens by 1."""
    counts = rng.integers(10, 60, texts)
    means = rng.normal(math.log(factor), 0.3, texts)
    sums = counts * means + rng.normal(0, 1, texts) * np.sqrt(counts)
    groups = np.arange(texts) % max(1, min(GROUPS, texts // 2))
    of_groups, in_groups = (torch.from_numpy(np.bincount(groups, weights=one.astype(float))) for one in (sums, counts))
    return ratio(of_groups, in_groups, math.exp, (0.0, math.inf))


def _perplexity_coverage(texts: int) -> float:
    return _often(5 * DRAWS, lambda rng: _held(_perplexity(rng, 1.1, texts), 1.1))


def _perplexity_rule(factor: float) -> float:
    def fails(rng: np.random.Generator) -> bool:
        outputs = {"kind": "causal_lm", "examples": 900, "perplexity_ratio": asdict(_perplexity(rng, factor, 100))}
        return _decision("outputs", outputs, "perplexity-kept") == "fail"

    return _often(DRAWS, fails)


def _decision(path: str, value: Any, rule: str) -> Decision:
    """What the starter policy says of a sound report with something else at one place."""
    verdict = evaluate_policy(policies.load(policies.starter()), changed(path, value))
    return next(check.decision for check in verdict.checks if check.id == rule)


def _rows(rng: np.random.Generator, own: float, texts: int) -> tuple[Tensor, Tensor]:
    """Tokens of two models at one layer, [texts, TOKENS, WIDTH] each: alike in a text, `own` of y's variance its own.

    Features have falling variances, and y's own part is independent of x: the population's numbers follow.
    """
    scale = np.linspace(1.5, 0.5, WIDTH)

    def drawn() -> np.ndarray[Any, Any]:
        common = rng.normal(size=(texts, 1, WIDTH)) * 0.5**0.5
        found: np.ndarray[Any, Any] = (common + rng.normal(size=(texts, TOKENS, WIDTH)) * 0.5**0.5) * scale
        return found

    x, other = drawn(), drawn()
    y = (1 - own) ** 0.5 * x + own**0.5 * other
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def _drift_coverage(own: float, every: int = 1, measure: str = "cka") -> float:
    """The truth is the mean over many samples of a size at which debiased numbers do not move any more."""
    large = [_site(*_rows(_rng(number, 1), own, 4000), measure) for number in range(4)]
    truth = sum(large) / len(large)

    def covers(rng: np.random.Generator) -> bool:
        base, tuned = _rows(rng, own, 100)
        with tempfile.TemporaryDirectory() as folder:
            store = GroupStore(Path(folder), 1 << 30, every)
            total, left_out = _left_out(base, tuned, store)
        others = [getattr(one, measure) for one in left_out.of_layer(0)]
        found = getattr(similarities(total)[0], measure)
        return _held(measured(found, others, corrected=left_out.whole), truth)

    return _often(DRAWS, covers)


def _site(base: Tensor, tuned: Tensor, measure: str) -> float:
    x, y = base.flatten(0, 1)[None], tuned.flatten(0, 1)[None]
    moments = PairMoments.zeros(Frame.of(x, y))
    moments.add(x, y)
    found: float = getattr(similarities(moments)[0], measure)
    return found


def _left_out(base: Tensor, tuned: Tensor, store: GroupStore) -> tuple[PairMoments, LeftOut]:
    """The moments of all rows, and the similarities without each of 20 groups of texts."""
    rows = base.flatten(0, 1)[None], tuned.flatten(0, 1)[None]
    frame = Frame.of(*rows)
    total = PairMoments.zeros(frame)
    total.add(*rows)
    for group in range(GROUPS):
        part = PairMoments.zeros(frame)
        kept = (one[group::GROUPS].flatten(0, 1)[:: store.every][None].contiguous() for one in (base, tuned))
        part.add(*kept)
        store.put(part)
    return total, LeftOut.of(total, store, lambda _: None)


def _seeds_coverage(together: float) -> float:
    """Each seed moves all texts, and each text a little in its own way."""

    def covers(rng: np.random.Generator) -> bool:
        common = rng.normal(size=(GROUPS, 40, WIDTH))
        own = rng.normal(size=(3, GROUPS, 40, WIDTH))
        changes = together**0.5 * common + (1 - together) ** 0.5 * own
        return _held(shared_change(torch.from_numpy(np.einsum("igtd,jgtd->gij", changes, changes))), together)

    return _often(DRAWS, covers)


def _hits(rng: np.random.Generator, loss: float, texts: int, seeds: int = 2) -> tuple[Tensor, Tensor]:
    """Right answers of two recipes at the same texts and seeds, [seeds, texts].

    Texts differ in how hard they are, seeds in how well they fall out (0.2 points).
    """
    hard = rng.beta(4, 1, texts)
    found = []
    for extra in (0.0, loss):
        level = hard - extra * hard / hard.mean() + rng.normal(0, 0.002, (seeds, 1))
        found.append(torch.from_numpy((rng.random((seeds, texts)) < level).astype(float)))
    return found[0], found[1]


def _bound_coverage(loss: float, texts: int) -> float:
    return _often(5 * DRAWS, lambda rng: loss_bound(*_hits(rng, loss, texts)).bound >= loss)


def _sweep_validates(loss: float, depths: int, texts: int) -> float:
    """Whether any depth is validated where all of them lose as much."""

    def validates(rng: np.random.Generator) -> bool:
        points = []
        for depth in range(1, depths + 1):
            bound = 100 * loss_bound(*_hits(rng, loss, texts)).bound
            points.append(_point(depth, bound))
        sweep = Sweep(epsilon_points=0.5, seeds=[0, 1], examples=texts, points=[_point(0, 0.0), *points], strategies=[])
        none = Recommendation(freeze_first=0, basis="predicted", evidence="")
        return advice_of(sweep, none).basis == "validated"

    return _often(DRAWS, validates)


def _point(depth: int, bound: float) -> SweepPoint:
    return SweepPoint(
        freeze_first=depth,
        accuracy=0.8,
        by_seed=[0.8, 0.8],
        loss_points=0.0,
        loss_bound_points=bound,
        validated=bound < 0.5,
        step_seconds=1.0,
        training_bytes=1,
        cached=False,
    )


def _accuracy_rule(change_: float, rule: str, decision: Decision) -> float:
    def decides(rng: np.random.Generator) -> bool:
        gains, losses = _outcomes(rng, 0.2, change_)
        won, lost = torch.zeros(2, TEXTS, dtype=torch.float64)
        won[:gains], lost[gains : gains + losses] = 1, 1
        found = change(won, lost, torch.ones(TEXTS, dtype=torch.float64))
        return _decision("outputs.accuracy_change", asdict(found), rule) == decision

    return _often(DRAWS, decides)


def _majority_rule(accuracy: float) -> float:
    """Against a constant that is right on 95 %; most of the differing texts are the rare ones."""

    def fails(rng: np.random.Generator) -> bool:
        rare = rng.random(TEXTS) < 0.05
        right = np.where(rare, rng.random(TEXTS) < 0.6, rng.random(TEXTS) < (accuracy - 0.03) / 0.95)
        gains, losses = (torch.from_numpy(one.astype(float)) for one in (right & rare, ~right & ~rare))
        found = change(gains, losses, torch.ones(TEXTS, dtype=torch.float64))
        return _decision("outputs.majority_change", asdict(found), "not-worse-than-majority-class") == "fail"

    return _often(DRAWS, fails)


def _table(rare_right: float, common_right: float, texts: int = TEXTS) -> Tensor:
    """Labels by answers of a class of 95 % and one of 5 %, as expected."""
    rare = round(0.05 * texts)
    common = texts - rare
    hits, others = round(rare_right * rare), round(common_right * common)
    return torch.tensor([[others, common - others], [rare - hits, hits]])


def _agreement(table: Tensor) -> Agreement:
    """Of a table of labels by answers."""
    labels, answers = table.nonzero().repeat_interleave(table[table != 0].long(), 0).T
    return agreement(labels, answers, torch.arange(len(labels)))


def _passes(table: Tensor) -> bool:
    found = _agreement(table)
    value = {"value": found.mcc, "noise_floor": found.by_chance}
    return _decision("outputs.tuned.mcc", value, "better-than-majority-class") == "pass"


def _mcc_passes(shares: list[float]) -> float:
    """Answers that have the labels' shares and nothing else to do with them."""

    def passes(rng: np.random.Generator) -> bool:
        labels, answers = (rng.choice(len(shares), TEXTS, p=shares) for _ in range(2))
        table = np.zeros((len(shares), len(shares)))
        np.add.at(table, (labels, answers), 1)
        found = _agreement(torch.from_numpy(table)) if len(set(labels.tolist())) > 1 else None
        return found is not None and found.mcc >= found.by_chance

    return _often(10 * DRAWS, passes)


def _rare_labels_pass(texts: int) -> float:
    def passes(rng: np.random.Generator) -> bool:
        rare = int(rng.binomial(texts, 0.05))
        hits, wrong = rng.binomial(rare, 0.6), rng.binomial(texts - rare, 0.0105)
        table = torch.tensor([[texts - rare - wrong, wrong], [rare - hits, hits]])
        found = _agreement(table)
        return rare > 0 and found.mcc >= found.by_chance

    return _often(DRAWS, passes)


def _graft_advice(cost: float, texts: int) -> float:
    """Whether blocks that cost so much are advised to be frozen; the embeddings are the same in both models."""
    differing = max(0.1, 2 * cost)

    def advises(rng: np.random.Generator) -> bool:
        grafts = []
        for true in (None, cost, 0.3):
            if true is None:
                found = Measured(value=0.0, low=0.0, high=0.0)
            else:
                gains, losses = _outcomes(rng, max(differing, true), true, texts)
                low, high = change_interval(gains, losses, texts)
                found = Measured(value=(gains - losses) / texts, low=low, high=high)
            number = Measured(value=0.8)
            grafts.append(LayerGraft(prefix=number, block=number, prefix_cost=found))
        advice = predicted_by_grafts(GraftInfo(measure="accuracy", ungrafted=0.8, examples=texts), grafts)
        return advice is not None and advice.basis == "predicted" and advice.freeze_first >= 1

    return _often(DRAWS, advises)


def _new_latents(count: float, floor: float) -> float:
    return _often(10 * DRAWS, lambda rng: beyond_floor(int(rng.poisson(count)), int(rng.poisson(floor))))


def _false_labels(related: int) -> float:
    """Of 100 latents in a report, so many go with a label; mean over reports of the share that is false."""
    shares = []
    for number in range(100):
        rng = _rng(number, related)
        by_chance = rng.normal(size=(100, 999))
        seen = rng.normal(size=100)
        seen[:related] += 4
        told = discoveries([p_value(one, torch.from_numpy(row)) for one, row in zip(seen, by_chance, strict=True)])
        count = sum(told)
        shares.append(sum(told[related:]) / count if count else 0.0)
    return sum(shares) / len(shares)


def _ablation(factor: float) -> float:
    """How often p is 0.05 or less: costs grow with how often and how strongly a latent fires, and with the factor."""

    def small(rng: np.random.Generator) -> bool:
        features = torch.from_numpy(rng.normal(size=(400, 2)))
        costs = torch.exp(features.sum(1)) * torch.from_numpy(rng.lognormal(0, 0.5, 400))
        places = torch.from_numpy(rng.permutation(400))
        chosen, others = places[:20], places[20:]
        draws = matched_draws(chosen, others, features, 20, 10, torch.Generator().manual_seed(int(rng.integers(2**31))))
        by_chance = torch.stack([costs[draw].sum() for draw in draws])
        return p_value(factor * float(costs[chosen].sum()), by_chance) <= 0.05

    return _often(DRAWS, small)


def _ramp_steps() -> float:
    """Of zones with a support of 0.95 or more on a noisy ramp, those that a fresh sample does not give again."""
    truth = np.linspace(0.02, 0.7, 13)
    told = again = 0
    for number in range(100):
        zones, fresh = ({(z.first, z.last): z for z in _sampled_zones(truth, _rng(number, part))} for part in (0, 1))
        for span, zone in zones.items():
            if zone.name != "ramp" and (zone.support or 0) >= 0.95:
                told += 1
                again += span in fresh
    return (told - again) / told if told else 0.0


def _sampled_zones(truth: np.ndarray[Any, Any], rng: np.random.Generator) -> list[Any]:
    """Zones of a curve whose groups of texts each have a curve of their own."""
    groups = truth + rng.normal(0, 0.15, (GROUPS, len(truth)))
    curve = groups.mean(0)
    left_out = [
        [SiteSimilarity(0.0, 0.0, 0.0, float(1 - value)) for value in (curve * GROUPS - group) / (GROUPS - 1)]
        for group in groups
    ]
    none = Measured(value=None)
    layers = [LayerDrift(float(value), {"numerical": 0.0}, float(value), True, None, none) for value in curve]
    assert drift_of(left_out[0][0]) >= -1
    return _zones(layers, LeftOut(left_out), 0)


def _publish(found: dict[str, Rates], minutes: float) -> None:
    def table(name: str) -> str:
        return "\n".join(f"| {what} | {100 * rate:.1f} % |" for what, rate in found[name].items())

    publish(
        "Statistics (`make bench-statistics`)",
        f"""
Simulated through the product's own functions ({minutes:.0f} minutes). Nominal: intervals hold the truth in 95 % of
samples; a rule that looks at one end of an interval is wrong in 2.5 % where the truth lies at its limit, a one-sided
bound in 5 %.

| interval | holds the truth |
|---|---|
{table("coverage")}

| false positives | |
|---|---|
{table("false_positives")}

| false negatives | |
|---|---|
{table("false_negatives")}

| rounding alone (weights rounded to float16, to bfloat16, and at random to a bfloat16 beside them) | |
|---|---|
{table("rounding")}
""",
    )


if __name__ == "__main__":
    main()
