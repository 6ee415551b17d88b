"""Files that a review leaves, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layerdrift.cli.options import HtmlOut, JunitOut, MarkdownOut, PngOut, ReportOut, VerdictOut
from layerdrift.contract.errors import UnsupportedError
from layerdrift.contract.policy import Verdict
from layerdrift.contract.report import Report
from layerdrift.render import markdown, verdict


@dataclass(frozen=True)
class Targets:
    """Where what is written; None: nowhere."""

    junit: JunitOut = None
    markdown: MarkdownOut = None
    html: HtmlOut = None
    report: ReportOut = None
    png: PngOut = None
    verdict: VerdictOut = None

    def check(self) -> None:
        """OSError before any work where a folder is not there; UnsupportedError where the PNG cannot be drawn."""
        for path in (self.junit, self.markdown, self.html, self.report, self.png, self.verdict):
            if path is not None:
                require_folder(path)
        if self.png is not None:
            _picture()

    def written(self) -> list[Path]:
        """The files that are asked for."""
        all_of_them = (self.junit, self.markdown, self.html, self.report, self.png, self.verdict)
        return [path for path in all_of_them if path is not None]


@dataclass(frozen=True)
class VerdictTargets:
    """Where a verdict is written; None: nowhere."""

    junit: JunitOut = None
    markdown: MarkdownOut = None
    verdict: VerdictOut = None

    def targets(self) -> Targets:
        """The same among all that a review can leave."""
        return Targets(junit=self.junit, markdown=self.markdown, verdict=self.verdict)


def require_folder(path: Path) -> None:
    """FileNotFoundError where the folder that a file is to be written to does not exist."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist; create the folder first")


def write(targets: Targets, report: Report, found: Verdict, html: str | None) -> None:
    """Writes everything that is asked for."""
    texts: dict[Path | None, Callable[[], str]] = {
        targets.junit: lambda: verdict.junit(
            found, report.name or report.analysis_id, report.created_at, sum(report.timings.stages.values())
        ),
        targets.markdown: lambda: summary(report, found),
        targets.html: lambda: html or "",
        targets.report: lambda: report.model_dump_json(indent=1),
        targets.verdict: lambda: found.model_dump_json(indent=1),
    }
    for path, text in texts.items():
        if path is not None:
            whole(path, text().encode())
    if targets.png is not None:
        whole(targets.png, drawn(report))


def summary(report: Report, found: Verdict) -> str:
    """The verdict, with the report below it to be unfolded."""
    return (
        f"{verdict.markdown(found)}\n<details><summary>Layer-drift report</summary>\n\n{markdown.render(report)}\n"
        "</details>\n"
    )


def whole(path: Path, body: bytes) -> None:
    """Writes a file that is never there by half."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(body)
    part.replace(path)


def drawn(report: Report) -> bytes:
    """The drift curve as PNG; UnsupportedError where what draws it is not installed."""
    return _picture()(report)


def _picture() -> Callable[[Report], bytes]:
    try:
        from layerdrift.render.picture import drift_png
    except ImportError as error:
        raise UnsupportedError("a PNG needs the extra render: pip install './clients[render]' in a checkout") from error
    return drift_png
