"""Fixtures: a server to try scripts on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.scripts.models", "tests.scripts.dead_letters", "tests.scripts.run_queue", "tests.scripts.cuts"
)

from tests.scripts.bench import Bench, bench  # noqa: E402 - their assertions are told in full from here on


@pytest.fixture(scope="session")
def scripts_bench(servers_folder: Path) -> Iterator[Bench]:
    """Clients of a server that only these tests use; each example empties it."""
    with bench(servers_folder / "scripts") as opened:
        yield opened
