"""Generations given out to many at once: no number twice, none to a model that is gone."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from keepfit.errors import UnavailableError
from keepfit.history import Registry
from keepfit.restore.generations import Generations


@pytest.fixture
async def history(mongo_url: str) -> AsyncIterator[Registry]:
    """Open an empty register."""
    async with Registry(mongo_url) as opened:
        yield opened


async def test_no_number_is_given_twice(history: Registry) -> None:
    """Whoever asks at the same time, knowing much or little, for one model or for many, gets a number of its own."""
    looked_up = [(await history.register(f"{number:064x}", '{"type": "a"}', "{}"))[0] for number in range(5)]
    askers = [Generations(history) for _ in range(3)]
    given = await asyncio.gather(*(asker.next(one) for asker in askers for one in looked_up for _ in range(2)))
    pairs = list(zip([one.hash for _ in askers for one in looked_up for _ in range(2)], given, strict=True))
    assert None not in given
    assert len(set(pairs)) == len(pairs) == 30
    for one in looked_up:
        now = await history.find(one.hash)
        assert now is not None
        assert now.generation >= max(number or 0 for model_hash, number in pairs if model_hash == one.hash)


async def test_a_model_that_is_gone_gets_none_and_the_others_theirs(history: Registry) -> None:
    """One that was deleted, or deleted and made again, since it was looked up is None; those beside it are served."""
    kept, deleted, again = [(await history.register(f"{number:064x}", '{"type": "a"}', "{}"))[0] for number in range(3)]
    await history.unregister(deleted.hash)
    await history.unregister(again.hash)
    await history.register(again.hash, '{"type": "a"}', "{}")
    generations = Generations(history)
    given = await asyncio.gather(*(generations.next(one) for one in (kept, deleted, again)))
    assert given[1:] == [None, None]
    assert given[0] is not None
    assert given[0] > kept.generation


async def test_a_register_that_is_away_is_said_to_all(history: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """All who wait for the trip are told, and the next trip is made as if nothing had been."""
    one, _ = await history.register("0" * 64, '{"type": "a"}', "{}")
    generations = Generations(history)

    async def away(*models: object) -> bool:
        raise UnavailableError("MongoDB is away.")

    with monkeypatch.context() as patch:
        patch.setattr(history, "advance", away)
        told = await asyncio.gather(*(generations.next(one) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [UnavailableError] * 3
    assert await generations.next(one) == 2
