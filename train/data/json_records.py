"""The records of JSON files in any common layout, each with its place in the file.

A file is a list of records, one record a line, one record (over several lines or not), or an object whose one list holds
the records, as `{"data": [...]}`. A byte order mark may stand before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nextgpt.errors import UserInputError

_SPACE = re.compile(r"[ \t\r\n]*")
_TYPES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}


class Record(NamedTuple):
    """One record of a file.

    Args:
        where: its place: `file:line`, or `file: record n`, counted from 1, in a list.
        value: the object; None where there is none.
        problem: what is wrong with it then.
    """

    where: str
    value: dict | None
    problem: str = ""


def read_records(file: Path, is_record: Callable[[dict], bool]) -> list[Record]:
    """Everything in a file, in order, what cannot be read too.

    Args:
        is_record: whether an object that is all of a file is a record, and not the wrapping of some.

    Raises:
        UserInputError: the file cannot be opened, or nothing in it is JSON.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserInputError(f"{file}: cannot be read ({reason}); give a JSON or JSON-lines file") from None
    values = list(_values(_decoded(data, file)))
    if not values:
        raise UserInputError(f"{file}: holds no records; expected a list of JSON objects, or one a line")
    if len(values) == 1 and isinstance(values[0].value, list):
        return _of_list(values[0].value, file)
    if len(values) == 1 and isinstance(values[0].value, dict) and not is_record(values[0].value):
        lists = [key for key, value in values[0].value.items() if _holds_records(value)]
        if len(lists) > 1:
            raise UserInputError(f"{file}: one object with the lists {', '.join(lists)}; make a file of each")
        if lists:
            return _of_list(values[0].value[lists[0]], file)
    if not any(isinstance(value.value, dict) for value in values):
        first = next((value for value in values if value.problem), values[0])
        reason = first.problem or f"holds {describe(first.value)}{' and more after it' * (len(values) > 1)}"
        raise UserInputError(f"{file}:{first.line}: {reason}; expected a list of JSON objects, or one a line")
    return [_record(f"{file}:{value.line}", value.value, value.problem) for value in values]


def _holds_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def describe(value: Any) -> str:
    """What kind of JSON a value is, with its article."""
    return _TYPES.get(type(value), "a number")


def _decoded(data: bytes, file: Path) -> str:
    """The text. Bytes that are not UTF-8 become lone surrogates: they spoil the record that they stand in, not the file."""
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass")
    except UnicodeDecodeError as error:
        raise UserInputError(f"{file}: not readable as {encoding} ({error.reason}); save it as UTF-8") from None


class _Value(NamedTuple):
    line: int
    value: Any
    problem: str = ""


def _values(text: str) -> Iterator[_Value]:
    """The JSON values that stand one after the other; where there is none, reading goes on in the next line."""
    decode, position, line = json.JSONDecoder().raw_decode, 0, 1
    while True:
        start = _SPACE.match(text, position).end()
        line += text.count("\n", position, start)
        if start == len(text):
            return
        try:
            value, position = decode(text, start)
        except json.JSONDecodeError as error:
            # In a list over many lines the mistake stands further down; there is nothing more to be had from it.
            is_list = line == 1 and text[start] == "["
            yield _Value(error.lineno if is_list else line, None, f"not valid JSON ({error.msg})")
            position = _next_line(text, start)
            if is_list and error.lineno > 1:
                return
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits; brackets a thousand deep
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            yield _Value(line, None, f"not valid JSON ({reason})")
            position = _next_line(text, start)
        else:
            yield _Value(line, value)
        line += text.count("\n", start, position)


def _next_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end + 1


def _of_list(values: list, file: Path) -> list[Record]:
    if not values:
        raise UserInputError(f"{file}: holds no records; expected a list of JSON objects, or one a line")
    return [_record(f"{file}: record {number}", value) for number, value in enumerate(values, start=1)]


def _record(where: str, value: Any, problem: str = "") -> Record:
    if problem or isinstance(value, dict):
        return Record(where, value if isinstance(value, dict) else None, problem)
    return Record(where, None, f"{describe(value)}, expected an object with keys and values")
