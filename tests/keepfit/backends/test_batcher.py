"""Batches: what arrives during a round trip is sent with the next one, whatever became of the one before."""

import asyncio

from structlog.testing import capture_logs

from keepfit.backends.batcher import Batcher


async def test_items_that_arrive_meanwhile_are_sent_together_and_in_order() -> None:
    """A single item is sent at once; the next batches have at most the given size."""
    sent: list[list[int]] = []
    proceed = asyncio.Event()

    async def send(items: list[int]) -> None:
        sent.append(items)
        await proceed.wait()

    batcher = Batcher(send, batch_max=2)
    batcher.put(1)
    await asyncio.sleep(0)
    for item in (2, 3, 4):
        batcher.put(item)
    assert (sent, len(batcher)) == ([[1]], 3)
    proceed.set()
    await batcher.close()
    assert (sent, len(batcher)) == ([[1], [2, 3], [4]], 0)


async def test_a_failed_batch_does_not_hold_the_next_ones_up() -> None:
    """What arrived during a batch that failed unexpectedly is sent without another item."""
    sent: list[list[int]] = []

    async def send(items: list[int]) -> None:
        sent.append(items)
        if items == [1]:
            batcher.put(2)
            raise AttributeError("a defect")

    batcher = Batcher(send)
    with capture_logs() as logged:
        batcher.put(1)
        await batcher.close()
    assert sent == [[1], [2]]
    assert [(entry["event"], entry["items"]) for entry in logged] == [("batch_failed", 1)]
    batcher.put(3)
    await batcher.close()
    assert sent[-1] == [3]
