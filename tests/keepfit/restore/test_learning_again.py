"""Which logged requests are learned again: all before the change that the model consists of, in order, each once."""

import math

import pytest

from keepfit.errors import ConflictError
from keepfit.history import RegistryEntry
from keepfit.history.registry.lineage import Span
from keepfit.recipe.recipe import parse
from keepfit.restore.learning_again import rows_before
from keepfit.restore.replay_source import LoggedRequest
from keepfit.rowlog.row_log import Call
from keepfit.store import changes

RECIPE = parse({"estimator": "SGDRegressor"}).text()
CHANGE = changes.encode({"object": "S0Yy", "state": "keep"})


def logged(sequence: int, *payloads: bytes, origin: int = 1, name: str = "") -> Call:
    """Return a call."""
    payloads = payloads or (b"\x9f%d" % sequence,)
    return Call("ab", origin, sequence, float(sequence), repr(payloads), name, payloads)


def retried(sequence: int, before: int, first: int | None = None) -> Call:
    """Return a retry of the request that had the sequence `before`, and `first` when it was accepted."""
    return logged(sequence, b"\x9f%d" % (first or before), name=f"r:{before}")


def found(calls: list[Call], spans: list[Span], generation: int, sequence: int, born: int = 1) -> list[tuple[int, int]]:
    """Return origin and sequence of the requests that are learned before a change."""
    registered = RegistryEntry("ab", "{}", RECIPE, generation, born, {})
    change = LoggedRequest(generation, spans[-1].origin, sequence, 0.0, b"")
    return [(each.origin, each.sequence) for each in rows_before(registered, calls, spans, change).requests]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([logged(1), logged(2, CHANGE), logged(3)], [1, 3]),
        ([logged(1), logged(2), retried(3, 1), retried(4, 3, 1)], [1, 2]),
        ([logged(1), logged(2), logged(3), retried(9, 1)], [2, 3]),
        ([logged(1), logged(2), retried(3, 1), retried(9, 3, 1)], [2]),
        ([logged(1), logged(2), retried(9, 1), retried(10, 9, 1)], [2]),
        ([logged(1, b"\x9fa", b"\x9fb"), logged(1, b"\x9fa", b"\x9fb"), logged(3)], [1, 2, 3]),
        ([logged(1), logged(2), retried(3, 1), logged(3, b"\x9fother")], [1, 2, 3]),
        ([logged(1), logged(2), logged(2, b"\x9fother"), retried(9, 2)], [1, 2]),
    ],
    ids=[
        "changes",
        "retried twice before",
        "retried after",
        "before and after",
        "twice after",
        "logged twice",
        "a lost retry",
        "a sequence given twice",
    ],
)
def test_each_request_is_learned_once(calls: list[Call], expected: list[int]) -> None:
    """A retried request has its first place, or that of its retry after the change; changes are left out."""
    last = max(call.last for call in calls if call.sequence < 9)
    assert found(calls, [Span(1, 1, 0)], 1, last + 1) == [(1, sequence) for sequence in expected]


def test_forgotten_requests_stay_forgotten() -> None:
    """What a restore has rewound past is not learned again, unless it was retried after that."""
    spans = [Span(1, 1, 0, 2), Span(2, 1, 4, math.inf)]
    calls = [logged(1), logged(2), logged(3), logged(4), retried(5, 3), logged(6)]
    assert found(calls, spans, 2, 7) == [(1, 1), (1, 2), (1, 5), (1, 6)]
    assert found([*calls, retried(8, 2)], spans, 2, 7) == [(1, 1), (1, 5), (1, 6)]


def test_requests_of_all_origins_are_learned_in_order() -> None:
    """After a loss of Redis sequences begin again; a change in an earlier generation has nothing of later ones."""
    spans = [Span(1, 1, 0, 2), Span(2, 2, 2, math.inf)]
    calls = [logged(3, origin=2), logged(2), logged(1), logged(4, origin=2)]
    assert found(calls, spans, 2, 5) == [(1, 1), (1, 2), (2, 3), (2, 4)]
    registered = RegistryEntry("ab", "{}", RECIPE, 2, 1, {})
    before = rows_before(registered, calls, spans, LoggedRequest(1, 1, 2, 0.0, b""))
    assert [each.sequence for each in before.requests] == [1]


@pytest.mark.parametrize(
    ("calls", "spans", "message"),
    [
        ([logged(2), logged(3)], [Span(1, 1, 0)], "request 1 is not in it"),
        ([logged(1), logged(3)], [Span(1, 1, 0)], "request 2 is not in it"),
        ([logged(1), logged(3, origin=2)], [Span(1, 1, 0, 2), Span(2, 2, 2)], "request 2 is not in it, of those that"),
        ([logged(3, origin=2)], [Span(2, 2, 2)], "does not say with which rows the model began"),
        ([logged(1), logged(2), logged(3)], [Span(1, 2, 0)], "does not say with which rows the model began"),
    ],
)
def test_missing_rows_are_named(calls: list[Call], spans: list[Span], message: str) -> None:
    """If a row is missing, nothing is learned again."""
    with pytest.raises(ConflictError, match=message):
        found(calls, spans, spans[-1].generation, 4)
