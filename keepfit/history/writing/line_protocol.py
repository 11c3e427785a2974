r"""Parse InfluxDB's line protocol: ``measurement,tag=a field=1.5,count=2i 1465839830100400200``.

Pure. Owns the syntax (as the reference of InfluxDB 2 has it) and how a point becomes a document: its measurement is the
``type``, its tags and fields are fields, a name with dots is an object in an object. Never stores anything. Invariant:
a point is parsed whole or refused with what would be right; what a writer escaped is read as it was.

>>> parse_line(r'cpu,host=web\ 1 load=0.5,cores=4i,up=t,os="li\"nux" 1465839830', "s").document
{'host': 'web 1', 'load': 0.5, 'cores': 4, 'up': True, 'os': 'li"nux', 'type': 'cpu', 'timestamp': 1465839830.0}
"""

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from keepfit.errors import InvalidError, MalformedError
from keepfit.history.writing.checks import DOCUMENT_BYTES_MAX, INTEGER_MAX, INTEGER_MIN

# Nanoseconds of one unit of each precision.
PRECISIONS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
NS_PER_S = 1_000_000_000
# Names that a document has itself; such a tag or field is kept in `metadata`, where a query finds it (metadata.type).
OWN_NAMES = frozenset({"type", "timestamp", "kind", "_id", "metadata"})
# Characters of a line that a message repeats.
SHOWN_MAX = 80
# Text in quotation marks may hold line breaks. A line whose text does not end within so much has no end of it.
TEXT_LINES_MAX, TEXT_CHARACTERS_MAX = 100, 1 << 16

# A backslash keeps its meaning of a separator away, and is itself before any other character.
MEASUREMENT = re.compile(r"(?:[^\\, \n]|\\.|\\$)+")
NAME = re.compile(r"(?:[^\\,= \n]|\\.|\\$)+")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
BARE = re.compile(r"[^, \n]+")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
INTEGER = re.compile(r"([+-]?[0-9]+)([iu])")
TIME = re.compile(r"-?[0-9]{1,20}")
BOOLEANS = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), False),
}
ESCAPED_IN_NAME = re.compile(r"\\([,= ])")
ESCAPED_IN_MEASUREMENT = re.compile(r"\\([, ])")
ESCAPED_IN_STRING = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class Point:
    """A point as a `document`, and the `identity` of its series and time: a point with the same one replaces fields.

    The identity has the time in nanoseconds, of which the document's seconds keep as many digits as a float has.
    """

    document: dict[str, Any]
    identity: dict[str, Any]


class _UnclosedError(Exception):
    """The text of a field does not end in this line."""


