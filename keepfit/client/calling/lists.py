"""Lists of the API: their pages one after another, and the answers of the history.

Pure. Invariant: no entry is returned twice, and no more than the caller's limit.
"""

from collections.abc import Mapping
from typing import Any

from keepfit.client.calling.calls import Calls
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.exchange import Flow

Answer = dict[str, Any]


def pages(shared: Calls, path: str, name: str, limit: int | None, **query: Any) -> Flow[list[Answer]]:
    """Return the entries of a list, page by page, up to `limit`."""
    found: list[Answer] = []
    after: Any = None
    while limit is None or len(found) < limit:
        size = 1000 if limit is None else min(1000, limit - len(found))
        _, page = yield from shared.json("GET", target_of(path, **query, limit=size, after=after))
        found += page[name]
        after = page["next"]
        if after is None:
            break
    return found


def history_of(shared: Calls, query: Mapping[str, Any]) -> Flow[list[Answer]]:
    """Return the documents, or the points, of a query of the history."""
    _, answer = yield from shared.json("GET", target_of("/v1/history", **query))
    found: list[Answer] = answer["points"] if "points" in answer else answer["documents"]
    return found
