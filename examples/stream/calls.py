"""The two calls of keepfit that the consumer makes, repeated until they succeed or cannot."""

import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession

RETRY_S = 1.0
REJECTED = {400, 413, 422}
# Overloaded, unavailable, or the model was restored meanwhile (409, of learning calls).
REPEATED = {408, 409, 429, 500, 502, 503, 504}


class RejectedError(Exception):
    """The content of a request is wrong: keepfit can never accept it."""


async def create(keepfit: ClientSession, metadata: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Create the model, or find it; return its hash."""
    answer = await _post(keepfit, "/v1/models", {"metadata": metadata, "recipe": recipe}, {}, REPEATED - {409})
    return str(answer["hash"])


async def learn(keepfit: ClientSession, model_hash: str, body: Mapping[str, Any], key: str) -> None:
    """Send rows until keepfit has accepted them; rows that it has accepted under this key are not learned again.

    Raises
    ------
    RejectedError
        If the rows are wrong.
    aiohttp.ClientResponseError
        If no repeat helps, as without an API key or after the model was deleted.
    """
    await _post(keepfit, f"/v1/models/{model_hash}/partial_fit", body, {"Idempotency-Key": key}, REPEATED)


async def _post(
    keepfit: ClientSession, path: str, body: Mapping[str, Any], headers: Mapping[str, str], repeated: set[int]
) -> dict[str, Any]:
    while True:
        wait_s = RETRY_S
        try:
            async with keepfit.post(path, json=body, headers=headers) as response:
                if response.ok:
                    answer: dict[str, Any] = await response.json()
                    return answer
                if response.status in REJECTED:
                    raise RejectedError((await response.json(content_type=None))["detail"])
                if response.status not in repeated:
                    response.raise_for_status()
                reason: object = response.status
                wait_s = float(response.headers.get("Retry-After", RETRY_S))
        except (ClientConnectionError, ClientPayloadError, TimeoutError) as error:
            reason = error
        print(f"keepfit: {reason!r}, the request is sent again in {wait_s:g} s", flush=True)
        await asyncio.sleep(wait_s)
