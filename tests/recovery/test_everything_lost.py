"""The row log's own proof, in short; the long one is ``python -m tests.recovery.rowlog --rounds 20``."""

from pathlib import Path

from tests.recovery.rowlog import run


async def test_everything_may_die_and_redis_be_emptied(tmp_path: Path) -> None:
    """All processes are killed and Redis' data removed, twice: each accepted request is learned once and in order."""
    report = await run(tmp_path, rounds=2, rows=120, seed=11, lasts_s=1.5)
    assert report.faults == []
    assert report.accepted == 360
