"""From a record of a data set to a row: the columns that are read, what counts as a text and what as a label.

A record is a mapping from names to values, whatever the format; `backends.tables.formats` makes them of files.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Final, NamedTuple, get_args

from backends.tables.chats import LISTS, Chat, ChatError, ChatFormat, as_text, chat_of, format_of, strings
from layerdrift.contract.errors import InputError
from layerdrift.contract.request import TextsRef

TEXT, PAIR, LABEL = "/dataset/text_column", "/dataset/text_pair_column", "/dataset/label_column"
GROUP = "/dataset/group_column"
DEFAULT_LABEL = "label"
"""Column of the labels where the request names none."""

MISSING: Final = object()
"""What `lookup` finds where nothing is."""

_CHATS = {"messages", "conversations", "conversation", "chat", "dialog", "dialogue", "turns"}
NO_CHAT: Final = Chat(())
"""Of a row of chat data that is no usable chat."""

_EXACT = 2**53
"""Floats up to here are whole numbers exactly."""

MAX_ROWS = 5_000_000
ROW_BYTES = 100
"""What a row takes beside its texts."""

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|NaN|NAN")


class Row(NamedTuple):
    """One usable row.

    label: None where there is none. pair: the second text of a pair, None for a single text. group: of texts that are
    nearly the same; None: this one is alone. chat: the messages that the text is made of, NO_CHAT where they are
    unusable; None: it is a text. others: the text with each of the chat's other endings, once it is rendered.
    """

    text: str
    label: str | None
    pair: str | None = None
    group: str | None = None
    chat: Chat | None = None
    others: tuple[str, ...] = ()

    @property
    def content(self) -> str | tuple[str, str]:
        """What a tokenizer is given: the text, or both texts of a pair."""
        return self.text if self.pair is None else (self.text, self.pair)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    text: column of the text. label: column of the label that the request names; None: DEFAULT_LABEL where there is
    one. labelled: every row must have a label, as a fine-tune needs. pair: column of the second text; None: no pairs.
    group: column of the group; None: no groups. format: what a row is, `auto`: told by its columns.
    """

    text: str
    label: str | None
    labelled: bool
    pair: str | None = None
    group: str | None = None
    format: str = "auto"

    @classmethod
    def of(cls, texts: TextsRef, labelled: bool) -> Columns:
        return cls(
            texts.text_column,
            texts.label_column,
            labelled,
            texts.text_pair_column,
            texts.group_column,
            texts.format,
        )

    @property
    def label_name(self) -> str:
        """The column that labels are read from, should it be there."""
        return self.label or DEFAULT_LABEL

    def wanted(self) -> dict[str, str]:
        """Every column that is read where it is there, under the pointer of its setting."""
        found = {TEXT: self.text, LABEL: self.label_name}
        more = {PAIR: self.pair, GROUP: self.group}
        return found | {pointer: name for pointer, name in more.items() if name is not None}

    def required(self) -> dict[str, str]:
        """Those of them that a table of named columns must have."""
        found = self.wanted()
        if self.label is None and not self.labelled:
            del found[LABEL]
        return found

    def chat_format(self, names: Sequence[str]) -> ChatFormat | None:
        """Of a table with these columns; None: texts, which come first unless the request says otherwise."""
        if self.format in get_args(ChatFormat):
            return self.format  # type: ignore[return-value]
        if self.format == "auto" and self.text in LISTS:
            return "messages"
        with_text = self.text in names or self.text != "text" or self.pair is not None
        return None if self.format == "text" or with_text else format_of(names)

    def require(self, present: Sequence[str], where: str) -> None:
        """Raises InputError unless a table with these columns has each that it must have, once."""
        if self.chat_format(present) is not None:
            return
        for pointer, name in self.required().items():
            if name not in present:
                raise no_column(pointer, name, present, where)
        self.require_once(present, where)

    def require_once(self, present: Sequence[str], where: str) -> None:
        """Raises InputError where a column that is read is there more than once."""
        for pointer, name in self.wanted().items():
            if present.count(name) > 1:
                raise InputError.at(pointer, f"{where} has more than one column {name!r}; rename one of them")


