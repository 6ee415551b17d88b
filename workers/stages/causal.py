"""Stage `causal`: does the change matter? Outputs of both models, grafts, and where asked the freeze sweep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from layerdrift.backends.tables import Row
from layerdrift.contract.report import (
    Causal,
    ChangedLatent,
    GraftInfo,
    LayerGraft,
    Measured,
    ModelOutputs,
    Outputs,
    Recommendation,
    ReportWarning,
)
from layerdrift.contract.request import AnalysisRequest
from workers.models.device import best_device
from workers.models.grafts import BaseWeights
from workers.models.loading import Headed, body_of, head_kind, head_refusal, load_body, load_headed
from workers.models.structure import shares_blocks
from workers.stages.answers import (
    RANGES,
    TRANSFORMS,
    UNKNOWN,
    UNLABELLED,
    Judge,
    Measure,
    Predicted,
    Questions,
    Scores,
    Targets,
    by_text,
    class_targets,
    divergence_bits,
    grouped,
    over_common_tokens,
    quality,
)
from workers.stages.compare import Compared
from workers.stages.doubts import doubts_of, relative_head_change, without_doubts
from workers.stages.extract import Extracted
from workers.stages.intervals import ratio
from workers.stages.keeping import NOTHING_KEPT, Keeping
from workers.stages.latents import promoted
from workers.stages.resolve import Checkpoint, Resolved
from workers.stages.sae import Trained
from workers.stages.splicing import SPLICE_TEXTS, Dictionaries, Spliced, SplicedLoss, splices
from workers.stages.sweep import NOT_RETRAINED, freeze_sweep
from workers.stages.tick import SharedTicks, Tick

GRAFT_TEXTS = 500
"""Texts that every graft is judged on: one evaluation for each layer, twice."""

GRAFT_COST, SPLICE_COST, SWEEP_COST = 4.0, 4.0, 20.0
"""Shares of the stage's progress that these take, against 1 for the outputs."""


@dataclass(frozen=True)
class Judged:
    """What the stage found; `grafts` by layer; `spliced` where there are autoencoders and a head.

    latents: as they came, with what they promote in a language model.
    """

    outputs: Outputs | None
    grafts: list[LayerGraft] | None
    spliced: Spliced | None
    latents: list[ChangedLatent]
    causal: Causal
    recommendation: Recommendation
    warnings: list[ReportWarning]


