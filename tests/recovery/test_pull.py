"""A pull job through real kills: every row is learned once, and the bundle is that of the same rows sent over HTTP."""

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Stack
from tests.recovery import big_pull


async def test_a_pull_through_kills_is_the_model_of_the_same_rows(up: Callable[..., Stack], tmp_path: Path) -> None:
    """The process is killed at three places; the full size is run by hand, with `python -m tests.recovery.big_pull`."""
    source, rows = tmp_path / "sources" / "numbers.parquet", 60_000
    source.parent.mkdir()
    big_pull.write(source, rows, group_rows=17_000)
    proof = await big_pull.prove(up(PULL_PREFIXES=source.parent.as_uri()), source, rows, 100)
    assert (proof.job["state"], proof.job["error"], proof.kills) == ("done", None, 3)
    assert proof.job["rows"] == {"done": rows, "accepted": rows, "skipped": 0, "total": rows}
    assert proof.job["calls"] == rows // 100
    assert proof.differences == []
