"""Fixtures: a server for the script tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.scripts.store_machine",
    "tests.scripts.dead_letter_machine",
    "tests.scripts.run_queue_machine",
    "tests.scripts.truncated_log",
)

from tests.scripts.bench import Bench, bench  # noqa: E402 - pytest rewrites their assertions from here on


@pytest.fixture(scope="session")
def scripts_bench(servers_folder: Path) -> Iterator[Bench]:
    """Open clients of a server of these tests; each example empties it."""
    with bench(servers_folder / "scripts") as opened:
        yield opened
