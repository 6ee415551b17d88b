"""What is wrong with a field, in words for the person who wrote it: pydantic's errors, translated."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

_COMPARED: Final = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_KINDS: Final = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number",
    "bool_type": "true or false", "bool_parsing": "true or false",
    "string_type": "a text", "list_type": "a list", "dict_type": "an object", "model_type": "an object",
    "model_attributes_type": "an object", "finite_number": "a finite number",
}  # fmt: skip


def explain(error: Mapping[str, Any], root: type[BaseModel] | None = None) -> str:
    """One of pydantic's errors as a sentence that says what to change.

    Args:
        root: the model that was validated, so that a mistyped name can be compared with those that exist.
    """
    kind, context = str(error["type"]), error.get("ctx") or {}
    if kind == "extra_forbidden":
        return unknown_field(error["loc"], root)
    if kind == "missing":
        return "this field is required"
    if kind in _COMPARED:
        name, words = _COMPARED[kind]
        return f"must be {words} {context[name]}; it is {_shown(error.get('input'))}"
    if kind in ("string_too_short", "too_short"):
        return _too_short(context)
    if kind in ("string_too_long", "too_long"):
        unit = "characters" if kind == "string_too_long" else "entries"
        return f"must have at most {context['max_length']} {unit}"
    if kind in ("literal_error", "enum"):
        return _one_of(error, str(context["expected"]))
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}; it is {_shown(error.get('input'))}"
    return str(error["msg"]).removeprefix("Value error, ")


def unknown_field(path: Sequence[int | str], root: type[BaseModel] | None) -> str:
    """That a field does not exist, with the nearest one that does."""
    name = str(path[-1])
    names = sorted(_names(root, path[:-1])) if root is not None else []
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"there is no field {name!r}; did you mean {near[0]}?"
    elsewhere = sorted(_places(root, name)) if root is not None else []
    if elsewhere:
        return f"there is no field {name!r} here; did you mean {elsewhere[0]}?"
    return f"there is no field {name!r}" + (f"; possible: {', '.join(names)}" if names else "")


def nearest(name: str, names: Sequence[str]) -> str:
    """` (did you mean …?)`, or nothing."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _too_short(context: Mapping[str, Any]) -> str:
    least = context["min_length"]
    return "must not be empty" if least == 1 else f"must have at least {least} entries"


def _one_of(error: Mapping[str, Any], expected: str) -> str:
    given = error.get("input")
    names = [one.strip("' ") for one in expected.replace(" or ", ", ").split(",")]
    return f"must be one of {', '.join(names)}; it is {_shown(given)}{nearest(str(given), names)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _names(root: type[BaseModel] | None, path: Sequence[int | str]) -> set[str]:
    """The fields of the models that a path leads to."""
    kinds: list[Any] = [root]
    for part in path:
        kinds = [inside for kind in kinds for inside in _inside(kind, part)]
    return {name for kind in kinds if _is_model(kind) for name in kind.model_fields}


def _inside(kind: Any, part: int | str) -> Iterator[Any]:
    if _is_model(kind):
        if part in kind.model_fields:
            yield from _members(kind.model_fields[part].annotation)
        elif part == kind.__name__:  # pydantic names the member of a union that it tried
            yield kind
    elif get_origin(kind) in (list, dict):
        yield from _members(get_args(kind)[-1])


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _places(root: type[BaseModel] | None, name: str) -> set[str]:
    """Dotted paths of the fields of this name, or nearly, anywhere below the root."""
    found: dict[str, str] = {}

    def walk(kind: Any, prefix: str, seen: Callable[[type], bool]) -> None:
        if not _is_model(kind) or seen(kind):
            return
        for field, info in kind.model_fields.items():
            found.setdefault(field, f"{prefix}{field}")
            for member in _members(info.annotation):
                walk(member, f"{prefix}{field}.", seen)

    visited: set[type] = set()

    def seen(kind: type) -> bool:
        if kind in visited:
            return True
        visited.add(kind)
        return False

    walk(root, "", seen)
    near = difflib.get_close_matches(name, list(found), n=1, cutoff=0.8)
    return {found[one] for one in near}
