"""Readable paths into a report: `layers[zone=general].similarity.token.cka.value`.

A path is names with dots between; after a name, brackets choose among a list's entries: `[3]`, `[-1]`, `[0:3]` as in
Python, `[*]` for all, `[zone=general]` for those whose field has that value. `.length` is how many entries a list has.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

LENGTH = "length"
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_INDEX = re.compile(r"-?\d+")
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+))?")
_FILTER = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.+)")
_SCALARS = (bool, int, float, str)


class PathError(ValueError):
    """A path that is no path, or leads nowhere; says what could stand there."""


class Match(NamedTuple):
    """One value that a path leads to: its own path, and the value, null where the report has none."""

    path: str
    value: float | bool | str | None


@dataclass(frozen=True)
class _Filter:
    field: str
    value: str


@dataclass(frozen=True)
class _Step:
    """A name, or a choice among a list's entries."""

    text: str
    name: str | None = None
    chosen: int | slice | _Filter | None = None


@dataclass(frozen=True)
class Path:
    """A parsed path."""

    text: str
    steps: tuple[_Step, ...]

    @classmethod
    def parse(cls, text: str) -> Path:
        """PathError where it is none, with the place."""
        steps: list[_Step] = []
        position = 0
        while position < len(text):
            if found := _BRACKETS.match(text, position):
                if not steps:
                    raise PathError(f"{text!r} starts with brackets; start with a name, such as layers")
                steps.append(_Step(found[0], chosen=_chosen(found[1].strip(), text)))
            else:
                start = position + (text[position] == "." if steps else 0)
                found = _NAME.match(text, start)
                if not found or (steps and text[position] != "."):
                    raise PathError(
                        f"{text!r} is not a valid path: {text[position : position + 12]!r} at column {position + 1}"
                    )
                steps.append(_Step(found[0], name=found[0]))
            position = found.end()
        if not steps:
            raise PathError("the path is empty")
        return cls(text, tuple(steps))

    @property
    def single(self) -> bool:
        """Whether it leads to one value at most, whatever the document holds."""
        return all(step.chosen is None or isinstance(step.chosen, int) for step in self.steps)

    @property
    def takes_all(self) -> bool:
        """Whether it takes what lists have, by `[*]` or a slice: that they may be empty is then no mistake."""
        return all(step.chosen is None or isinstance(step.chosen, slice) for step in self.steps)

    def check(self, root: type[BaseModel]) -> bool:
        """Whether a number may stand there; PathError where no document of this type can have a single value there."""
        at: list[Any] = [root]
        for index, step in enumerate(self.steps):
            so_far = "".join(_joined(self.steps[: index + 1]))
            before = self.steps[index - 1].chosen if index else None
            if step.name == LENGTH and isinstance(before, slice | _Filter):
                at = [int]
            else:
                at = _types_after(at, step, so_far)
        if not any(_is_scalar(kind) for kind in at):
            if any(get_origin(kind) is list for kind in at):
                raise PathError(f"{self.text} is a list; select entries with brackets, or count them with .{LENGTH}")
            inside = sorted({name for kind in at for name in _names(kind)})
            raise PathError(f"{self.text} is not a single value; continue with one of {', '.join(inside)}")
        return any(kind in (int, float) for kind in at)

    def matches(self, document: BaseModel, at_most: int | None = None) -> list[Match]:
        """Every value that it leads to, or the first of them; none where a list has no such entries.

        A null on the way is a match without a value: a part of the report that was not computed.
        """
        return list(islice(_walk(document, self.steps, ""), at_most))


def _chosen(inside: str, text: str) -> int | slice | _Filter:
    if inside == "*":
        return slice(None)
    if _INDEX.fullmatch(inside):
        return int(inside)
    if found := _SLICE.fullmatch(inside):
        first, last, step = (int(part) if part else None for part in found.groups())
        if step == 0:
            raise PathError(f"{text!r}: the step of a slice cannot be 0")
        return slice(first, last, step)
    if found := _FILTER.fullmatch(inside):
        return _Filter(found[1], found[2].strip().strip("\"'"))
    raise PathError(f"{text!r}: [{inside}] is not a number, a slice, * or name=value")


def _walk(value: object, steps: tuple[_Step, ...], so_far: str) -> Iterator[Match]:
    if value is None:
        yield Match(so_far + "".join(_joined(steps, bool(so_far))), None)
    elif not steps:
        if not isinstance(value, _SCALARS):
            raise PathError(f"{so_far} is not a single value")
        yield Match(so_far, value)
    elif isinstance(value, list):
        yield from _walk_list(value, steps, so_far)
    else:
        name = steps[0].name
        if name is None:
            raise PathError(f"{so_far} is not a list; {steps[0].text} cannot select from it")
        inside = value.get(name) if isinstance(value, dict) else getattr(value, name)
        yield from _walk(inside, steps[1:], f"{so_far}.{name}" if so_far else name)