def no_column(pointer: str, name: str, present: Sequence[str], where: str) -> InputError:
    """A column that was asked for and is not there."""
    shown = ", ".join(present[:20]) + (", …" if len(present) > 20 else "")
    return InputError.at(pointer, f"{where} has no column {name!r}; it has: {shown or 'none'}")


def lookup(record: Mapping[str, Any], name: str) -> Any:
    """The value under a name; `data.text` also finds the key `text` inside `data`. MISSING where there is none."""
    if name in record:
        return record[name]
    head, dot, rest = name.partition(".")
    while dot:
        inside = record.get(head, MISSING)
        if isinstance(inside, Mapping):
            return lookup(inside, rest)
        if inside is None:
            return None
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return MISSING


def names_of(record: Mapping[str, Any]) -> list[str]:
    """The names of a record, with those one level down."""
    names = []
    for key, value in record.items():
        names.append(str(key))
        if isinstance(value, Mapping):
            names += [f"{key}.{inner}" for inner in value]
    return names


def kind_of(value: object) -> str:
    """What a value is, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        (Integral, "an integer"),
        ((Real, Decimal), "a number"),
        (str, "a string"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
        ((bytes, bytearray), "bytes"),
    )
    if value is None:
        return "null"
    return next((words for kind, words in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


def as_label(value: object) -> str | None:
    """A value as a label: whole numbers without a decimal point, null and NaN as None.

    Raises:
        TypeError: a value of its kind is no label.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | Integral):
        return str(value)
    if isinstance(value, Real | Decimal):
        number = float(value)
        if math.isnan(number):
            return None
        return str(int(number)) if number.is_integer() and abs(number) <= _EXACT else str(value)
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(kind_of(value))


def whole_number_labels(rows: list[Row]) -> list[Row]:
    """The rows of a table that has no types, with labels such as `1.0` as `1` where every label is a number."""
    labels = {row.label for row in rows if row.label}
    if not all(_NUMBER.fullmatch(label) for label in labels):
        return rows
    settled = {label: _settled(label) for label in labels}
    if all(label == number for label, number in settled.items()):
        return rows
    return [row._replace(label=settled[row.label]) if row.label else row for row in rows]


def _settled(label: str) -> str | None:
    if label.lower() == "nan":
        return None
    whole = _WHOLE.fullmatch(label)
    if whole is None:
        return label
    return "0" if not whole[1].strip("+-0") else whole[1]


def within_limit(rows: Iterable[Row], where: str) -> Iterator[Row]:
    """The rows; InputError where there are more than MAX_ROWS: each takes memory, however short it is."""
    for number, row in enumerate(rows, start=1):
        if number > MAX_ROWS:
            raise InputError.at("/dataset/uri", f"{where} has more than {MAX_ROWS} rows; use a subset")
        yield row


