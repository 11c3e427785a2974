"""The clients of a gateway: blocking and asyncio, with the same calls.

Owns the life of a client: its connections are opened by its first call and closed with it. Invariant: an API key is
sent in a header, and is in no error and in no ``repr``.

>>> def rows_seen(url: str) -> int:
...     with Client(url) as client:
...         model = client.create({"type": "shoes"}, estimator="SGDRegressor")
...         return model.partial_fit([[1.0]], [2.0], wait=True)["rows_seen"]
"""

import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from urllib.parse import quote

from keepfit import identity
from keepfit.client import hash_prefix, recipes
from keepfit.client.calling import calls, lists
from keepfit.client.calling.calls import Calls
from keepfit.client.calling.event_stream import Event, EventStream
from keepfit.client.calling.flows import Awaiting, Blocking, call
from keepfit.client.calling.line_stream import Line, LineStream
from keepfit.client.history_calls import HistoryCalls
from keepfit.client.model_calls import JOINED_ROWS_MAX, Answer, ModelCalls
from keepfit.client.rows.predictions import Predictions
from keepfit.client.rows.values import encode
from keepfit.client.transport import http1
from keepfit.client.transport.address import Address
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.exchange import Flow, Request
from keepfit.errors import InvalidError

if TYPE_CHECKING:
    import ssl

