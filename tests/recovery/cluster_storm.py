"""Kill primaries of a Redis Cluster one after the other while rows flow to several models, and count what is lost.

``make cluster-faults`` runs it; it ends with 1 if a row was lost or learned twice and replicas were waited for.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from tests.clustered import Clustered, clustered, settings_of, stack_on
from tests.conftest import Stack
from tests.recovery.flow import Flow, flowing

MODELS, CLIENTS, ROWS_PER_REQUEST = 6, 8, 4
SEED = 11

log = structlog.get_logger(__name__)


async def storm(cluster: Clustered, stack: Stack, kills: int, rows: int, *, may_lose: bool) -> list[Flow]:
    """Kill primaries while rows flow; return the flows when all is learned."""
    chosen = random.Random(SEED)
    async with AsyncExitStack() as opened:
        flows = [
            await opened.enter_async_context(
                flowing(stack.url, CLIENTS, f"storm{number}", ROWS_PER_REQUEST, may_lose=may_lose)
            )
            for number in range(MODELS)
        ]
        for kill in range(1, kills + 1):
            while sum(flow.count for flow in flows) * ROWS_PER_REQUEST * kills < rows * kill:
                await flows[0].more(10)
            hit = chosen.choice(flows)
            if kill % 10 == 0:
                await asyncio.to_thread(cluster.move, hit.hash)
            port = await asyncio.to_thread(cluster.owner, hit.hash)
            await asyncio.to_thread(cluster.kill, port, hit.hash)
            await asyncio.to_thread(cluster.start, port)
            while not await asyncio.to_thread(cluster.is_complete):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for flow in flows:
            await flow.end()
            if not may_lose:
                # The servers end with the threads that started them, and these with the event loop.
                await asyncio.to_thread(flow.check, settings_of(stack, cluster))
        return flows


def main() -> int:
    """Run the storm and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--replicas-min", type=int, default=1)
    options = parser.parse_args()
    may_lose = options.replicas_min == 0
    begun_s = time.monotonic()
    # Its logs tell of a failure, so it stays.
    name = tempfile.mkdtemp(prefix="cluster-storm-")
    with clustered(Path(name) / "redis") as cluster:
        folder = Path(name) / "stack"
        folder.mkdir()
        with stack_on(cluster, folder, options.replicas_min) as stack:
            flows = asyncio.run(storm(cluster, stack, options.kills, options.rows, may_lose=may_lose))
            accepted = sum(flow.count for flow in flows) * ROWS_PER_REQUEST
            lost = accepted - sum(flow.rows_seen for flow in flows)
    log.info(
        "primaries_killed",
        kills=options.kills,
        accepted=accepted,
        lost=lost,
        refused=sum(flow.refused for flow in flows),
        seconds=round(time.monotonic() - begun_s),
        logs=name,
    )
    return 1 if lost and not may_lose else 0


if __name__ == "__main__":
    sys.exit(main())
