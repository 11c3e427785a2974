"""Documents of users, sent to the history in as many requests as their size needs, and deleted.

Owns where documents are divided and the keys of the requests. Invariant: each request has an Idempotency-Key of its
own, made of that of the call, so that a call whose answer was lost, or that is repeated with its key, stores nothing
twice.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keepfit.client.calling import calls
from keepfit.client.calling.calls import Calls
from keepfit.client.rows import values
from keepfit.client.transport.address import PLAIN
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.exchange import Flow, Request
from keepfit.errors import InvalidError, KeepfitError, UnavailableError

# Of a request; a gateway takes 4 MiB.
DOCUMENTS_MAX, BYTES_MAX = 1_000, 1 << 20


def add(
    shared: Calls, documents: Mapping[str, Any] | Iterable[Mapping[str, Any]], keys: Sequence[str], key: str | None
) -> Flow[int]:
    """Store documents; return their number."""
    if isinstance(keys, str):
        raise InvalidError(f"keys must be a list of names, not {keys!r}.")
    name, stored = key or calls.new_key(), 0
    target = target_of("/v1/history", keys=list(keys) or None)
    for batch in _batches([documents] if isinstance(documents, Mapping) else documents):
        fields = PLAIN + calls.lines_of({"Idempotency-Key": f"{name}-{stored}" if stored else name})
        request = Request("POST", target, b"[" + b",".join(batch) + b"]", fields)
        try:
            response = yield from shared.send(request)
        except KeepfitError as error:
            raise _with_place(error, stored) from None
        stored += int(shared.decode(response)["stored"])
    return stored


def delete(shared: Calls, query: Mapping[str, Any]) -> Flow[int]:
    """Delete documents that match; return their number."""
    deleted = 0
    while True:
        _, answer = yield from shared.json("DELETE", target_of("/v1/history", **query))
        deleted += int(answer["deleted"])
        if answer["complete"]:
            return deleted


def _batches(documents: Iterable[Mapping[str, Any]]) -> Iterator[list[bytes]]:
    """Yield documents as JSON, as many at a time as a request takes."""
    batch, size = list[bytes](), 0
    for document in documents:
        encoded = values.encode(document)
        if batch and (len(batch) == DOCUMENTS_MAX or size + len(encoded) > BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(encoded)
        size += len(encoded)
    if batch:
        yield batch


def _with_place(error: KeepfitError, stored: int) -> KeepfitError:
    """Return an error that says how many documents are stored; its faults count from the first of the call."""
    if stored:
        if isinstance(error, InvalidError):
            error.faults = tuple(
                fault if fault.row is None else type(fault)(fault.detail, fault.row + stored, fault.column)
                for fault in error.faults
            )
        message = f"{str(error).rstrip('.')}. {stored:,} documents of the call before that are stored."
        error.args = (message,)
        if isinstance(error, UnavailableError):
            error.public_message = message
    return error
