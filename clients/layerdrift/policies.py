"""Policies as people write them: YAML or JSON, every mistake with the line that it stands on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from layerdrift.contract.errors import FieldProblem, InputError
from layerdrift.contract.explained import explain
from layerdrift.contract.policy import Decision, Policy, Verdict
from layerdrift.contract.report import Report
from layerdrift.gate import evaluate_policy

MAX_ERRORS = 100
MAX_CHARACTERS = 256 << 10
MAX_DEPTH = 16
MAX_EVENTS = 10_000
_MAX_PLAIN_CHARACTERS = 2_000
"""Of a value that may be a number."""

_Pointer = tuple[str | int, ...]


@dataclass(frozen=True)
class _Place:
    line: int
    column: int


class PolicyError(InputError):
    """A policy file that cannot be used; each of `errors` begins with file, line and column, as compilers write it."""


def load(text: str, name: str = "policy") -> Policy:
    """The policy in a YAML or JSON text.

    Args:
        name: of the file, for messages.

    Raises:
        PolicyError: it is no policy; all that is wrong is named.
    """
    places: dict[_Pointer, _Place] = {}
    try:
        _check_size(text)
        _note(_node(text), (), places)
        document = parsed(text)
        if document is None:
            raise PolicyError(f"{name} is empty", [FieldProblem(pointer="", detail=f"{name}:1:1: the file is empty")])
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _Place(mark.line + 1, mark.column + 1) if mark else _Place(1, 1)
        raise _error(name, [((), place, f"not valid YAML: {error.problem or error.context}")]) from error
    except yaml.YAMLError as error:
        raise _error(name, [((), _Place(1, 1), f"not valid YAML: {error}")]) from error
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        found = []
        for item in error.errors():
            pointer = tuple(item["loc"])
            detail = explain(item, Policy)
            named = f"{pointer[-1]}: " if pointer and isinstance(pointer[-1], str) else ""
            found.append((pointer, _nearest(places, pointer), f"{named}{detail}"))
        raise _error(name, found[:MAX_ERRORS]) from error


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of JSON: `1e-6` is one, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parsed(text: str) -> Any:
    """What a YAML or JSON text holds.

    Raises:
        yaml.YAMLError: it is none, or holds a number, date or tag that has no value.
    """
    try:
        return _json(text)
    except (ValueError, RecursionError):
        pass  # YAML, then, whose loader says what is wrong
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe one
    except (ValueError, LookupError, AttributeError, ArithmeticError, TypeError, RecursionError) as error:
        raise yaml.YAMLError(f"a value cannot be parsed ({type(error).__name__}: {error})") from error


def _json(text: str) -> Any:
    """ValueError where it is no JSON, a key stands twice, or it has NaN or Infinity, which JSON does not know."""
    return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _node(text: str) -> yaml.Node | None:
    """The document with the places of its values; None where it is empty, or JSON that is no YAML."""
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        try:
            _json(text)
        except (ValueError, RecursionError):
            raise error from None
        return None
    return node


def located(text: str, name: str, error: InputError) -> PolicyError:
    """What the gate says of a policy's rules, with the lines of its file."""
    places: dict[_Pointer, _Place] = {}
    _note(_node(text), (), places)
    found = []
    for problem in error.errors:
        parts = problem.pointer.strip("/").split("/")
        pointer = tuple(int(part) if part.isdecimal() else part for part in parts)
        found.append((pointer, _nearest(places, pointer), problem.detail))
    return _error(name, found)


StarterName = Literal["classifier", "language"]

_STARTERS: dict[StarterName, str] = {
    "classifier": "starter-policy.yaml",
    "language": "starter-policy-language.yaml",
}


def starter(kind: StarterName = "classifier") -> str:
    """The starter policy for classifiers and encoders, or for language models, explained line by line."""
    return resources.files("layerdrift").joinpath(_STARTERS[kind]).read_text(encoding="utf-8")


def starter_for(report: Report) -> StarterName:
    """Which of them a report is held against: by what was compared."""
    language = report.outputs.kind == "causal_lm" if report.outputs is not None else report.learned is not None
    return "language" if language else "classifier"


def starter_verdict(report: Report) -> Verdict | None:
    """What the starter policy says of a report; None where it cannot be evaluated on it."""
    if report.status != "complete":
        return None
    try:
        return evaluate_policy(load(starter(starter_for(report))), report)
    except InputError:
        return None


def starter_decision(report: Report) -> Decision | None:
    """Its decision, where numbers made it."""
    verdict = starter_verdict(report)
    return verdict.decision if verdict is not None and verdict.evaluated else None


def _check_size(text: str) -> None:
    """YAMLError, before anything is built, where a document has more than policies need."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text)} characters; the limit for policies is {MAX_CHARACTERS}")
    try:
        found = _excess(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError:
        return  # the loader says it better
    if found is not None:
        problem, start = found
        mark = yaml.Mark("", start.index, start.line, start.column, None, 0)
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _excess(events: Iterable[yaml.Event]) -> tuple[str, Any] | None:
    """What a document has too much of, and where."""
    depth = 0
    for count, event in enumerate(events, start=1):
        problem = ""
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = f"tags ({event.tag}) are not supported" if event.tag else ""
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            problem = "aliases (*) are not supported"
        elif isinstance(event, yaml.ScalarEvent) and not event.style and len(event.value) > _MAX_PLAIN_CHARACTERS:
            problem = f"an unquoted value of {len(event.value)} characters"
        elif isinstance(event, yaml.ScalarEvent) and event.tag:
            problem = f"tags ({event.tag}) are not supported"
        if depth > MAX_DEPTH or count > MAX_EVENTS:
            problem = f"more than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"more than {MAX_EVENTS} values"
        if problem:
            return problem, event.start_mark
    return None


def _note(node: yaml.Node | None, pointer: _Pointer, places: dict[_Pointer, _Place]) -> None:
    """Writes down where every value of a document stands; a field's place is that of its name."""
    if node is None:
        return
    places.setdefault(pointer, _Place(node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a string, not a list", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value}", problem_mark=key.start_mark)
            seen.add(key.value)
            inside = (*pointer, key.value)
            places[inside] = _Place(key.start_mark.line + 1, key.start_mark.column + 1)
            _note(value, inside, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note(value, (*pointer, index), places)


def _nearest(places: dict[_Pointer, _Place], pointer: _Pointer) -> _Place:
    """Where a pointer stands, or the innermost part of it that the document has."""
    for length in range(len(pointer), -1, -1):
        if pointer[:length] in places:
            return places[pointer[:length]]
    return _Place(1, 1)


def _error(name: str, found: list[tuple[_Pointer, _Place, str]]) -> PolicyError:
    problems = [
        FieldProblem(
            pointer="".join(f"/{part}" for part in pointer), detail=f"{name}:{place.line}:{place.column}: {detail}"
        )
        for pointer, place, detail in found
    ]
    return PolicyError("\n".join(problem.detail for problem in problems), problems)
