"""The report agrees with what the workers write."""

from __future__ import annotations

import re
from pathlib import Path

from layerdrift.contract.report import WARNING_CODES
from layerdrift.contract.study_report import STUDY_WARNING_CODES


def test_every_warning_of_the_workers_can_be_asked_for() -> None:
    sources = "".join(path.read_text() for path in (Path(__file__).parents[4] / "workers").rglob("*.py"))
    written = set(re.findall(r'ReportWarning\(\s*code="([a-z_]+)"', sources))
    assert len(written) > 10
    assert written <= {*WARNING_CODES, *STUDY_WARNING_CODES}
    assert all(f'"{code}"' in sources for code in (*WARNING_CODES, *STUDY_WARNING_CODES))
