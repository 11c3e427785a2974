"""Fixtures of the commands' tests: a workshop and the command on the test's own servers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from keepfit.settings import Settings
from tests.factories import Workshop, workshop
from tests.keepfit.cli.command import Command


@pytest.fixture
async def shop(settings: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on the test's own servers."""
    async with workshop(settings) as opened:
        yield opened


@pytest.fixture
def command(settings: Settings, tmp_path: Path) -> Command:
    """Return the command on the test's own servers."""
    return Command(settings, tmp_path)
