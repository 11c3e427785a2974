"""Waiting for a commit: whatever is heard in whatever order, a waiter is told of its rows."""

import asyncio

import pytest

from keepfit.errors import LearningError, NotFoundError
from keepfit_gateway.learning.commit_feed import Commit, Watch, wait_until_learned

BEFORE, AFTER = Commit(1, 4, 10, 40), Commit(1, 5, 11, 44)
DELETED = Commit(1, -1, 0, 0)
NOT_AT_ALL_S, LONG_S = 0.0, 30.0


async def test_a_waiter_hears_of_the_commit_that_holds_its_rows() -> None:
    """A commit up to another sequence goes by; the one that reaches the waiter's is the answer."""
    watch = Watch()
    waiting = asyncio.create_task(wait_until_learned(watch, 1, 11, LONG_S))
    for commit in (BEFORE, AFTER):
        assert not waiting.done()
        await asyncio.sleep(0)
        watch.observe(commit)
    assert await waiting == AFTER


async def test_what_is_heard_late_does_not_undo_what_was_heard() -> None:
    """A state that was read before a commit, and arrives after it, hides nothing."""
    watch = Watch()
    watch.observe(AFTER)
    watch.observe(BEFORE)
    assert await wait_until_learned(watch, 1, 11, NOT_AT_ALL_S) == AFTER
    watch.observe(DELETED)
    watch.observe(BEFORE)
    with pytest.raises(NotFoundError):
        await wait_until_learned(watch, 1, 12, NOT_AT_ALL_S)


async def test_a_commit_of_another_generation_is_no_answer() -> None:
    """Sequences of a model that was made again are not those of its predecessor."""
    watch = Watch()
    watch.observe(Commit(2, 9, 99, 400))
    assert await wait_until_learned(watch, 1, 11, NOT_AT_ALL_S) is None


async def test_rows_put_aside_are_told_even_after_later_commits() -> None:
    """The reason outlasts the commits after it, until nobody waits any more."""
    watch = Watch()
    watch.observe(Commit(1, 5, 11, 44, "ValueError: no"))
    watch.observe(Commit(1, 6, 12, 48))
    with pytest.raises(LearningError, match="ValueError: no"):
        await wait_until_learned(watch, 1, 11, NOT_AT_ALL_S)
    assert await wait_until_learned(watch, 1, 12, NOT_AT_ALL_S) == Commit(1, 6, 12, 48)


async def test_the_end_of_the_gateway_ends_the_wait() -> None:
    """A waiter is sent home, unless its rows are learned by then."""
    watch = Watch()
    waiting = asyncio.create_task(wait_until_learned(watch, 1, 11, LONG_S))
    await asyncio.sleep(0)
    watch.close()
    assert await waiting is None
    watch.observe(AFTER)
    assert await wait_until_learned(watch, 1, 11, LONG_S) == AFTER
