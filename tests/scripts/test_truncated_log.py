"""After truncation of the append-only file nothing is half done, acknowledged rows exist, no row is learned twice."""

from pathlib import Path

import pytest

from tests.scripts import truncated_log
from tests.scripts.truncated_log import Recording

# The tail has about 3,500 bytes; `make mutants` tests all of them.
EVERY = 60


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Record accepts and commits in an append-only file."""
    return truncated_log.record(tmp_path_factory.mktemp("cuts") / "recorded")


def test_a_truncated_file_gives_the_state_between_two_scripts(recording: Recording, tmp_path: Path) -> None:
    """At each cut, state, bundle and inbox are of one moment, and each row is learned once in the end."""
    points = recording.points(EVERY)
    assert len(points) > 60
    for point, bench in truncated_log.reloaded(tmp_path / "redis", recording.log, points):
        truncated_log.check(bench, recording, point)


def test_a_server_started_with_a_truncated_file_holds_the_same(recording: Recording, tmp_path: Path) -> None:
    """A start loads a truncated file as a reload does, with cuts in the middle of the tail's commands."""
    points = [(begin + end) // 2 for begin, end in zip(recording.ends, recording.ends[1:], strict=False)]
    for point, bench in truncated_log.started(tmp_path / "redis", recording.log, points):
        truncated_log.check(bench, recording, point)


def test_a_cut_between_effects_outside_of_a_transaction_is_detected(recording: Recording, tmp_path: Path) -> None:
    """Control: without a transaction around a script's effects, the check fails at cuts between them."""
    log, ends = truncated_log.unframed(recording)
    halves = []
    for point, bench in truncated_log.reloaded(tmp_path / "redis", log, ends):
        try:
            truncated_log.check_whole(bench.keys())
        except AssertionError:
            halves.append(point)
    assert len(halves) > 3
