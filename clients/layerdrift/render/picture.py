"""A report's drift curve as a PNG, for where a page cannot be: pull requests, registries, mails. Needs no browser."""

from __future__ import annotations

import vl_convert

from layerdrift.contract.report import Report
from layerdrift.render import charts

SCALE = 2.0
"""Pixels for each of the chart's own: sharp on dense screens."""


def drift_png(report: Report) -> bytes:
    """The drift curve with its intervals, noise floor and zones."""
    image: bytes = vl_convert.vegalite_to_png(charts.drift_curve(report), scale=SCALE)
    return image