class RowReader:
    """Makes rows of a file's records, and counts what of them cannot be used.

    columns, where: what is read, and the file's name in messages. names: the columns of the first record, with those
    one level down. unusable: rows whose label is of a kind that is none, by that kind. no_chats: rows that are no
    usable chat, by the reason; first_no_chat: the place of the first of them.
    """

    def __init__(self, columns: Columns, where: str) -> None:
        self.columns = columns
        self.where = where
        self.names: list[str] = []
        self.unusable: Counter[str] = Counter()
        self.no_chats: Counter[str] = Counter()
        self.first_no_chat = ""
        self.label_seen = False
        self._format: ChatFormat | None = None
        self._rows = 0

    def begin(self, names: list[str]) -> None:
        """Takes the names of the columns, with those one level down; else the first record tells them."""
        self.names, self._format = names, self.columns.chat_format(names)

    def row(self, record: Mapping[str, Any], place: str) -> Row:
        """A record as a row; a text that is null is an empty one.

        Args:
            place: where in the file the record is, such as `line 3`.

        Raises:
            InputError: a column is missing, or holds what cannot be used.
        """
        if not self.names:
            self.begin(names_of(record))
        self._rows += 1
        columns = self.columns
        if self._format is not None:
            return self._chat(record, self._format, place)
        text = self._text(record, TEXT, columns.text, place)
        label = self._label(record, place)
        pair = None if columns.pair is None else self._text(record, PAIR, columns.pair, place)
        return Row(text, label, pair, self._group(record, place))

    def _chat(self, record: Mapping[str, Any], format: ChatFormat, place: str) -> Row:
        """A row of chat data; an empty text where it is no usable chat."""
        label, group = self._label(record, place), self._group(record, place)
        try:
            chat = chat_of(record, format)
        except ChatError as error:
            self.no_chats[str(error)] += 1
            self.first_no_chat = self.first_no_chat or place
            return Row("", label, None, group, NO_CHAT)
        for part in strings(chat):
            self._whole(part, TEXT, format, place)
        text = as_text(chat)
        return Row(text, label, None, group, chat._replace(place=f"{place} of {self.where}"))

    def finish(self) -> None:
        """Raises InputError where a column of labels was named and no record had it."""
        if self.columns.label is not None and self._rows and not self.label_seen:
            where = f"{self.where}, in its first {self._rows} rows," if self._rows > 1 else self.where
            raise no_column(LABEL, self.columns.label, self.names, where)

    def _text(self, record: Mapping[str, Any], pointer: str, name: str, place: str) -> str:
        value = lookup(record, name)
        if isinstance(value, str):
            return self._whole(value, pointer, name, place)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if value is MISSING:
            raise no_column(pointer, name, names_of(record), f"{self.where}, {place},")
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                detail = f"{self.where}, {place}: the bytes in column {name!r} are not UTF-8 ({error.reason})"
                raise InputError.at(pointer, f"{detail}; store the texts as strings") from error
        raise not_a_text(pointer, name, kind_of(value), f"{self.where}, {place}")

    def _label(self, record: Mapping[str, Any], place: str) -> str | None:
        columns, name = self.columns, self.columns.label_name
        value = lookup(record, name)
        if value is MISSING:
            if columns.labelled:
                raise no_column(LABEL, name, names_of(record), f"{self.where}, {place},")
            return None
        self.label_seen = True
        try:
            label = as_label(value)
            kind = "null" if label is None else ""
        except TypeError as error:
            label, kind = None, str(error)
        except UnicodeDecodeError:
            label, kind = None, "bytes that are not UTF-8"
        if columns.labelled and kind:
            raise not_a_label(name, kind, f"{self.where}, {place}")
        if kind and kind != "null":
            self.unusable[kind] += 1
        if not label:
            return label if columns.labelled else None
        return self._whole(label, LABEL, name, place)

    def _group(self, record: Mapping[str, Any], place: str) -> str | None:
        """A group is named as a label is; a row without one is a group by itself."""
        name = self.columns.group
        if name is None:
            return None
        value = lookup(record, name)
        if value is MISSING:
            raise no_column(GROUP, name, names_of(record), f"{self.where}, {place},")
        try:
            return as_label(value) or None
        except (TypeError, UnicodeDecodeError) as error:
            detail = f"{self.where}, {place}: column {name!r} contains {error}; a group must be a string or a number"
            raise InputError.at(GROUP, detail) from error

    def _whole(self, value: str, pointer: str, name: str, place: str) -> str:
        """The string; InputError where it holds half a surrogate pair, which nothing could store."""
        if not value.isascii() and value.encode("utf-8", "replace").decode() != value:
            detail = (
                f"{self.where}, {place}: column {name!r} contains half a surrogate pair; split texts between characters"
            )
            raise InputError.at(pointer, detail)
        return value


def not_a_text(pointer: str, name: str, kind: str, where: str) -> InputError:
    """A column of texts that holds something else."""
    if "list" in kind and name.rpartition(".")[2].lower() in _CHATS:
        advice = "leave text_column out, and the model's chat template renders the chats"
    else:
        advice = "texts must be strings"
    return InputError.at(pointer, f"{where}: column {name!r} contains {kind}; {advice}")


def not_a_label(name: str, kind: str, where: str) -> InputError:
    """A label that a fine-tune cannot use."""
    detail = f"{where}: column {name!r} contains {kind}; a label must be a string, a number or a boolean"
    return InputError.at(LABEL, detail)
