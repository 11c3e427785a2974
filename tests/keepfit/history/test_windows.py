"""Windows of time: each document is read once, also where a server does not read a window in time."""

import random
from collections.abc import Sequence

import pytest

from keepfit.errors import UnavailableError
from keepfit.history.queries import reading
from keepfit.history.queries.reading import SLOW_MAX, SlowWindow, fetch_windows

NOW = 1_795_000_000.0
DAY_S = 86_400.0


class Server:
    """Holds times, and reads at most `most` of them in time, as a server that looks at all documents of a window."""

    def __init__(self, times: Sequence[float], most: int) -> None:
        self.times = sorted(times)
        self.found: list[float] = []
        self.calls = self.late = 0
        self._most = most

    async def fetch(self, low: float | None, high: float | None) -> int:
        """Read a window."""
        self.calls += 1
        some = [t for t in self.times if (low is None or t >= low) and (high is None or t < high)]
        if len(some) > self._most:
            self.late += 1
            raise SlowWindow(UnavailableError("too many"))
        self.found += some[::-1]
        return len(some)


async def read(server: Server, start: float | None, stop: float | None) -> list[float]:
    """Read all windows; return the times in the order in which they were found."""
    async for _ in fetch_windows(server.fetch, start, stop, NOW, 60.0, 200):
        pass
    return server.found


@pytest.mark.parametrize("bounds", [(None, None), (NOW - 30 * DAY_S, NOW), (NOW - 30 * DAY_S, None), (None, NOW)])
async def test_a_crowded_day_after_empty_ones_is_read_in_parts(bounds: tuple[float | None, float | None]) -> None:
    """The window that reaches a crowded day is too large: all its documents are read all the same, each once."""
    numbers = random.Random(7)
    crowd = [NOW - 6 * DAY_S + numbers.random() * DAY_S for _ in range(5000)]
    others = [NOW - numbers.random() * 30 * DAY_S for _ in range(40)]
    server = Server([*crowd, *others], 600)
    found = await read(server, *bounds)
    assert found == sorted(server.times, reverse=True)
    assert 0 < server.late <= SLOW_MAX
    assert server.calls < 150


async def test_a_moment_with_too_many_documents_is_an_error() -> None:
    """No part of a window is small enough: the error comes after a few attempts, and is that of the server."""
    server = Server([NOW - DAY_S] * 50, 10)
    with pytest.raises(UnavailableError, match="too many"):
        await read(server, None, None)
    assert server.late == SLOW_MAX + 1
    assert server.found == []


async def test_the_oldest_document_is_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the other end a crowded day is divided as well."""
    numbers = random.Random(7)
    crowd = [NOW - 6 * DAY_S + numbers.random() * DAY_S for _ in range(5000)]
    server = Server(crowd, 600)

    async def read_sorted(_: object, __: object, low: float, high: float | None, *___: int) -> list[dict[str, float]]:
        await server.fetch(low, high)
        some = [t for t in server.times if t >= low and (high is None or t < high)]
        return [{"timestamp": t} for t in some[:1]]

    monkeypatch.setattr(reading, "_read_sorted", read_sorted)
    found = await reading.read_oldest([], None, NOW - 20 * DAY_S, NOW)  # type: ignore[arg-type]
    assert found == {"timestamp": server.times[0]}
    assert server.late
    assert await reading.read_oldest([], None, NOW - DAY_S, NOW) is None  # type: ignore[arg-type]


async def test_windows_grow_again_after_a_crowded_moment() -> None:
    """A burst within a second, with nothing around it, costs few windows."""
    numbers = random.Random(7)
    server = Server([NOW - 9 * DAY_S + numbers.random() for _ in range(5000)], 600)
    assert await read(server, NOW - 30 * DAY_S, NOW) == sorted(server.times, reverse=True)
    assert server.calls < 400
