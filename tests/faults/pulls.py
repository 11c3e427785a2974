"""A model that learns by a pull job alone, beside those that clients send rows to.

Owns its source and its job. Only the record of the job says what was accepted. Invariant: the job is asked for with one
Idempotency-Key until an answer comes, so that there is one.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.clients import FEATURES, RETRY_S, TrackedModel

ENDED_S_MAX = 120.0
FOLDER = "sources"


class PulledModel:
    """A tracked model whose rows are JSON lines, each a request of its own."""

    def __init__(self, folder: Path, urls: Sequence[str], number: int, rows: int) -> None:
        made = TrackedModel.of(number, rows)
        made.rows = [row for row in made.rows if isinstance(row[0], list)]
        self.model = made
        self._urls, self._job = urls, ""
        self._path = folder / FOLDER / f"{number}.jsonl"
        self._path.parent.mkdir(exist_ok=True)
        lines = ({**dict(zip(FEATURES, X, strict=True)), "y": y} for X, y in made.rows)
        self._path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    async def start(self, http: aiohttp.ClientSession) -> None:
        """Start the job; the model exists."""
        body, headers = {"url": self._path.as_uri(), "rows_per_call": 1}, {"Idempotency-Key": "pull"}
        answer = await self._until_answered(http, "POST", f"/v1/models/{self.model.hash}/pull", body, headers)
        self._job = answer["job"]

    async def finish(self, http: aiohttp.ClientSession) -> list[str]:
        """Wait until the job has ended; return what is wrong with it."""
        async with asyncio.timeout(ENDED_S_MAX):
            while (job := await self._until_answered(http, "GET", f"/v1/jobs/{self._job}"))["ended"] is None:  # noqa: ASYNC110
                await asyncio.sleep(RETRY_S)
        rows = len(self.model.rows)
        self.model.accepted = {sequence: sequence - 1 for sequence in range(1, job["rows"]["accepted"] + 1)}
        found = job["state"], job["calls"], job["rows"]["accepted"], job["rows"]["skipped"]
        return [] if found == ("done", rows, rows, 0) else [f"pull: {found}, {job['error']}, {rows} rows are right"]

    async def _until_answered(
        self, http: aiohttp.ClientSession, method: str, path: str, body: Any = None, headers: Any = None
    ) -> dict[str, Any]:
        attempt = 0
        while True:
            url = self._urls[attempt % len(self._urls)] + path
            attempt += 1
            with suppress(TimeoutError, aiohttp.ClientError):
                async with http.request(method, url, json=body, headers=headers) as response:
                    if response.status < 400:
                        return dict(await response.json())
                    assert response.status in (404, 429, 503, 504), await response.text()
            await asyncio.sleep(RETRY_S)
