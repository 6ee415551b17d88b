"""What every self-contained page has: templates, Vega, scripts, and data that no script element can be ended by."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from layerdrift.render.escaping import lines


@cache
def environment() -> Environment:
    """The templates: what they are given is escaped, and shown without control characters."""
    return Environment(
        loader=PackageLoader("layerdrift.render"),
        autoescape=select_autoescape(default=True),
        finalize=lambda value: lines(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def bundle() -> Markup:
    """Vega, Vega-Lite and vega-embed as one script."""
    code: str = vl_convert.javascript_bundle(snippet="window.vegaEmbed = vegaEmbed;")
    return Markup(code.replace("</script", "<\\/script"))  # noqa: S704 - Vega's own code, from a pinned package


@cache
def script(name: str) -> Markup:
    """What makes a page answer to its reader: the figures' part, and its own."""
    files = resources.files("layerdrift.render").joinpath("templates")
    parts = [files.joinpath(part).read_text(encoding="utf-8") for part in ("figures.js", name)]
    return Markup("\n".join(parts))  # noqa: S704 - ours


def script_safe(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704