def judge(
    request: AnalysisRequest,
    resolved: Resolved,
    checkpoint: Checkpoint,
    compared: Compared,
    trained: Trained | None,
    extracted: Extracted,
    folder: Path,
    tick: Tick,
    keeping: Keeping = NOTHING_KEPT,
) -> Judged:
    """Asks the models about the texts that were compared.

    Raises:
        InputError: a checkpoint cannot be loaded with its head, or a retraining diverged.
    """
    swept = request.analysis.freeze_sweep is not None
    ticks = SharedTicks(
        tick,
        [
            1.0,
            SPLICE_COST if trained else 0.0,
            GRAFT_COST * request.analysis.grafts,
            SWEEP_COST * swept,
        ],
    )
    device = best_device()
    weights, warnings = _base_weights(request, resolved, folder)
    tuned = load_headed(checkpoint.folder, "/tuned/uri", device)
    warnings += _head_warnings(checkpoint, tuned)
    if tuned is not None and tuned.kind == "causal_lm" and not extracted.reading.causal:
        tuned = None
        message = (
            "the tuned model's answers were not judged: its head predicts the next token, but the model sees later "
            "tokens. Its representations were compared all the same"
        )
        warnings.append(ReportWarning(code="answers_not_judged", message=message))
    rows = resolved.split.analysed[: extracted.analysed]
    model = tuned.model if tuned else load_body(checkpoint.folder, "/tuned/uri", device)
    questions = Questions(extracted.reading, rows, tuned.kind if tuned else "classifier")
    outputs: Outputs | None = None
    found: Spliced | None = None
    latents = trained.latents if trained else []
    asking, splicing = ticks.next("outputs of the models"), ticks.next("autoencoders in the models")
    head_change = None
    if tuned is not None:
        base = _base_with_head(resolved, tuned)
        outputs, more = _outputs(questions, base, tuned, asking)
        warnings += more
        head_change = relative_head_change(base.model, tuned.model) if base is not None else None
        if trained is not None and outputs is not None:
            found = _spliced(trained.dictionaries, questions, base, tuned, request.seed, splicing)
        if trained is not None and tuned.kind == "causal_lm":
            latents = promoted(trained.latents, trained.dictionaries, tuned.model, questions.reading.tokenizer)
        del base
    grafts, info = None, None
    grafting = ticks.next("grafts")
    if weights is not None:
        grafts, info = _grafts(weights, model, questions, tuned is not None, grafting)
    del model, tuned
    causal = Causal(graft=info, splice=found.info if found else None)
    doubts = doubts_of(outputs, compared.drift, head_change, len(rows))
    warnings += [ReportWarning(code=doubt.code, message=doubt.message) for doubt in doubts if doubt.code is not None]
    recommendation = compared.recommendation
    if info is not None and grafts is not None and any(drift > 0 for drift in compared.drift):
        recommendation = predicted_by_grafts(info, grafts) or recommendation
    if swept:
        sweep, recommendation = freeze_sweep(request, resolved, recommendation, ticks.next("freeze sweep"), keeping)
        causal = causal.model_copy(update={"sweep": sweep})
    if any(drift > 0 for drift in compared.drift):
        recommendation = without_doubts(recommendation, doubts)
    return Judged(outputs, grafts, found, latents, causal, recommendation, warnings)


def _base_weights(
    request: AnalysisRequest, resolved: Resolved, folder: Path
) -> tuple[BaseWeights | None, list[ReportWarning]]:
    """The base model's parts for grafts; none where they are not asked for, or where its blocks share their weights."""
    if not request.analysis.grafts:
        return None, []
    body = load_body(resolved.base.folder, "/base/uri", best_device())
    if not shares_blocks(body):
        return BaseWeights(body, folder / "grafts"), []
    message = (
        f"the blocks of {type(body).__name__} share their weights: no block can be exchanged or frozen without the "
        "others, so grafts and advice on freezing are left out"
    )
    return None, [ReportWarning(code="shared_blocks", message=message)]


def _head_warnings(checkpoint: Checkpoint, tuned: Headed | None) -> list[ReportWarning]:
    """Why the answers of a model that says it has a head are not judged."""
    if tuned is not None:
        return []
    reason = head_refusal(checkpoint.folder, "/tuned/uri")
    if reason is None and head_kind(checkpoint.folder, "/tuned/uri") is not None:
        reason = "its files do not hold the whole head that config.json names"
    reason = reason or "it has no head"
    message = f"the tuned model's answers were not judged: {reason}. Its representations were compared all the same"
    return [ReportWarning(code="answers_not_judged", message=message)]


def _base_with_head(resolved: Resolved, tuned: Headed) -> Headed | None:
    """The base model where it has a head of the tuned one's kind."""
    if head_kind(resolved.base.folder, "/base/uri") != tuned.kind:
        return None
    return load_headed(resolved.base.folder, "/base/uri", tuned.model.device)


def _names(model: PreTrainedModel) -> list[str]:
    id2label: dict[int, str] = model.config.id2label  # type: ignore[assignment]
    return [id2label[index] for index in sorted(id2label)]


def _known_targets(questions: Questions, model: PreTrainedModel) -> Tensor | None:
    """The classes of the texts; None where not one label is among the model's."""
    targets = class_targets(questions.rows, _names(model))
    return targets.classes if targets.known else None


def _measured(scores: Scores, measure: Measure) -> Measured:
    return ratio(*grouped(scores), TRANSFORMS[measure], RANGES[measure])


