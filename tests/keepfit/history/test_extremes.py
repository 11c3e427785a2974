"""Documents at the limits of what may be stored: integers of 64 bits, large floats, the first times, odd text."""

from typing import Any

import numpy as np
import pytest

from keepfit.errors import InvalidError, MalformedError
from keepfit.history import Registry, Timeline, query
from keepfit.history.queries.buckets import parse_buckets
from keepfit.history.queries.columns import GroupColumns
from keepfit.history.queries.points import Aggregation, compute
from keepfit.history.rollups.documents import Rollup
from keepfit.history.upkeep import rollups
from keepfit.times import SECONDS_MAX, SECONDS_MIN

# Three identifiers of 64 bits, of which the nearest two are one float.
IDS = (2**53 + 1, 2**53, 2**62 + 3)


@pytest.fixture
def timeline(registry: Registry) -> Timeline:
    """Return the empty timeline."""
    return registry.timeline


async def found(timeline: Timeline, **parameters: str) -> list[Any]:
    """Return the answer of a query, as over HTTP."""
    return await query.execute(timeline, query.parse(parameters, words=False))


async def test_integers_of_64_bits_are_compared_exactly(timeline: Timeline) -> None:
    """Filters, comparisons, groups, choices and deletions tell identifiers apart that are one float."""
    made = [{"type": "tweet", "timestamp": float(n), "id": id_} for n, id_ in enumerate(IDS)]
    await timeline.add(made)
    for document in made:
        text = str(document["id"])
        asked: list[dict[str, str]] = [
            {"id": text}, {"where": f"id={text}"}, {"where": f"id in {text},0"}, {"where": f"id>={text}", "bottom": "1"}
        ]  # fmt: skip
        for parameters in asked:
            field = {"field": "id"} if "bottom" in parameters else {}
            assert await found(timeline, type="tweet", **parameters, **field) == [document], parameters
        assert await timeline.query({"id": document["id"]}) == [document]
    assert len(await found(timeline, type="tweet", per="id")) == 3
    points = await found(timeline, type="tweet", every="1h", stat="count", group="id")
    assert [point["group"] for point in points] == sorted(IDS)
    assert await timeline.delete_many({"type": "tweet", "id": IDS[0]}) == 1
    assert await found(timeline, type="tweet") == made[:0:-1]


async def test_large_numbers_are_found(timeline: Timeline) -> None:
    """A number above those that integers of JSON may have is found by its text."""
    made = {"type": "mass", "timestamp": 0.0, "kg": 5.97e24}
    await timeline.add([made])
    assert await found(timeline, type="mass", kg="5.97e24") == [made]
    assert await found(timeline, type="mass", kg="5.98e24") == []


async def test_any_document_can_be_rolled_up(timeline: Timeline) -> None:
    """Whatever the values of the group and the times of documents are: a roll-up is written, and says the same."""
    groups: tuple[Any, ...] = (1e300, 2.0**63, -(2**63), 2**63 - 1, 0.5, True, 1, "1", None, [1], {"a": 1})
    made = [
        {"type": "odd", "timestamp": at, "v": 1, "g": group}
        for group in groups
        for at in (SECONDS_MIN, -1.0, 0.0, SECONDS_MAX)
    ]
    await timeline.add(made)
    for every in ("7m", "11w"):
        plain = await timeline.points("v", every, "sum", {"type": "odd"}, stop=100_000_000, group="g")
        await rollups.roll_up(timeline, Rollup("odd", every, "v", "g"), 100_000_000)
        rolled = await timeline.points("v", every, "sum", {"type": f"odd/{every}"}, group="g")
        assert len(plain) >= 18
        by_group = [(type(point["group"]), point["group"], point["value"]) for point in rolled]
        assert by_group == [(type(point["group"]), point["group"], point["value"]) for point in plain]


def test_a_sum_beyond_the_largest_number_has_no_value() -> None:
    """Such a point is null: no JSON has infinity."""
    values = GroupColumns((), np.array([0.0, 1.0, 7200.0]), np.array([1e308, 1e308, 5.0]))
    for stat in ("sum", "mean", "variance", "integral"):
        points = compute([values], Aggregation(parse_buckets("1h"), stat, "v"), None, None)
        assert points[0] == {"timestamp": 0.0, "value": None}


@pytest.mark.parametrize("text", ['name="\\ud800"', '"\\ud800"=1', 'name in "\\ud800"'])
def test_half_a_character_is_refused_in_comparisons(text: str) -> None:
    """Text that no database stores is malformed."""
    with pytest.raises(MalformedError, match="JSON string"):
        query.parse({"type": "a", "where": text})


async def test_half_a_character_is_refused_in_documents(timeline: Timeline) -> None:
    """Text that no database stores is refused, in documents and in filters."""
    wrong = {"type": "a", "timestamp": 1, "name": "\ud800"}
    with pytest.raises(InvalidError, match="store"):
        await timeline.add([wrong])
    with pytest.raises(InvalidError, match="store"):
        await timeline.store(wrong)
    with pytest.raises(InvalidError, match="filter value"):
        await timeline.query({"name": "\ud800"})
