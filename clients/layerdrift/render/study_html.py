"""Report of a study -> one self-contained HTML page, its figures linked by the member that is picked."""

from __future__ import annotations

from layerdrift.contract.study_report import StudyReport
from layerdrift.render import sentences, study_charts, study_sentences
from layerdrift.render.charts import ZONE_COLOURS, Spec
from layerdrift.render.page import bundle, environment, script, script_safe


def render(report: StudyReport) -> str:
    """The page; equal reports give equal pages."""
    specs: dict[str, Spec | None] = {
        "drift": study_charts.drift_curves(report),
        "heat": study_charts.heat_map(report),
        "zones": study_charts.zones(report),
        "generality": study_charts.generality(report),
        "spread": study_charts.spread(report),
        "shared": study_charts.shared_changes(report),
        "tree": study_charts.tree(report),
        "front": study_charts.front(report),
        "training": study_charts.training(report),
        "lora": study_charts.lora(report),
    }
    shown = {name: spec for name, spec in specs.items() if spec is not None}
    page: str = (
        environment()
        .get_template("study.html.j2")
        .render(
            report=report,
            sentences=sentences,
            told=study_sentences,
            figures=shown,
            zone_colours=ZONE_COLOURS,
            members={one.name: one for one in report.members},
            data=script_safe({"specs": shown, "members": [one.name for one in report.members if one.layers]}),
            bundle=bundle(),
            script=script("study.js"),
        )
    )
    return page