def _outputs(
    questions: Questions, base: Headed | None, tuned: Headed, tick: Callable[[float], None]
) -> tuple[Outputs | None, list[ReportWarning]]:
    """One pass over the texts with both models, or the tuned one alone where the base has no such head."""
    texts = len(questions.rows)
    targets, names, warnings = None, [], []
    if tuned.kind == "classifier":
        names = _names(tuned.model)
        known = class_targets(questions.rows, names)
        targets = known.classes if known.known else None
        warnings = [*_numbered_labels(known, names), *_unknown_labels(questions.rows, targets)]
        warnings += _pair_model(questions, names)
    elif tuned.kind == "masked_lm" and questions.reading.tokenizer.mask_token_id is None:
        message = "the tokenizer has no mask token to ask with"
        codes = ("no_mask_token", "answers_not_judged")
        return None, [ReportWarning(code=code, message=message) for code in codes]
    order = _common_order(base, names) if base is not None and tuned.kind == "classifier" else None
    if base is not None and tuned.kind == "classifier" and order is None:
        base = None
        message = "the two classifiers have different classes, so their answers are not compared"
        warnings.append(ReportWarning(code="different_classes", message=message))
    sums = {name: _no_scores(texts) for name in ("base", "tuned", "disagreement", "js")}
    for number, batch in enumerate(questions.batches()):
        found = _with_targets(questions.answered(tuned.model, batch), targets)
        sums["tuned"] = _added(sums["tuned"], quality(found, tuned.kind, texts))
        if base is not None:
            other = _with_targets(questions.answered(base.model, batch, order), targets)
            sums["base"] = _added(sums["base"], quality(other, tuned.kind, texts))
            differs = found.log_probs.argmax(-1) != other.log_probs.argmax(-1)
            sums["disagreement"] = _added(sums["disagreement"], by_text(differs, found.texts, texts))
            js = divergence_bits(*over_common_tokens(found.log_probs, other.log_probs))
            sums["js"] = _added(sums["js"], by_text(js, found.texts, texts))
        tick(min(1.0, (number + 1) * len(batch.indices) / texts))
    judged = tuned.kind != "classifier" or targets is not None

    def of_model(name: str) -> ModelOutputs | None:
        if not judged or (name == "base" and base is None):
            return None
        if tuned.kind == "classifier":
            return ModelOutputs(accuracy=_measured(sums[name], "accuracy"))
        return ModelOutputs(perplexity=_measured(sums[name], "perplexity"))

    outputs = Outputs(
        kind=tuned.kind,
        examples=texts if tuned.kind == "classifier" else int(sums["tuned"].counts.sum()),
        labelled=None if targets is None else int((targets != UNLABELLED).sum()),
        labels=names,
        base=of_model("base"),
        tuned=of_model("tuned"),
        majority_accuracy=_majority(targets) if targets is not None else None,
        accuracy_change=_difference(sums) if base and judged and tuned.kind == "classifier" else None,
        perplexity_ratio=_perplexity_ratio(sums) if base and tuned.kind != "classifier" else None,
        disagreement=_measured(sums["disagreement"], "accuracy") if base else None,
        js_divergence=_measured(sums["js"], "kl") if base else None,
    )
    return outputs, warnings


def _difference(sums: dict[str, Scores]) -> Measured:
    """Accuracy of the tuned model less the base model's, on the same texts."""
    change = Scores(sums["tuned"].sums - sums["base"].sums, sums["tuned"].counts)
    return ratio(*grouped(change), bounds=(-1.0, 1.0))


def _perplexity_ratio(sums: dict[str, Scores]) -> Measured:
    """Perplexity of the tuned model over the base model's, on the same tokens."""
    rise = Scores(sums["tuned"].sums - sums["base"].sums, sums["tuned"].counts)
    return ratio(*grouped(rise), lambda nats: math.exp(min(nats, 700.0)), (0.0, math.inf))


