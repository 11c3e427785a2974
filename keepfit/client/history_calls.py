"""The calls of the history, for the blocking and the asyncio client.

Owns their signatures; :mod:`keepfit.client.calling` makes the requests.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keepfit.client.calling import history_writes, lists
from keepfit.client.calling.calls import Calls
from keepfit.client.calling.flows import call
from keepfit.client.transport.exchange import Flow

Answer = dict[str, Any]


class HistoryCalls:
    """What a client does with the history."""

    _calls: Calls

    @call
    def history(self, /, **query: Any) -> Flow[list[Answer]]:
        """Return documents of the history, or points of their numbers with ``every``.

        `query` has the parameters of `GET /v1/history`: ``type``, ``hash``, ``kind``, ``where``, ``after``, ``before``,
        ``tz``, ``closest``, ``last``, ``per``, ``limit``, ``page``, ``every``, ``stat``, ``field``, …; ``where``,
        ``group`` and ``per`` may be lists: ``where=["rows_seen>=1000", "brand in nike,puma"]``.
        """
        return (yield from lists.history_of(self._calls, query))

    @call
    def add_history(
        self,
        documents: Mapping[str, Any] | Iterable[Mapping[str, Any]],
        keys: Sequence[str] = (),
        *,
        idempotency_key: str | None = None,
    ) -> Flow[int]:
        """Store documents of your own in the history, a thousand in a request; return their number.

        Parameters
        ----------
        documents : one, or any number of them, each with a ``type``, a ``timestamp`` (seconds since 1970 or ISO 8601;
            the present without it) and any other fields
        keys : names of the fields that identify a document: it replaces the one that was stored with the same keys,
            type and values of them
        idempotency_key : of the call, which is made once however often it is sent; by default a new one

        Raises
        ------
        InvalidError, MalformedError
            If a document may not be stored; the message says how many before it are.
        """
        return (yield from history_writes.add(self._calls, documents, keys, idempotency_key))

    @call
    def delete_history(self, /, **query: Any) -> Flow[int]:
        """Delete documents that users stored, and never those of snapshots; return their number.

        `query` has the parameters of `DELETE /v1/history`: ``type``, ``where``, ``after``, ``before``, and any key of
        metadata or field; one beside the time is needed.
        """
        return (yield from history_writes.delete(self._calls, query))
