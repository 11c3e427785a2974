"""Waiting for a commit: messages in any order give the waiter the right result."""

import asyncio
from types import SimpleNamespace

import pytest

from keepfit.backends import redis_keys
from keepfit.errors import LearningError, NotFoundError
from keepfit.settings import Settings
from keepfit_gateway.learning.commit_feed import Commit, CommitFeed, Watch, wait_until_learned
from tests.factories import workshop

BEFORE, AFTER = Commit(1, 4, 10, 40), Commit(1, 5, 11, 44)
DELETED = Commit(1, -1, 0, 0)
NO_WAIT_S, LONG_S = 0.0, 30.0


async def test_a_waiter_receives_the_commit_that_contains_its_rows() -> None:
    """A commit below the sequence of the request is ignored; the first one that reaches it is the result."""
    watch = Watch()
    waiting = asyncio.create_task(wait_until_learned(watch, 1, 11, LONG_S))
    for commit in (BEFORE, AFTER):
        assert not waiting.done()
        await asyncio.sleep(0)
        watch.observe(commit)
    assert await waiting == AFTER


async def test_a_late_older_state_is_ignored() -> None:
    """A state that was read before a commit and arrives after it does not replace it."""
    watch = Watch()
    watch.observe(AFTER)
    watch.observe(BEFORE)
    assert await wait_until_learned(watch, 1, 11, NO_WAIT_S) == AFTER
    watch.observe(DELETED)
    watch.observe(BEFORE)
    with pytest.raises(NotFoundError):
        await wait_until_learned(watch, 1, 12, NO_WAIT_S)


async def test_a_commit_of_another_generation_is_ignored() -> None:
    """Sequences of a new generation say nothing about requests of the old one."""
    watch = Watch()
    watch.observe(Commit(2, 9, 99, 400))
    assert await wait_until_learned(watch, 1, 11, NO_WAIT_S) is None


async def test_a_dead_letter_is_reported_after_later_commits() -> None:
    """The reason of a dead letter is available after later commits, while the model is watched."""
    watch = Watch()
    watch.observe(Commit(1, 5, 11, 44, "ValueError: no"))
    watch.observe(Commit(1, 6, 12, 48))
    with pytest.raises(LearningError, match="ValueError: no"):
        await wait_until_learned(watch, 1, 11, NO_WAIT_S)
    assert await wait_until_learned(watch, 1, 12, NO_WAIT_S) == Commit(1, 6, 12, 48)


async def test_shutdown_ends_the_wait() -> None:
    """A waiter is released on shutdown, with the commit if its rows are learned by then."""
    watch = Watch()
    waiting = asyncio.create_task(wait_until_learned(watch, 1, 11, LONG_S))
    await asyncio.sleep(0)
    watch.close()
    assert await waiting is None
    watch.observe(AFTER)
    assert await wait_until_learned(watch, 1, 11, LONG_S) == AFTER


async def test_missed_commits_prove_nothing_after_a_request_was_put_aside(settings: Settings) -> None:
    """After an interruption the state of a model tells that a request was learned, unless one was ever put aside.

    That is known from the stream of dead letters, and after the model was idle from its state.
    """
    async with workshop(settings) as shop:
        observer = SimpleNamespace(observe_version=lambda *_: None)
        feed = CommitFeed(shop.store.client, shop.store, lambda _: None, observer, 1.0)  # type: ignore[arg-type]
        found = []
        for field in ("pace", "removed"):
            model_hash = await shop.learned()
            shop.redis.hset(redis_keys.state(model_hash), field, "1")
            with feed.watch(model_hash) as watch:
                await feed.catch_up([model_hash])
                found.append(await wait_until_learned(watch, 1, 1, NO_WAIT_S))
        assert found == [Commit(1, 1, 1, 3), None]
