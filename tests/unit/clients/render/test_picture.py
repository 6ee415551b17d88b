"""The drift curve as a PNG."""

from __future__ import annotations

import struct

import vl_convert

from layerdrift.render import charts, picture
from tests.builders.reports import report


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header of a PNG."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_the_curve_is_drawn_with_two_pixels_for_each_of_the_charts_own() -> None:
    plain = size_of(vl_convert.vegalite_to_png(charts.drift_curve(report()), scale=1))
    assert size_of(picture.drift_png(report())) == (2 * plain[0], 2 * plain[1])


def test_another_drift_is_another_picture() -> None:
    other = report()
    other.layers[2].drift = 0.01
    assert picture.drift_png(other) != picture.drift_png(report())
