"""Text of users in each format that it is shown in: it stays text, whatever stands in it. HTML is Jinja's to escape."""

from __future__ import annotations

import re

from rich.markup import escape

from layerdrift.contract.plain import visible

_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKUP = re.compile(r"([!-/:-@\[-`{-~])")
_CALLS = re.compile(r"(?<=[@#])(?=\w)")
"""Where GitHub and GitLab see somebody called, or an issue named, whatever backslash stands before it."""

_WORD_JOINER = "\N{WORD JOINER}"


def lines(text: str) -> str:
    """A message of several lines for a terminal or a log: each line `visible`."""
    return "\n".join(visible(line) for line in text.split("\n"))


def terminal(text: str) -> str:
    """A cell of a table that rich prints."""
    return escape(visible(text))


def markdown(text: str) -> str:
    """One line that becomes no markup and calls nobody."""
    escaped = _MARKUP.sub(r"\\\1", visible(" ".join(text.split())))
    return _CALLS.sub(_WORD_JOINER, escaped)


def markdown_code(text: str) -> str:
    """A code span, which nothing but a backtick can end."""
    return f"`{visible(' '.join(text.split())).replace('`', chr(39))}`"


def xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold; what makes markup is the writer's to escape."""
    return _NO_XML.sub("", text)
