"""What the models' answers say against advice that rests on representations: then none is given, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from workers.analysis.zones import GENERAL_CEILING
from workers.models.checkpoint_tensors import tensors_in_parts
from workers.models.loading import body_of
from workers.results.effects import Recommendation
from workers.results.measured import Measured
from workers.results.outputs import Outputs

MIN_ADVICE_TEXTS = 100
"""On fewer texts neither a curve nor answers tell layers apart well enough to advise on them."""

WORSE_PERPLEXITY = 1.2
"""A perplexity that rises by more than this factor, at the lower end of its interval, is worse."""

MANY_ANSWERS = 0.3
"""A share of changed answers that needs a drift to explain it."""

MOVED = 0.2
"""A last layer that moved by this share of its own variation explains changed predictions of tokens, many of which are
near ties, though CKA may hardly tell."""

SAME_HEAD = 0.1
"""Heads that differ by less, relative to the base model's norm, answer alike for the same representations."""


class AdviceBlocker(NamedTuple):
    """A reason not to advise. code: of the warning that tells it; None where the numbers alone tell it."""

    reason: str
    code: str | None = None
    message: str = ""


def blockers_of(
    outputs: Outputs | None,
    drift: Sequence[float],
    head_change: float | None,
    texts: int,
    last_moved: float | None = None,
) -> list[AdviceBlocker]:
    """Everything that speaks against advice on what to freeze.

    Args:
        drift: 1 - CKA at layers 0 to L.
        head_change: how far the two heads differ, relative Frobenius norm; None where only one model has such a head.
        texts: that were compared.
        last_moved: relative L2 of the last layer after centring, which a language model's answers are read from.
    """
    found = []
    if outputs is not None:
        found += [*_worse(outputs), *_no_better_than_majority(outputs)]
        if outputs.kind == "classifier" or (last_moved or 0.0) < MOVED:
            found += _unexplained(outputs, drift, head_change)
    if texts < MIN_ADVICE_TEXTS:
        found.append(AdviceBlocker(f"{texts} texts are too few to tell layers apart; use at least {MIN_ADVICE_TEXTS}"))
    return found


def unless_blocked(recommendation: Recommendation, blockers: list[AdviceBlocker]) -> Recommendation:
    """The advice, or none where something speaks against it."""
    if not blockers:
        return recommendation
    reasons = "; ".join(blocker.reason for blocker in blockers)
    return Recommendation(freeze_first=0, basis="none", evidence=f"{reasons[0].upper()}{reasons[1:]}.")


def _worse(outputs: Outputs) -> list[AdviceBlocker]:
    ratio, change = outputs.perplexity_ratio, outputs.accuracy_change
    if ratio is not None and ratio.value is not None and _low(ratio) > WORSE_PERPLEXITY:
        said = f"the tuned model's perplexity on these texts is {ratio.value:.3g} times the base model's"
    elif change is not None and change.value is not None and _high(change) < 0:
        said = f"the tuned model's accuracy on these texts is {-100 * change.value:.1f} points below the base model's"
    else:
        return []
    message = f"{said}: it performs worse than its base model"
    return [AdviceBlocker(f"{said}, so this fine-tune is not worth repeating", "answers_worse", message)]


def _no_better_than_majority(outputs: Outputs) -> list[AdviceBlocker]:
    """Answers that go with the labels no more than a constant's or a coin's would, or that a constant beats."""
    tuned, majority = outputs.tuned, outputs.majority_accuracy
    accuracy, mcc = (tuned.accuracy, tuned.mcc) if tuned else (None, None)
    if accuracy is None or accuracy.value is None or majority is None or mcc is None or mcc.value is None:
        return []
    beaten = outputs.majority_change is not None and _high(outputs.majority_change) < 0
    if mcc.value >= (mcc.noise_floor or 0.0) and not beaten:
        return []
    said = f"the tuned model's accuracy of {accuracy.value:.1%} "
    if beaten:
        said += f"is below the majority class ({majority:.1%})"
    else:
        said += (
            f"(majority class {majority:.1%}) is no better than chance (Matthews correlation {mcc.value:.2f}; noise "
            f"floor {mcc.noise_floor:.2f})"
        )
    return [AdviceBlocker(f"{said}, so the role of its layers in the task is unknown", "no_better_than_majority", said)]


def _unexplained(outputs: Outputs, drift: Sequence[float], head_change: float | None) -> list[AdviceBlocker]:
    """Answers that changed though no layer did: something is not seen. A classifier's new head explains as much."""
    disagreement = outputs.disagreement
    if disagreement is None or disagreement.value is None or not any(drift) or max(drift) > GENERAL_CEILING:
        return []
    new_head = outputs.kind == "classifier" and (head_change is None or head_change > SAME_HEAD)
    if new_head or _low(disagreement) < MANY_ANSWERS:
        return []
    said = (
        f"{disagreement.value:.0%} of the outputs changed, but drift stays at {max(drift):.3f} or below at every layer"
    )
    message = f"{said}: the measures do not capture what changed the outputs, so no layer can be called unchanged"
    return [AdviceBlocker(f"{said}, so the drift curve does not show what changed", "answers_not_explained", message)]


def relative_head_change(base: PreTrainedModel, tuned: PreTrainedModel) -> float | None:
    """How far the parameters outside the bodies differ, Frobenius norm over the base model's; None where none match.

    A head that is tied to the embeddings has no parameters of its own: 0.
    """
    inside = {id(parameter) for model in (base, tuned) for parameter in body_of(model).parameters()}
    others = {name: one for name, one in tuned.named_parameters() if id(one) not in inside}
    heads = {name: one for name, one in base.named_parameters() if id(one) not in inside}
    if not heads and not others:
        return 0.0
    pairs = [(heads[name], others[name]) for name in heads.keys() & others.keys()]
    if not pairs or any(one.shape != other.shape for one, other in pairs):
        return None
    with torch.no_grad():
        split = (zip(tensors_in_parts(one), tensors_in_parts(other), strict=True) for one, other in pairs)
        parts = list(chain.from_iterable(split))
        difference = sum(float((other.float() - one.float()).square().sum()) for one, other in parts)
        size = sum(float(one.float().square().sum()) for one, _ in parts)
    return (difference / size) ** 0.5 if size else None


def _low(number: Measured) -> float:
    return (number.value or 0.0) if number.low is None else number.low


def _high(number: Measured) -> float:
    return (number.value or 0.0) if number.high is None else number.high
