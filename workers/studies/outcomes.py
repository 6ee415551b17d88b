"""What became of a study's members, as the report shows each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from layerdrift.contract.analysis import Status
from layerdrift.contract.errors import InputError
from layerdrift.contract.policy import Decision, Policy
from layerdrift.contract.report import Layer, Measured, Outputs, Report
from layerdrift.contract.request import AnalysisRequest
from layerdrift.contract.study import StudyMember
from layerdrift.contract.study_report import MemberLayer, StudyMetric, StudyReportMember
from layerdrift.gate import evaluate_policy
from layerdrift.policies import starter_decision
from workers.analysis.zones import GENERAL_CEILING
from workers.results.text_scores import TextScores

DELETED: Final = "its analysis was deleted"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A member whose analysis has ended."""

    member: StudyMember
    task: str
    analysis_id: str
    request: AnalysisRequest
    status: Status
    error: str | None
    report: Report | None
    scores: TextScores | None = None
    adapter: bool = False

    @property
    def name(self) -> str:
        """Unique in the study."""
        return self.member.name


def shown(outcome: Outcome, repeat_of: str | None, policy: Policy | None) -> StudyReportMember:
    """The member as the study's report has it.

    Args:
        repeat_of: the name of its group of repeats.
        policy: None: the starter policy for what was compared.
    """
    finetune, report = outcome.request.finetune, outcome.report
    missing = StudyReportMember(
        name=outcome.name,
        task=outcome.task,
        analysis_id=outcome.analysis_id,
        status=outcome.status,
        error=outcome.error,
        repeat_of=repeat_of,
        method=finetune.method if finetune else None,
        seed=outcome.request.seed if finetune else None,
    )
    if report is None:
        return missing
    advised = report.recommendation.basis != "none"
    found = {
        "layers": [_layer(layer) for layer in report.layers],
        "mean_drift": sum(layer.drift for layer in report.layers[1:]) / max(1, len(report.layers) - 1),
        "zones": report.zones,
        "metric": metric(report),
        "decision": _decision(policy, report),
        "freeze_first": report.recommendation.freeze_first if advised else None,
    }
    return missing.model_copy(update=found)


def _layer(layer: Layer) -> MemberLayer:
    cka = layer.similarity["token"].cka
    ends = (None, None) if cka.low is None or cka.high is None else (1 - cka.high, 1 - cka.low)
    drift = Measured(value=layer.drift, low=ends[0], high=ends[1], noise_floor=layer.noise_floors.get("numerical"))
    general = _general(*(layer.drift if end is None else end for end in ends))
    return MemberLayer(index=layer.index, zone=layer.zone, drift=drift, drifted=layer.drifted, general=general)


def _general(low: float, high: float) -> bool | None:
    """Whether a drift is at most the ceiling of general layers; None where its interval has the ceiling inside."""
    if high <= GENERAL_CEILING:
        return True
    return False if low > GENERAL_CEILING else None


def _decision(policy: Policy | None, report: Report) -> Decision | None:
    if policy is None:
        return starter_decision(report)
    try:
        return evaluate_policy(policy, report).decision
    except InputError:
        return None


def metric(report: Report) -> StudyMetric | None:
    """How well the tuned model does its task: the first number that its kind of data has."""
    return next(_metrics(report.outputs), None) if report.outputs is not None else None


def _metrics(outputs: Outputs) -> Iterator[StudyMetric]:
    if outputs.choices is not None:
        yield StudyMetric(
            name="choices_accuracy", value=outputs.choices.tuned.accuracy, change=outputs.choices.accuracy_change
        )
    if outputs.preferences is not None:
        found = outputs.preferences
        yield StudyMetric(name="preferences_accuracy", value=found.tuned_accuracy, change=found.accuracy_change)
    if outputs.answers is not None:
        answers = outputs.answers
        yield StudyMetric(name="answers_perplexity", value=answers.tuned.perplexity, change=answers.perplexity_ratio)
    tuned = outputs.tuned
    if tuned is not None and tuned.accuracy is not None and tuned.accuracy.value is not None:
        yield StudyMetric(name="accuracy", value=tuned.accuracy, change=outputs.accuracy_change)
    if tuned is not None and tuned.perplexity is not None and tuned.perplexity.value is not None:
        yield StudyMetric(name="perplexity", value=tuned.perplexity, change=outputs.perplexity_ratio)
