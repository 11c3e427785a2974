"""A short run of the row log's recovery test; the long one is ``python -m tests.recovery.rowlog --rounds 20``."""

from pathlib import Path

from tests.recovery.rowlog import run


async def test_all_processes_may_be_killed_and_redis_emptied(tmp_path: Path) -> None:
    """All processes are killed and Redis' data is deleted, twice: each accepted request is learned once, in order."""
    report = await run(tmp_path, rounds=2, rows=120, seed=11, lasts_s=1.5)
    assert report.faults == []
    assert report.accepted == 360
