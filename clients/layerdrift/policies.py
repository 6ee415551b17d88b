"""Policies as people write them: YAML or JSON, every mistake with the line that it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import yaml
from pydantic import ValidationError

from layerdrift.contract.errors import FieldProblem, InputError
from layerdrift.contract.policy import Policy

_Pointer = tuple[str | int, ...]

_TYPES = {
    "extra_forbidden": "there is no such field",
    "missing": "this field is missing",
}


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
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise PolicyError(f"{name} is empty", [FieldProblem(pointer="", detail=f"{name}:1:1: it is empty")])
        _note(node, (), places)
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = _Place(mark.line + 1, mark.column + 1) if mark else _Place(1, 1)
        raise _error(name, [((), place, f"this is not YAML: {error.problem or error.context}")]) from error
    except yaml.YAMLError as error:
        raise _error(name, [((), _Place(1, 1), f"this is not YAML: {error}")]) from error
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        found = []
        for item in error.errors():
            pointer = tuple(item["loc"])
            detail = _TYPES.get(item["type"], item["msg"].removeprefix("Value error, "))
            named = f"{pointer[-1]}: " if pointer and isinstance(pointer[-1], str) else ""
            found.append((pointer, _nearest(places, pointer), f"{named}{detail}"))
        raise _error(name, found) from error


def located(text: str, name: str, error: InputError) -> PolicyError:
    """What the gate says of a policy's rules, with the lines of its file."""
    places: dict[_Pointer, _Place] = {}
    _note(yaml.compose(text, Loader=yaml.SafeLoader), (), places)
    found = []
    for problem in error.errors:
        parts = problem.pointer.strip("/").split("/")
        pointer = tuple(int(part) if part.isdecimal() else part for part in parts)
        found.append((pointer, _nearest(places, pointer), problem.detail))
    return _error(name, found)


def starter() -> str:
    """The starter policy, explained line by line."""
    return resources.files("layerdrift").joinpath("starter-policy.yaml").read_text(encoding="utf-8")


def _note(node: yaml.Node | None, pointer: _Pointer, places: dict[_Pointer, _Place]) -> None:
    """Writes down where every value of a document stands; a field's place is that of its name."""
    if node is None:
        return
    places.setdefault(pointer, _Place(node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands here twice", problem_mark=key.start_mark)
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