def _walk_list(value: list[object], steps: tuple[_Step, ...], so_far: str) -> Iterator[Match]:
    step = steps[0]
    if step.name == LENGTH:
        yield from _walk(len(value), steps[1:], f"{so_far}.{LENGTH}")
        return
    if step.chosen is None:
        raise PathError(f"{so_far} is a list; select entries with brackets, or count them with .{LENGTH}")
    numbers = _numbers(value, step.chosen)
    following = steps[1:]
    if following and following[0].name == LENGTH and not isinstance(step.chosen, int) and not _nested(value):
        yield from _walk(len(numbers), following[1:], f"{so_far}{step.text}.{LENGTH}")
        return
    for number in numbers:
        yield from _walk(value[number], following, f"{so_far}[{number}]")


def _nested(value: list[object]) -> bool:
    return bool(value) and isinstance(value[0], list)


def _numbers(value: list[object], chosen: int | slice | _Filter) -> list[int]:
    if isinstance(chosen, _Filter):
        return [number for number, entry in enumerate(value) if _has(entry, chosen)]
    if isinstance(chosen, slice):
        return list(range(len(value))[chosen])
    return [chosen % len(value)] if -len(value) <= chosen < len(value) else []


def _has(entry: object, wanted: _Filter) -> bool:
    found = getattr(entry, wanted.field, None)
    return (str(found).lower() if isinstance(found, bool) else str(found)) == wanted.value


def _joined(steps: tuple[_Step, ...], inside: bool = False) -> Iterator[str]:
    for step in steps:
        yield f".{step.text}" if inside and step.name else step.text
        inside = True


def _types_after(kinds: list[Any], step: _Step, so_far: str) -> list[Any]:
    """The types that a step can lead to from these."""
    found = [after for kind in kinds for after in _after(kind, step)]
    if found:
        return found
    if step.name and any(get_origin(kind) is list for kind in kinds):
        before = so_far.removesuffix(f".{step.name}")
        raise PathError(f"{before} is a list; select entries with brackets: {before}[*].{step.name}")
    names = sorted({name for kind in kinds for name in _names(kind)})
    wanted = step.name or (step.chosen.field if isinstance(step.chosen, _Filter) else "")
    if not names:
        raise PathError(f"{so_far} does not exist: there is nothing inside")
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"possible: {', '.join(names)}"
    raise PathError(f"{so_far} does not exist: {hint}")


def _after(kind: Any, step: _Step) -> Iterator[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        if step.name == LENGTH:
            yield int
        elif isinstance(step.chosen, _Filter):
            inside = [one for one in _plain(arguments[0]) if step.chosen.field in _names(one)]
            for one in inside:
                _check_value(one.model_fields[step.chosen.field], step.chosen)
            yield from inside
        elif step.chosen is not None:
            yield from _plain(arguments[0])
    elif origin is dict and step.name is not None:
        keys = set(get_args(arguments[0]))
        if not keys or step.name in keys:
            yield from _plain(arguments[1])
    elif step.name in _names(kind):
        yield from _plain(kind.model_fields[step.name].annotation)


def _check_value(field: FieldInfo, wanted: _Filter) -> None:
    """PathError where a field can never have this value: a filter that is misspelt would match nothing for ever."""
    known = [str(one) for kind in _plain(field.annotation) if get_origin(kind) is Literal for one in get_args(kind)]
    known += ["true", "false"] if bool in _plain(field.annotation) else []
    known += [str(one) for one in field.examples or []]
    if known and wanted.value not in known:
        near = difflib.get_close_matches(wanted.value, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"possible: {', '.join(sorted(known))}"
        raise PathError(f"[{wanted.field}={wanted.value}] matches nothing: {hint}")


def _names(kind: Any) -> list[str]:
    """What can be named inside a type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    if get_origin(kind) is dict:
        return [str(key) for key in get_args(get_args(kind)[0])]
    if get_origin(kind) is list:
        return [name for one in _plain(get_args(kind)[0]) for name in _names(one)]
    return []


def _plain(annotation: Any) -> list[Any]:
    """The types of an annotation without None and Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [one for part in get_args(annotation) if part is not type(None) for one in _plain(part)]
    return [annotation]


def _is_scalar(kind: Any) -> bool:
    return kind in _SCALARS or get_origin(kind) is Literal
