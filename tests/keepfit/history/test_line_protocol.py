"""Line protocol: points that influxdb-client writes are read as they were, and other lines are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from influxdb_client.client.write.point import Point as Written

from keepfit.errors import InvalidError, MalformedError
from keepfit.history.writing.checks import check_document
from keepfit.history.writing.line_protocol import PRECISIONS_NS, PointReader, parse_line

# influxdb-client leaves out a tag without a value, and does not escape a backslash before a separator, which no
# reader can tell from an escaped separator.
LETTERS = st.characters(exclude_characters="\\.\0\n\r\t$", exclude_categories=["Cs", "Cc"])
NAMES = st.text(LETTERS, min_size=1, max_size=12).map(lambda name: f"n{name}")
TEXTS = st.text(LETTERS, min_size=1, max_size=12).map(lambda value: f"v{value}v")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
FIELDS = st.one_of(
    NUMBERS, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=["Cs"]))
)
TIMES = st.integers(-(10**18), 10**18)


def read(body: str, precision: str = "ns", step: int = 10**9) -> list[Any]:
    """Return the points of a body, or their errors, whose lines arrive `step` at a time."""
    reader, lines, found = PointReader(precision), body.encode().split(b"\n"), []
    for first in range(0, len(lines), step):
        found += reader.read(lines[first : first + step], 7, is_last=False)
    return [*found, *reader.read((), 7, is_last=True)]


@given(
    measurement=NAMES.filter(lambda name: not name.startswith("#")),
    tags=st.dictionaries(NAMES.map(lambda name: f"t{name}"), TEXTS, max_size=4),
    fields=st.dictionaries(NAMES.map(lambda name: f"f{name}"), FIELDS, min_size=1, max_size=4),
    nanoseconds=TIMES,
    step=st.integers(1, 5),
)
def test_points_of_the_client_are_read_as_they_were(
    measurement: str, tags: dict[str, str], fields: dict[str, Any], nanoseconds: int, step: int
) -> None:
    """Any point that influxdb-client writes becomes a document with the same values, however its lines arrive."""
    point = Written(measurement)
    for name, value in tags.items():
        point.tag(name, value)
    for name, value in fields.items():
        point.field(name, value)
    body = point.time(nanoseconds).to_line_protocol()
    ((number, found),) = read(f"\n{body}\n", step=step)
    assert number == 2
    assert found.document == {**tags, **fields, "type": measurement, "timestamp": nanoseconds / 10**9}
    assert {name: type(value) for name, value in fields.items()} == {
        name: type(found.document[name]) for name in fields
    }
    assert found.identity == {"timestamp": nanoseconds, "tags": tags}
    check_document(found.document)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_is_read_or_refused(body: str) -> None:
    """A reader ends on any text, with points that may be stored, and errors."""
    for _, found in read(body):
        assert isinstance(found, MalformedError | InvalidError) or found.document["type"]


@pytest.mark.parametrize(
    ("line", "document"),
    [
        (r"m\,n\ o=p f=1", {"type": "m,n o=p", "f": 1.0}),
        (r"m,a\,b\=c\ d=e\,f\ g f=1u", {"type": "m", "a,b=c d": "e,f g", "f": 1}),
        (r'm f="say \"hi\" \\ \n"', {"type": "m", "f": r'say "hi" \ \n'}),
        ("m f=-1e-3,g=+2i,h=.5,i=T,j=false", {"type": "m", "f": -0.001, "g": 2, "h": 0.5, "i": True, "j": False}),
        ('m f="",g="x y,z=1"', {"type": "m", "f": "", "g": "x y,z=1"}),
        ("c.d,host.name=a l.1m=2,l.5m=3", {"type": "c.d", "host": {"name": "a"}, "l": {"1m": 2.0, "5m": 3.0}}),
        ("m,type=x,kind=y timestamp=1", {"type": "m", "metadata": {"type": "x", "kind": "y", "timestamp": 1.0}}),
    ],
)  # fmt: skip
def test_syntax(line: str, document: dict[str, Any]) -> None:
    """Names and values are unescaped as the reference of InfluxDB says; own names and dots make objects."""
    for precision, unit in PRECISIONS_NS.items():
        ((_, found),) = read(f"{line} 3", precision)
        assert found.document == {**document, "timestamp": 3 * unit / 10**9}
    ((_, now),) = read(line)
    assert now.identity["timestamp"] == 7


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("m", "a space should be|no field"), ("m ", "no field"), (",a=b f=1", "no measurement"), ("m f", "no field"),
        ("m f=", "the value ''"), ("m f=abc", "the value 'abc'"), ("m f=1x", "1x"), ("m f=1 x", "not a whole number"),
        ("m f=1,", "no field"), ("m,a= f=1", "no value"), ("m,a f=1", "no tag"), ("m,a=b", "no field"),
        ('m f="x', "quotation mark"), ("m f=nan", "nan"), ("m f=0x1", "0x1"), ("m f=1 1.5", "whole"),
        ("m f=1e999", "finite"), ("m f=9223372036854775808i", "64 bits"), ("m f=-1u", "64 bits"),
        ("m f=1,f=2", "twice"), ("m,a=1,a=2 f=1", "twice"), ("m,a=1 a=1", "tag and a field"),
        ("m a=1,a.b=2", "a value"), ("m a.b=2,a=1", "a value"),
    ],
)  # fmt: skip
def test_wrong_lines_are_named(line: str, reason: str) -> None:
    """A line that is wrong is refused with the reason; the lines around it are read."""
    with pytest.raises((MalformedError, InvalidError), match=reason):
        parse_line(line)
    before, wrong, after = read(f"# comment\nm f=1\n{line}\n\nm f=2 5\n")
    assert (before[0], wrong[0], after[0]) == (2, 3, 5)
    assert isinstance(wrong[1], MalformedError | InvalidError)
    assert after[1].document["f"] == 2


def test_text_over_several_lines() -> None:
    """The text of a field may hold line breaks; one that never ends is wrong by itself."""
    for step in (1, 2, 9):
        (first, second, third) = read('m f="a\nb\n" 1\nm f="open 2\nm f=3', step=step)
        assert first[1].document["f"] == "a\nb\n"
        assert (second[0], "quotation mark" in str(second[1])) == (4, True)
        assert (third[0], third[1].document["f"]) == (5, 3.0)
    ((number, found),) = read("m f=\xff".encode("latin-1").decode("latin-1"))
    assert (number, isinstance(found, MalformedError)) == (1, True)
    ((_, wrong),) = PointReader("s").read([b"m,a=\xff f=1"], 0, is_last=True)
    assert "UTF-8" in str(wrong)
