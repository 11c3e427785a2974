"""Calls that wait until rows are learned: what is sent again, and what is not."""

import json

import pytest

from keepfit import Client
from keepfit.client.calling import sending
from tests.keepfit.client.scripted_server import ok, scripted

ACCEPTED = ok(json.dumps({"accepted": 2, "sequence": 7}), status="202 Accepted")
LEARNED = ok(json.dumps({"accepted": 2, "sequence": 7, "version": 3, "rows_seen": 9}))
FORBIDDEN = ok(
    json.dumps({"type": "/docs/reference/errors.md#forbidden", "title": "", "status": 403, "detail": "no"}),
    "Content-Type: application/problem+json",
    status="403 Forbidden",
)


def test_a_long_body_is_sent_again_once_its_rows_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the inbox is not empty, the client asks about the model; then the same request has the final answer."""
    monkeypatch.setattr(sending, "RESENT_BYTES_MAX", 8)
    monkeypatch.setattr(sending, "LOOK_EVERY_S", 0)
    pending, empty = (ok(json.dumps({"inbox": count})) for count in (3, 0))
    with scripted([ACCEPTED, pending, pending, empty, LEARNED]) as server, Client(server.url) as client:
        answer = client.model("ab" * 32).partial_fit([[1], [2]], [1, 2], wait=True)
    assert (answer["version"], answer["accepted"]) == (3, 2)
    methods = [one.line.split()[0] for one in server.received]
    assert methods == ["POST", "GET", "GET", "GET", "POST"]
    assert {one.line.split()[1] for one in server.received[1:4]} == {f"/v1/models/{'ab' * 32}"}
    first, last = server.received[0], server.received[-1]
    assert (first.body, first.fields) == (last.body, last.fields)


@pytest.mark.parametrize(("most", "answers"), [(1 << 20, [ACCEPTED, LEARNED]), (8, [ACCEPTED, FORBIDDEN, LEARNED])])
def test_short_bodies_and_keys_that_may_not_read(
    monkeypatch: pytest.MonkeyPatch, most: int, answers: list[bytes]
) -> None:
    """A short body is sent again at once, as is a long one if the key may not ask about the model."""
    monkeypatch.setattr(sending, "RESENT_BYTES_MAX", most)
    with scripted(answers) as server, Client(server.url) as client:
        assert client.model("ab" * 32).partial_fit([[1], [2]], [1, 2], wait=True)["version"] == 3
    assert len(server.received) == len(answers)