class PointReader:
    """Reads the points of a body, line by line; `precision` is the unit of its times."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._lines = deque[bytes]()
        self._number = 0

    def read(
        self, lines: Iterable[bytes], now_ns: int, *, is_last: bool
    ) -> Iterator[tuple[int, Point | MalformedError | InvalidError]]:
        """Yield the points of further lines, each with the number of its line, from 1, or with what is wrong with it.

        A point whose text may go on in the next line waits for it, unless this `is_last`.
        """
        self._lines.extend(lines)
        while self._lines:
            used, found = self._next(now_ns, is_last=is_last)
            if not used:
                return
            number = self._number + 1
            self._number += used
            for _ in range(used):
                self._lines.popleft()
            if found is not None:
                yield number, found

    def _next(self, now_ns: int, *, is_last: bool) -> tuple[int, Point | MalformedError | InvalidError | None]:
        """Return how many lines the next point has, and the point; 0 if it may go on in a line to come."""
        text, used = self._lines[0], 1
        while True:
            try:
                return used, _parse(_decoded(text), self._precision, now_ns)
            except _UnclosedError:
                within = used < TEXT_LINES_MAX and len(text) < TEXT_CHARACTERS_MAX
                if within and used == len(self._lines) and not is_last:
                    return 0, None
                if not within or used == len(self._lines):
                    return 1, _unclosed(self._lines[0])
                text += b"\n" + next(islice(self._lines, used, None))
                used += 1
            except (MalformedError, InvalidError) as error:
                return 1, error if used == 1 else _unclosed(self._lines[0])


def parse_line(line: str, precision: str = "ns", now_ns: int = 0) -> Point | None:
    """Parse one line; None for one that is empty or a comment. `now_ns` is the time of a point without one.

    Raises
    ------
    MalformedError
        If it is not line protocol.
    InvalidError
        If a name occurs twice, or a number is out of range.
    """
    try:
        return _parse(line, precision, now_ns)
    except _UnclosedError:
        raise _unclosed(line.encode()) from None


def _decoded(line: bytes) -> str:
    if len(line) > DOCUMENT_BYTES_MAX:
        raise InvalidError(f"the line is longer than {DOCUMENT_BYTES_MAX} bytes.")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise MalformedError("the line is not UTF-8 text.") from None


def _unclosed(line: bytes) -> MalformedError:
    return _malformed(line.decode("utf-8", "replace"), "the text of a field has no closing quotation mark")


def _parse(line: str, precision: str, now_ns: int) -> Point | None:
    line = line.strip(" \t\r\n")
    if not line or line.startswith("#"):
        return None
    found = MEASUREMENT.match(line)
    if found is None:
        raise _malformed(line, "it has no measurement")
    measurement = ESCAPED_IN_MEASUREMENT.sub(r"\1", found[0])
    tags, position = _tags(line, found.end())
    position = _spaces(line, position)
    fields, position = _fields(line, position)
    nanoseconds = _time(line, _spaces(line, position), precision, now_ns)
    if twice := tags.keys() & fields.keys():
        raise InvalidError(f"{min(twice)[:SHOWN_MAX]!r} is a tag and a field; a document has one value of a name.")
    document: dict[str, Any] = {}
    for name, value in (*tags.items(), *fields.items()):
        _set(document, name, value)
    document |= {"type": measurement, "timestamp": nanoseconds / NS_PER_S}
    return Point(document, {"timestamp": nanoseconds, "tags": tags})


def _tags(line: str, position: int) -> tuple[dict[str, str], int]:
    tags: dict[str, str] = {}
    while line[position : position + 1] == ",":
        name, position = _name(line, position + 1, "tag")
        value = NAME.match(line, position)
        if value is None:
            raise _malformed(line, f"the tag {name[:SHOWN_MAX]!r} has no value")
        if name in tags:
            raise InvalidError(f"the tag {name[:SHOWN_MAX]!r} occurs twice.")
        tags[name], position = ESCAPED_IN_NAME.sub(r"\1", value[0]), value.end()
    return tags, position


def _fields(line: str, position: int) -> tuple[dict[str, Any], int]:
    fields: dict[str, Any] = {}
    while True:
        name, position = _name(line, position, "field")
        if name in fields:
            raise InvalidError(f"the field {name[:SHOWN_MAX]!r} occurs twice.")
        fields[name], position = _value(line, position, name)
        if line[position : position + 1] != ",":
            return fields, position
        position += 1


def _name(line: str, position: int, what: str) -> tuple[str, int]:
    """Return the name that begins here, and the position behind its equals sign."""
    found = NAME.match(line, position)
    if found is None or line[found.end() : found.end() + 1] != "=":
        raise _malformed(line, f"there is no {what} NAME=VALUE at character {position + 1}")
    return ESCAPED_IN_NAME.sub(r"\1", found[0]), found.end() + 1


def _value(line: str, position: int, name: str) -> tuple[Any, int]:
    if line[position : position + 1] == '"':
        string = STRING.match(line, position)
        if string is None:
            raise _UnclosedError
        return ESCAPED_IN_STRING.sub(r"\1", string[1]), string.end()
    found = BARE.match(line, position)
    text = "" if found is None else found[0]
    if text in BOOLEANS:
        return BOOLEANS[text], position + len(text)
    if integer := INTEGER.fullmatch(text):
        number = int(integer[1]) if len(text) <= SHOWN_MAX else INTEGER_MAX + 1
        if not INTEGER_MIN <= number <= INTEGER_MAX or (integer[2] == "u" and number < 0):
            raise InvalidError(f"the field {name[:SHOWN_MAX]!r}: {text[:SHOWN_MAX]} is out of the range of 64 bits.")
        return number, position + len(text)
    if NUMBER.fullmatch(text):
        value = float(text)
        if math.isinf(value):
            raise InvalidError(f"the field {name[:SHOWN_MAX]!r}: {text[:SHOWN_MAX]} is not a finite number.")
        return value, position + len(text)
    raise _malformed(
        line, f'the field {name[:SHOWN_MAX]!r} has the value {text[:SHOWN_MAX]!r}: use 1.5, 2i, true or "text"'
    )


def _spaces(line: str, position: int) -> int:
    end = position
    while line[end : end + 1] == " ":
        end += 1
    if end == position and position < len(line):
        raise _malformed(line, f"character {position + 1} is {line[position]!r}, where a space should be")
    return end


def _time(line: str, position: int, precision: str, now_ns: int) -> int:
    text = line[position:]
    if not text:
        return now_ns - now_ns % PRECISIONS_NS[precision]
    if not TIME.fullmatch(text):
        raise _malformed(line, f"the time {text[:SHOWN_MAX]!r} is not a whole number")
    return int(text) * PRECISIONS_NS[precision]


def _set(document: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its name, in which dots separate the names of objects."""
    path = name.split(".")
    if path[0] in OWN_NAMES:
        path = ["metadata", *path] if path != ["metadata"] else ["metadata", "metadata"]
    inner = document
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InvalidError(f"{name[:SHOWN_MAX]!r} is in the object {part[:SHOWN_MAX]!r}, which is a value.")
    if path[-1] in inner:
        raise InvalidError(f"{name[:SHOWN_MAX]!r} is a value, and an object that holds others.")
    inner[path[-1]] = value


def _malformed(line: str, reason: str) -> MalformedError:
    shown = line if len(line) <= SHOWN_MAX else f"{line[:SHOWN_MAX]}…"
    return MalformedError(f"unable to parse {shown!r}: {reason}.")