def _numbered_labels(targets: Targets, names: list[str]) -> list[ReportWarning]:
    own = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    if not targets.numbered or not targets.known or own:
        return []
    shown = ", ".join(f"{index} = {name}" for index, name in enumerate(names[:6]))
    message = f"the labels are numbers and were read as the numbers of the tuned model's classes ({shown})"
    return [ReportWarning(code="labels_as_numbers", message=message)]


PAIR_CLASSES = ("entailment", "contradiction", "not_entailment", "duplicate", "not_duplicate", "paraphrase")
"""Names of classes that a pair of texts has, and no single one."""


def _pair_model(questions: Questions, names: list[str]) -> list[ReportWarning]:
    """A warning where a model of pairs was given single texts."""
    classes = [name for name in names if name.casefold() in PAIR_CLASSES]
    if not classes or any(row.pair is not None for row in questions.rows):
        return []
    message = (
        f"the tuned model's class {classes[0]!r} is one of a pair of texts, but single texts were read; name the "
        "column of the second texts in dataset.text_pair_column"
    )
    return [ReportWarning(code="single_texts_of_pairs", message=message)]


def _no_scores(texts: int) -> Scores:
    return Scores(torch.zeros(texts, dtype=torch.float64), torch.zeros(texts, dtype=torch.float64))


def _added(one: Scores, other: Scores) -> Scores:
    return Scores(one.sums + other.sums, one.counts + other.counts)


def _with_targets(predicted: Predicted, targets: Tensor | None) -> Predicted:
    """A classifier's answers with the right classes beside them."""
    return predicted if targets is None else predicted._replace(targets=targets[predicted.texts])


def _common_order(base: Headed, names: list[str]) -> list[int] | None:
    """The base's classes in the tuned model's order; None where the classes differ."""
    known = _names(base.model)
    return [known.index(name) for name in names] if sorted(known) == sorted(names) else None


def _majority(targets: Tensor) -> float:
    """The share of the majority class among the texts with a label."""
    labelled = targets[targets != UNLABELLED]
    return int((labelled - UNKNOWN).bincount()[1:].max()) / len(labelled)


def _unknown_labels(rows: list[Row], targets: Tensor | None) -> list[ReportWarning]:
    labelled = sum(row.label is not None for row in rows)
    unknown = labelled if targets is None else int((targets == UNKNOWN).sum())
    if not labelled:
        message = "the data set has no labels, so the accuracy of the classifiers is not known"
        return [ReportWarning(code="answers_not_judged", message=message)]
    if not unknown:
        return []
    message = f"{unknown} of {labelled} labels are no class of the tuned model; " + (
        "accuracy is left out" if targets is None else "they count as answered wrongly"
    )
    found = [ReportWarning(code="unknown_labels", message=message)]
    if targets is None:
        message = "no label of the data set is a class of the tuned model, so its accuracy is not known"
        found.append(ReportWarning(code="answers_not_judged", message=message))
    return found


def _spliced(
    dictionaries: Dictionaries, questions: Questions, base: Headed | None, tuned: Headed, seed: int, tick: Tick
) -> Spliced:
    """Both models where the base has a head of the same classes, else the tuned one alone."""
    if base is not None and tuned.kind == "classifier" and _common_order(base, _names(tuned.model)) is None:
        base = None
    asked = replace(questions, rows=questions.rows[:SPLICE_TEXTS])

    def loss(model: PreTrainedModel) -> SplicedLoss:
        targets = _known_targets(asked, model) if asked.kind == "classifier" else None
        return SplicedLoss(asked, model, targets)

    of_base = loss(base.model) if base is not None else None
    return splices(dictionaries, of_base, loss(tuned.model), len(asked.rows), seed, tick)