DEFAULT_URL = "http://127.0.0.1:8000"
# Methods that change nothing (RFC 9110, section 9.2.1).
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Model(ModelCalls, Blocking):
    """A model of a gateway; see :class:`~keepfit.client.model_calls.ModelCalls` for its calls."""

    def __init__(self, client: "Client", model_hash: str, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__(client._calls, model_hash, metadata)
        self._performer = client._performer
        self._client = client

    if not TYPE_CHECKING:

        @functools.wraps(ModelCalls.predict)
        def predict(self, X, **options):
            """See :meth:`ModelCalls.predict`; a few rows in a list need no steps of a flow."""
            if options or type(X) is not list or not 0 < len(X) <= JOINED_ROWS_MAX or type(X[0]) not in (list, dict):
                return ModelCalls.predict(self, X, **options)
            return Predictions(self._performer.ask(self._predict_path, b"", encode(X), len(X), self._calls.timeout_s))

    def events(self, *kinds: str, **options: Any) -> Iterator[Event]:
        """Yield the events of the model; see :meth:`Client.events`."""
        return self._client.events(*kinds, hash=self.hash, **options)


class AsyncModel(ModelCalls, Awaiting):
    """A model of a gateway, whose calls are awaited."""

    def __init__(self, client: "AsyncClient", model_hash: str, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__(client._calls, model_hash, metadata)
        self._performer = client._performer
        self._client = client

    def events(self, *kinds: str, **options: Any) -> AsyncIterator[Event]:
        """Yield the events of the model; see :meth:`AsyncClient.events`."""
        return self._client.events(*kinds, hash=self.hash, **options)


M = TypeVar("M", Model, AsyncModel)


class ClientCalls(HistoryCalls, Generic[M]):
    """The calls of a client, for both."""

    _calls: Calls
    url: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _model(self, model_hash: str, metadata: Mapping[str, Any] | None = None) -> M:
        raise NotImplementedError

    def model(self, name: Mapping[str, Any] | str) -> M:
        """Return the model with these metadata, or with this hash of 64 digits. Asks nothing.

        Raises
        ------
        InvalidError, MalformedError
            If it is neither.
        """
        if isinstance(name, str):
            digits = hash_prefix.check(name)
            if len(digits) < hash_prefix.DIGITS:
                raise InvalidError(f"{name!r} is the beginning of a hash: a hash has {hash_prefix.DIGITS} digits.")
            return self._model(digits)
        return self._model(identity.hash_of(dict(name)), name)

    @call
    def find(self, digits: str) -> Flow[M]:
        """Return the model whose hash begins with these digits; with all 64 of them nothing is asked.

        Raises
        ------
        MalformedError
            If they are not the beginning of a hash, or of several, which the message lists.
        NotFoundError
            If no model has such a hash.
        """
        given = hash_prefix.check(digits)
        if len(given) == hash_prefix.DIGITS:
            return self._model(given)
        after = hash_prefix.before(given.ljust(hash_prefix.DIGITS, "0"))
        path = target_of("/v1/models", limit=hash_prefix.CANDIDATES_MAX + 1, after=after)
        _, page = yield from self._calls.json("GET", path)
        # The list is ordered by hash.
        found = [one["hash"] for one in page["models"] if one["hash"].startswith(given)]
        return self._model(hash_prefix.only_one(given, found))

    @call
    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        is_repeatable: bool | None = None,
        is_repeated: bool = True,
        timeout_s: float | None = None,
    ) -> Flow[tuple[int, Any]]:
        """Make any call of the REST API, also one that has no method here; return its status and JSON.

        Parameters
        ----------
        path : with its query, percent-encoded
        body : bytes as they are, an object with ``size`` and an iterator of pieces, or a value that becomes JSON
        headers : further ones; the ``Content-Type`` of a body is JSON without them
        is_repeatable : whether the gateway may get it twice; by default if it changes nothing, or has an
            Idempotency-Key
        is_repeated : whether to repeat it, as the other calls, while the gateway is overloaded or unavailable
        timeout_s : as of the other calls
        """
        more = dict(headers or {})
        if is_repeatable is None:
            is_repeatable = method in SAFE_METHODS or any(name.lower() == "idempotency-key" for name in more)
        encoded = body if body is None or isinstance(body, bytes) or hasattr(body, "size") else encode(body)
        if encoded is not None and not any(name.lower() == "content-type" for name in more):
            more["Content-Type"] = "application/json"
        request = Request(method, path, encoded, calls.lines_of(more), is_repeatable)
        size = len(encoded) if isinstance(encoded, bytes) else (encoded and encoded.size) or 0
        send = self._calls.send if is_repeated else self._calls.send_once
        response = yield from send(request, self._calls.deadline(timeout_s, size))
        return response.status, self._calls.decode(response)

    @call
    def create(
        self,
        /,
        metadata: Mapping[str, Any],
        recipe: Mapping[str, Any] | None = None,
        *,
        estimator: Any = None,
        **fields: Any,
    ) -> Flow[M]:
        """Create a model, or find it if it exists with the same recipe.

        Parameters
        ----------
        metadata : the JSON object that names the model, with a non-empty string ``type``
        recipe : how to build it
        estimator : instead of a recipe, the name of an estimator of scikit-learn, or an unfitted object
        fields : further fields of the recipe: ``features``, ``scaler``, ``encoding``, ``classes``, ``updates``, …

        Raises
        ------
        ConflictError
            If the model exists with another recipe.
        InvalidError
            If the recipe cannot be built.
        """
        if (recipe is None) == (estimator is None):
            raise InvalidError("Give a recipe or an estimator.")
        whole = {**(recipes.recipe_of(estimator) if recipe is None else recipe), **fields}
        _, document = yield from self._calls.json("POST", "/v1/models", {"metadata": metadata, "recipe": whole})
        return self._model(document["hash"], metadata)

    @call
    def upload(self, metadata: Mapping[str, Any], file: bytes) -> Flow[M]:
        """Create a model from the bytes of a file with a trained estimator: of skops, or a signed pickle."""
        path = target_of("/v1/estimator", metadata=identity.canonical(dict(metadata)).decode())
        fields = http1.field_lines({"Content-Type": "application/octet-stream"})
        request = Request("POST", path, file, fields)
        response = yield from self._calls.send(request, self._calls.deadline(calls.FILE_S_MAX, len(file)))
        return self._model(self._calls.decode(response)["hash"], metadata)

    @call
    def models(self, /, limit: int | None = None, **metadata: Any) -> Flow[list[Answer]]:
        """Return the documents of models, ordered by hash: those with these values in their metadata."""
        query = {f"metadata[{name}]": value for name, value in metadata.items()}
        return (yield from lists.pages(self._calls, "/v1/models", "models", limit, **query))

    @call
    def job(self, job: str) -> Flow[Answer]:
        """Return a pull job: its ``state``, the ``rows`` that are done, an ``error``."""
        _, document = yield from self._calls.json("GET", f"/v1/jobs/{quote(job, safe='')}")
        found: Answer = document
        return found

    @call
    def jobs(self, /, limit: int | None = None, **query: Any) -> Flow[list[Answer]]:
        """Return pull jobs, newest first: of a model with ``hash``, in a state with ``state``."""
        return (yield from lists.pages(self._calls, "/v1/jobs", "jobs", limit, **query))

    @call
    def cancel(self, job: str) -> Flow[Answer]:
        """Cancel a pull job; what it has sent is learned."""
        _, document = yield from self._calls.json("DELETE", f"/v1/jobs/{quote(job, safe='')}")
        cancelled: Answer = document
        return cancelled

    @call
    def workers(self) -> Flow[list[Answer]]:
        """Return the workers that are alive."""
        _, answer = yield from self._calls.json("GET", "/v1/workers")
        found: list[Answer] = answer["workers"]
        return found

    @call
    def ready(self) -> Flow[Answer]:
        """Return whether the service can learn and predict, and the state of what it needs; asked once.

        Raises
        ------
        UnavailableError
            If no gateway answers.
        """
        return (yield from self._calls.ready())


class Client(ClientCalls[Model], Blocking):
    """A blocking client of the gateway at `url`; threads may share it, and a forked process may go on using it.

    Parameters
    ----------
    url : of the gateway, ``http://`` or ``https://``
    api_key : if the gateway requires one
    timeout_s : time for a call, repeats included: a call is repeated while the gateway is overloaded or unavailable, if
        that is safe. Large bodies have more time: a second for each MiB
    tls : for ``https``, instead of the defaults of :mod:`ssl`
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout_s: float = calls.TIMEOUT_S,
        *,
        tls: "ssl.SSLContext | None" = None,
    ) -> None:
        from keepfit.client.calling.sync_performer import SyncPerformer  # noqa: PLC0415
        from keepfit.client.transport.sync_connections import SyncConnections  # noqa: PLC0415 - sockets are slow to import

        address = Address(url, api_key)
        self.url = address.url
        # What makes the same client in another process.
        self._made_from = (url, api_key, timeout_s)
        self._has_own_tls = tls is not None
        self._calls = Calls(address, timeout_s)
        self._connections = SyncConnections(address, tls)
        self._performer = SyncPerformer(self._connections, self._calls)

    def _model(self, model_hash: str, metadata: Mapping[str, Any] | None = None) -> Model:
        return Model(self, model_hash, metadata)

    def __reduce__(self) -> tuple[type["Client"], tuple[str, str | None, float]]:
        """Give another process, to which a pickle goes, a client of its own. The pickle holds the API key."""
        if self._has_own_tls:
            raise TypeError("A client with a TLS context of its own cannot be pickled.")
        return type(self), self._made_from

    def __deepcopy__(self, memo: object) -> Self:
        """Return the client itself: copies of an estimator share it."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def events(
        self,
        *kinds: str,
        hash: str | Sequence[str] | None = None,
        after: str | None = None,
        where: Mapping[str, Any] | None = None,
        interrupted: Callable[[str], None] = lambda reason: None,
        **metadata: Any,
    ) -> Iterator[Event]:
        """Yield what happens to models and workers, as it happens; connects again after an interruption.

        Parameters
        ----------
        kinds : ``commit``, ``drift``, ``dead_letter``, …; all if there are none
        hash : of the model or models
        after : id of the last event that was handled (its ``id``): those after it come first
        where, metadata : values that the metadata of the models have; `where` for names that are parameters here
        interrupted : called with the reason when the stream is interrupted, and with "" when it continues
        """
        stream = EventStream(self._calls, kinds, hash, after, {**(where or {}), **metadata}, interrupted)
        return self._performer.listen(stream)

    def stream_history(self, /, **query: Any) -> Iterator[Line]:
        """Yield all documents of a query of :meth:`history`, or its points, as they arrive, however many there are."""
        return self._performer.lines(LineStream(self._calls, query))


