"""Comparisons select the documents that Python selects, and never become an operator of MongoDB."""

import operator
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keepfit.errors import InvalidError, MalformedError
from keepfit.history import Registry, TimelineSync
from keepfit.history.queries import comparisons
from keepfit.history.queries.comparisons import Comparison
from keepfit.history.queries.filters import Filter
from tests.keepfit.history.test_registry import commit
from tests.keepfit.history.test_timeline import NOON, vote

HOSTILE = st.one_of(
    st.sampled_from(["$where", "$ne", "a.b", "a..b", "in", "exists", "not in", "<=", '"', "", " ", "k", "v", "labels",
                     "document", "a b", "null", "true", "1e5", "$$ROOT", "a,b", "\\", "\n", "€", "type "]),
    st.text(max_size=12),
)  # fmt: skip
VALUES = st.one_of(HOSTILE, st.booleans(), st.integers(-5, 5).map(float), st.floats(-9, 9))
ORDERED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", Comparison("a", "=", ("1", 1.0))), ("a != x y ", Comparison("a", "!=", ("x y",))),
        ('a="1"', Comparison("a", "=", ("1",))), ("fit.size>=-2.5e1", Comparison("fit.size", ">=", (-25.0,))),
        ("a<b", Comparison("a", "<", ("b",))), ('a<"5"', Comparison("a", "<", ("5",))),
        ("a=9007199254740993", Comparison("a", "=", ("9007199254740993", 2**53 + 1))),
        ('brand in nike, "a, b",7', Comparison("brand", "in", ("nike", "a, b", "7", 7.0))),
        ("a not  in b", Comparison("a", "not in", ("b",))), ("a exists", Comparison("a", "exists")),
        ('"a<b" not exists', Comparison("a<b", "not exists")), ("a=b in c", Comparison("a", "=", ("b in c",))),
        ('"in"="x\\ny"', Comparison("in", "=", ("x\ny",))), ("$where=1", Comparison("$where", "=", ("1", 1.0))),
    ],
)  # fmt: skip
def test_a_text_states_a_comparison(text: str, expected: Comparison) -> None:
    """Names and values are texts; those with special characters are JSON strings."""
    assert comparisons.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a", "is not a comparison"), ("", "is not a comparison"), ("=3", "is not a comparison"), ("in a", "'brand in"),
        ("a==5", "written in quotes"), ("a=>5", "written in quotes"), ("a<>5", "written in quotes"),
        ('"a=5', "is not a comparison"), ('"\\x"=5', "is not a JSON string"), ('a in "b" c', "separated by commas"),
        ("a in ,", "separated by commas"), ("a in " + "b," * 1_001, "compares with 1 to 1,000"),
        ("a=" + "b" * 5_000, "4,096"),
        ('""=5', "is not a comparison"),
    ],
)  # fmt: skip
def test_another_text_is_an_error(text: str, words: str) -> None:
    """A text that is no comparison is an error with the forms that there are."""
    with pytest.raises((MalformedError, InvalidError), match=re.escape(words)):
        comparisons.parse(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_no_text_crashes_the_parser(text: str) -> None:
    """Each text is a comparison with a known operator, or an error that says so."""
    try:
        found = comparisons.parse(text)
    except (MalformedError, InvalidError):
        return
    assert found.operator in comparisons.OPERATORS
    assert found.key


def _is_equal(found: Any, value: Any) -> bool:
    return isinstance(found, bool) == isinstance(value, bool) and found == value


def _selects(document: dict[str, Any], key: str, name: str, value: Any) -> bool:
    """Return whether Python selects a document with plain values."""
    if name == "exists":
        return (key in document) == value
    found = document.get(key)
    if name in ORDERED:
        comparable = isinstance(found, type(value)) and not isinstance(found, bool)
        return comparable and bool(ORDERED[name](found, value))
    values = value if name in ("in", "not in") else [value]
    selected = key in document and any(_is_equal(found, each) for each in values)
    return selected != (name in ("!=", "not in"))


@pytest.fixture
def keys() -> list[str]:
    """Return names of fields, some of which look like operators or paths."""
    return ["n", "brand", "$where", "a b", "in", "labels", "document", "$ne", "k"]


def test_comparisons_select_what_python_selects(mongo_url: str, keys: list[str]) -> None:
    """Whatever names and values are, the documents that a comparison selects are those that Python selects."""
    values = [1.0, 2.0, -3.5, "1", "nike", "$ne", "", True, False, "a.b", '{"$gt": 0}']
    made = [
        vote(NOON + number, number=number, **{key: values[(number * 7 + place * 3) % len(values)]
                                              for place, key in enumerate(keys) if (number + place) % 4})
        for number in range(60)
    ]  # fmt: skip
    with TimelineSync(mongo_url) as timeline:
        timeline.bulk_upsert(made)

        @settings(max_examples=60, deadline=None)
        @given(
            key=st.one_of(st.sampled_from(keys), HOSTILE.filter(lambda text: text and text not in ("type", "hash"))),
            name=st.sampled_from(comparisons.OPERATORS),
            some=st.lists(st.one_of(st.sampled_from(values), VALUES), min_size=1, max_size=3),
        )
        def same(key: str, name: str, some: list[Any]) -> None:
            value: Any = some if "in" in name else some[0]
            if name in ORDERED and isinstance(value, bool):
                return
            if "exists" in name:
                name, value = "exists", name == "exists"
            found = timeline.query({"type": "vote", key: {name: value}}, kind="document")
            wanted = [document for document in made if _selects(document, key, name, value)]
            assert [each["number"] for each in found] == [each["number"] for each in wanted[::-1]]

        same()


async def test_comparisons_of_snapshots_and_inside_of_values(registry: Registry) -> None:
    """Fields and metadata of snapshots, the type, values inside of others and elements of lists are compared."""
    timeline = registry.timeline
    for version in (1, 2, 3):
        metadata = {"type": "shoes", "brand": ("nike", "puma", "nike")[version - 1]}
        await commit(registry, type="shoes", version=version, timestamp=NOON + version, metadata=metadata,
                     rows_seen=version * 10)  # fmt: skip
    await timeline.bulk_upsert([vote(NOON, fit={"size": 1}, tags=["a", 5]), vote(NOON + 1, fit={"size": 2})])

    async def versions(**where: Any) -> list[int]:
        return [each["version"] for each in await timeline.query({"type": "shoes", **where})]

    assert await versions(rows_seen={">=": 20}) == [3, 2]
    assert await versions(rows_seen={">": 10, "<": 30}, brand={"in": ["puma", "x"]}) == [2]
    assert await versions(**{"metadata.brand": {"!=": "nike"}}) == [2]
    assert await versions(brand={"exists": False}) == []
    both = await timeline.query({"type": {"in": ["shoes", "vote"]}}, NOON + 1, NOON + 2)
    assert {each["type"] for each in both} == {"shoes", "vote"}
    mine = {"type": "vote"}
    assert [each["timestamp"] - NOON for each in await timeline.query({**mine, "fit.size": {"<=": 1}})] == [0]
    assert [each["timestamp"] - NOON for each in await timeline.query({**mine, "tags": {"=": "a"}})] == [0]
    assert [each["timestamp"] - NOON for each in await timeline.query({**mine, "tags": {">": 4}})] == [0]
    assert [each["timestamp"] - NOON for each in await timeline.query({**mine, "tags": {"exists": False}})] == [1]
    counted = await timeline.points(None, "1d", "count", {**mine, "fit.size": {">=": 2}})
    assert [point["value"] for point in counted] == [1]
    assert await timeline.delete_many({**mine, "fit.size": {">=": 2}}) == 1
    with pytest.raises(InvalidError, match="at most 32 comparisons"):
        Filter.of({str(number): {"=": 1} for number in range(33)})
