"""Responses: their compression, and the memory that counts for them."""

from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from keepfit.errors import UnavailableError
from keepfit_gateway.web import codings, responses
from keepfit_gateway.web.bodies import BodyMemoryLimit

BODY, LIMIT = b"x" * 100_000, 150_000


@pytest.fixture
def deflations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note each compression."""
    made: list[str] = []
    encode = codings.encode
    monkeypatch.setattr(codings, "encode", lambda coding, body: made.append(coding) or encode(coding, body))
    return made


async def test_an_answer_counts_before_it_is_compressed(deflations: list[str]) -> None:
    """An answer that finds no memory is refused before it is compressed; a compressed one counts as it is sent."""
    memory = BodyMemoryLimit(LIMIT)
    first, second = (make_mocked_request("GET", "/", {"Accept-Encoding": "gzip"}) for _ in range(2))
    memory.reserve(first, len(BODY))
    with pytest.raises(UnavailableError):
        await responses.compress(memory, second, web.Response(body=BODY))
    assert deflations == []
    memory.release(first)
    await responses.compress(memory, second, response := web.Response(body=BODY))
    assert len(response.body) < 1000
    assert deflations == ["gzip"]
    # A request may reserve more than the limit while nothing is counted for others.
    memory.reserve(first, 2 * LIMIT)
