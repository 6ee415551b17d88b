"""Report of a study -> Markdown in GitHub's dialect."""

from __future__ import annotations

from layerdrift.contract.study_report import StudyReport, StudyReportMember
from layerdrift.render import study_sentences as sentences
from layerdrift.render.escaping import markdown, markdown_code
from layerdrift.render.sentences import number


def render(report: StudyReport) -> str:
    """Headline, what follows for all members, warnings, the tables of members and layers."""
    parts = [
        f"# {markdown(report.name)}",
        markdown(sentences.headline(report)),
        *(markdown(sentences.best(ranking)) for ranking in report.rankings),
        markdown(sentences.seeds(report) or ""),
        markdown(sentences.shared(report) or ""),
        markdown(sentences.freezing(report) or ""),
        *map(markdown, sentences.trials(report)),
        *(f"> **{warning.code}**: {markdown(warning.message)}" for warning in report.warnings),
        _members(report),
        _layers(report),
        f"Base {markdown_code(report.base)}; layerdrift {report.engine.version}; study `{report.study_id}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _members(report: StudyReport) -> str:
    ranks = {one.name: one for ranking in report.rankings for one in ranking.members}
    head = ["member", "task", "rank", "policy", "metric", "95 % interval", "mean drift", "Pareto front", "freeze first"]
    rows = [_row(head), _row(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for member in report.members:
        ranked = ranks.get(member.name)
        if ranked is None:
            rows.append(
                _row([markdown(member.name), markdown(member.task), f"no report: {markdown(member.error or '')}"])
            )
            continue
        rows.append(
            _row(
                [
                    markdown(member.name),
                    markdown(member.task),
                    str(ranked.rank),
                    member.decision or "—",
                    *_metric(member),
                    number(member.mean_drift, 4),
                    "yes" if ranked.on_front else "no",
                    "—" if member.freeze_first is None else str(member.freeze_first),
                ]
            )
        )
    return "\n".join(rows)


def _metric(member: StudyReportMember) -> list[str]:
    if member.metric is None:
        return ["—", "—"]
    value = member.metric.value
    ends = "—" if value.low is None or value.high is None else f"{number(value.low)} to {number(value.high)}"
    return [f"{sentences.metric(member.metric.name)} {number(value.value)}", ends]


def _layers(report: StudyReport) -> str:
    head = ["layer", "general for", "changed for", "drift, least", "drift, most", "seeds, SD", "tasks' share"]
    rows = [_row(head), _row(["---"] * 3 + ["---:"] * (len(head) - 3))]
    for layer in report.layers:
        drifts = [
            found
            for one in report.members
            if one.layers and (found := one.measured[layer.index].drift.value) is not None
        ]
        rows.append(
            _row(
                [
                    f"{layer.index} {layer.name}",
                    markdown(", ".join(layer.general_for)) or "—",
                    markdown(", ".join(layer.changed_for)) or "—",
                    number(min(drifts), 4),
                    number(max(drifts), 4),
                    number(layer.seed_sd.value, 4),
                    number(layer.task_share.value, 2),
                ]
            )
        )
    return "\n".join(rows)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
