"""The append-only file cut at its tail: nothing half done, nothing answered lost, nothing learned twice."""

from pathlib import Path

import pytest

from tests.scripts import cuts
from tests.scripts.cuts import Recording

# Of the some 3,500 bytes of the tail; `make mutants` takes all.
EVERY = 60


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Return a run of accepts and commits as the append-only file has it."""
    return cuts.record(tmp_path_factory.mktemp("cuts") / "recorded")


def test_a_file_cut_anywhere_gives_a_moment_between_two_scripts(recording: Recording, tmp_path: Path) -> None:
    """Wherever the file ends, state, bundle and inbox are of one moment, and each row is learned once in the end."""
    points = recording.points(EVERY)
    assert len(points) > 60
    for point, bench in cuts.reloaded(tmp_path / "redis", recording.log, points):
        cuts.check(bench, recording, point)


def test_a_server_started_on_a_cut_file_holds_the_same(recording: Recording, tmp_path: Path) -> None:
    """A start loads a cut file as a reload does: tried in the middle of the tail's commands."""
    points = [(begin + end) // 2 for begin, end in zip(recording.ends, recording.ends[1:], strict=False)]
    for point, bench in cuts.started(tmp_path / "redis", recording.log, points):
        cuts.check(bench, recording, point)


def test_effects_outside_of_a_transaction_would_be_cut_in_half(recording: Recording, tmp_path: Path) -> None:
    """Control: where a script's effects stand one by one in the file, a cut between them is noticed."""
    log, ends = cuts.unframed(recording)
    halves = []
    for point, bench in cuts.reloaded(tmp_path / "redis", log, ends):
        try:
            cuts.check_whole(bench.keys())
        except AssertionError:
            halves.append(point)
    assert len(halves) > 3