class AsyncClient(ClientCalls[AsyncModel], Awaiting):
    """A client of the gateway at `url` for asyncio: its calls are awaited, and predictions that are asked for at the
    same time share requests. Use it in one event loop. Parameters are those of :class:`Client`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout_s: float = calls.TIMEOUT_S,
        *,
        tls: "ssl.SSLContext | None" = None,
    ) -> None:
        from keepfit.client.calling.async_performer import AsyncPerformer  # noqa: PLC0415
        from keepfit.client.transport.async_connections import AsyncConnections  # noqa: PLC0415 - asyncio is slow to import

        address = Address(url, api_key)
        self.url = address.url
        self._calls = Calls(address, timeout_s)
        self._connections = AsyncConnections(address, tls)
        self._performer = AsyncPerformer(self._connections, self._calls)

    def _model(self, model_hash: str, metadata: Mapping[str, Any] | None = None) -> AsyncModel:
        return AsyncModel(self, model_hash, metadata)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; predictions that are not answered are cancelled."""
        await self._performer.batching.close()
        await self._connections.close()

    def events(
        self,
        *kinds: str,
        hash: str | Sequence[str] | None = None,
        after: str | None = None,
        where: Mapping[str, Any] | None = None,
        interrupted: Callable[[str], None] = lambda reason: None,
        **metadata: Any,
    ) -> AsyncIterator[Event]:
        """Yield what happens to models and workers, as it happens; parameters as of :meth:`Client.events`."""
        stream = EventStream(self._calls, kinds, hash, after, {**(where or {}), **metadata}, interrupted)
        return self._performer.listen(stream)

    def stream_history(self, /, **query: Any) -> AsyncIterator[Line]:
        """Yield all documents of a query of :meth:`history`, or its points, as they arrive, however many there are."""
        return self._performer.lines(LineStream(self._calls, query))