def _grafts(
    weights: BaseWeights, model: PreTrainedModel, questions: Questions, headed: bool, tick: Tick
) -> tuple[list[LayerGraft], GraftInfo]:
    """The base model's layers 0..k, and each block of its alone, in the tuned model."""
    asked = replace(questions, rows=questions.rows[:GRAFT_TEXTS])
    targets = _known_targets(asked, model) if headed and asked.kind == "classifier" else None
    judge_ = Judge(asked, headed, targets)
    whole = judge_.scores(model)
    ungrafted = _measured(whole, judge_.measure)
    body, layers = body_of(model), len(weights.prefix)

    def with_grafted(names: list[str]) -> Scores:
        with weights.grafted(body, names):
            return judge_.scores(model)

    found = []
    for layer in range(layers):
        prefix = with_grafted(weights.prefix[layer])
        tick((layer + 0.5) / layers, f"base layers 0 to {layer} in the tuned model")
        block = with_grafted(weights.block[layer]) if layer else prefix
        tick((layer + 1) / layers, f"base block {layer} in the tuned model")
        found.append(
            LayerGraft(
                prefix=_measured(prefix, judge_.measure),
                block=_measured(block, judge_.measure),
                prefix_cost=_cost(whole, prefix, judge_.measure),
            )
        )
    if ungrafted.value is None:
        raise ValueError("the tuned model could not be judged")
    return found, GraftInfo(measure=judge_.measure, ungrafted=ungrafted.value, examples=len(asked.rows))


def _cost(whole: Scores, grafted: Scores, measure: Measure) -> Measured:
    """What a graft costs on the same texts: share of right answers lost, relative rise of perplexity, else itself."""
    if measure == "accuracy":
        return ratio(*grouped(Scores(whole.sums - grafted.sums, whole.counts)))
    if measure == "perplexity":
        return ratio(*grouped(Scores(grafted.sums - whole.sums, whole.counts)), math.expm1)
    return _measured(grafted, measure)


TOLERATED: dict[Measure, float] = {"accuracy": 0.005, "perplexity": 0.01, "kl": 0.01}
"""What a graft may cost and still count as harmless: a share of the texts, a relative increase, bits."""


def predicted_by_grafts(info: GraftInfo, grafts: list[LayerGraft]) -> Recommendation | None:
    """The most of the base model's bottom whose graft is not seen to do harm; None where answers are not judged.

    Harm is seen where the lower end of the cost's 95 % interval is above what is tolerated.

    Args:
        grafts: by layer, 0 to L.
    """
    tolerated = TOLERATED.get(info.measure)
    if tolerated is None:
        return None
    costs = [graft.prefix_cost for graft in grafts]
    kept = -1
    blocks = len(grafts) - 1
    while kept + 1 < len(costs) and _low(costs[kept + 1]) <= tolerated:
        kept += 1
    if kept == blocks:
        evidence = (
            "With all of the base model's blocks in its place the tuned model answers as well on these texts, so they "
            "do not show what was learnt. Compare the models on texts of the task."
        )
        return Recommendation(freeze_first=0, basis="none", evidence=evidence)
    looked_at = grafts[kept if kept > 0 else kept + 1]
    change = f"{info.measure} goes from {info.ungrafted:.3f} to {looked_at.prefix.value or 0.0:.3f}"
    if looked_at.prefix_cost.low is not None and looked_at.prefix_cost.high is not None:
        change += f" (cost {looked_at.prefix_cost.low:.3f} to {looked_at.prefix_cost.high:.3f}, 95 %)"
    bottom = f"first {kept} of {blocks} blocks" if kept > 0 else f"first of {blocks} blocks"
    bottom = "embeddings" if kept < 0 else f"embeddings and {bottom}"
    found = f"With the base model's {bottom} in its place the tuned model's {change} on {info.examples} texts, "
    if kept < 1:
        found += "more than chance gives: what was learnt there matters to the answers."
    else:
        found += f"which is not beyond chance and {tolerated:g}; "
        found += "with one block more it is."
    evidence = f"{found} {NOT_RETRAINED}"
    return Recommendation(freeze_first=max(kept, 0), basis="predicted", evidence=evidence)


def _low(cost: Measured) -> float:
    if cost.value is None:
        return math.inf
    return cost.value if cost.low is None else cost.low
