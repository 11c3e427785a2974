"""A client of the gateway's API for tests; it checks every answer."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from keepfit.model.bundle import Bundle
from keepfit.recipe import recipe as recipes
from keepfit.rows import shaping
from keepfit.settings import Settings
from keepfit_gateway import app
from keepfit_gateway.web import inference_answers, influx_answers
from tests.gateway import conformance

DEADLINE_S = 30.0
WAIT = {"Prefer": "wait=10"}
# Log events of errors that no code foresaw; no test of a running service may cause one.
CRASHES = re.compile(r"\w+_crashed|(accept|ask|answer|record|run_queue_push|batch)_failed|never retrieved")
# Fragments of tracebacks and of paths on this machine.
INTERNALS = ("Traceback", 'File "', ".py", "site-packages", "/tmp/", "/work/", "0x7f")

REGRESSOR: Mapping[str, Any] = {"estimator": "SGDRegressor"}
CLASSIFIER: Mapping[str, Any] = {"estimator": "SGDClassifier", "classes": ["no", "yes"]}


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the bytes of an answer; its body is everything after its head."""
        head, _, body = data.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = CIMultiDict([(name, value.strip()) for name, _, value in fields])
        return cls(int(status_line.split()[1]), CIMultiDictProxy(headers), body)

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    def of(self, status: int) -> Any:
        """Check the status and return the body as JSON."""
        assert self.status == status, (self.status, self.body[:1000])
        assert self.headers["Content-Type"].startswith("application/json")
        return self.json()

    def problem(self, status: int) -> dict[str, Any]:
        """Check the status and that the body is a valid problem document, and return it."""
        assert self.status == status, (self.status, self.body[:1000])
        assert self.headers["Content-Type"] == "application/problem+json"
        document: dict[str, Any] = self.json()
        assert {"type", "title", "status", "detail"} <= document.keys() <= {*document, "errors"}
        assert document["type"].startswith("urn:keepfit:problem:")
        assert document["title"] == HTTPStatus(status).phrase
        assert document["status"] == status
        assert document["detail"]
        text = self.body.decode()
        assert not [fragment for fragment in INTERNALS if fragment in text]
        return document

    def inference_error(self, status: int) -> str:
        """Check the status and that the body is an error of the inference protocol, and return its message."""
        assert self.status == status, (self.status, self.body[:1000])
        assert self.headers["Content-Type"] == "application/json"
        assert "Content-Encoding" not in self.headers
        document = self.json()
        assert document.keys() == {"error"}
        assert document["error"]
        text = self.body.decode()
        assert not [fragment for fragment in INTERNALS if fragment in text]
        return str(document["error"])

    def influx_error(self, status: int) -> str:
        """Check the status and that the body is an error as InfluxDB has them, and return its message."""
        assert self.status == status, (self.status, self.body[:1000])
        assert self.headers["Content-Type"] == "application/json"
        document = self.json()
        assert document.keys() == {"code", "message"}
        assert document["code"]
        assert document["message"]
        text = self.body.decode()
        assert not [fragment for fragment in INTERNALS if fragment in text]
        return str(document["message"])

    def refusal(self, status: int, path: str) -> str:
        """Check the status and that the body is an error in the form of its path, and return its message."""
        if inference_answers.is_path(path.partition("?")[0]):
            return self.inference_error(status)
        if influx_answers.is_path(path):
            return self.influx_error(status)
        return str(self.problem(status)["detail"])


class Api:
    """Calls of a gateway; no answer may contain one of `secrets`."""

    def __init__(self, http: aiohttp.ClientSession, secrets: tuple[str, ...] = ()) -> None:
        self._http = http
        self._secrets = secrets

    @property
    def url(self) -> str:
        """Return the gateway's address."""
        return str(self._http._base_url)

    async def call(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request, with `document` as its JSON body or `data` as its bytes."""
        if data is not None:
            headers = {"Content-Type": "application/json", **(headers or {})}
        async with self._http.request(
            method, path, json=document, data=data, headers=headers, params=params
        ) as response:
            reply = Reply(response.status, response.headers, await response.read())
        everything = f"{reply.headers} {reply.body!r}"
        assert not [secret for secret in self._secrets if secret in everything]
        conformance.check_answer(method, path, reply.status, reply.headers, reply.body)
        if document is not None and reply.status < 300 and len(str(document)) <= conformance.BYTES_MAX:
            conformance.check_request(method, path, document)
        return reply

    async def get(self, path: str, **params: str) -> Reply:
        """GET a path."""
        return await self.call("GET", path, params=params)

    async def post(self, path: str, document: Any, headers: Mapping[str, str] | None = None) -> Reply:
        """POST a document."""
        return await self.call("POST", path, document, headers=headers)

    async def make(self, metadata: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
        """Create a model; return its path."""
        reply = await self.post("/v1/models", {"metadata": metadata, "recipe": recipe})
        model: dict[str, Any] = reply.of(201)
        return f"/v1/models/{model['hash']}"

    async def model(self, path: str) -> dict[str, Any]:
        """Describe a model."""
        described: dict[str, Any] = (await self.get(path)).of(200)
        return described

    async def learn(self, path: str, X: Any, y: Any = None, **more: Any) -> dict[str, Any]:
        """Send rows and wait until they are learned."""
        document = {"X": X, **more} if y is None else {"X": X, "y": y, **more}
        learned: dict[str, Any] = (await self.post(f"{path}/partial_fit", document, WAIT)).of(200)
        return learned

    async def predict(self, path: str, X: Any, **more: Any) -> dict[str, Any]:
        """Predict rows."""
        predicted: dict[str, Any] = (await self.post(f"{path}/predict", {"X": X, **more})).of(200)
        return predicted


class Twin:
    """A model in this process that learns by the library's own calls; the model behind the gateway must equal it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.recipe = recipes.parse(dict(document))
        self.bundle = Bundle.new(self.recipe)

    def learn(self, X: Any, y: Any = None, sample_weight: Any = None) -> None:
        """Learn the rows of one request."""
        self.bundle.partial_fit(shaping.shape(self.recipe, X, y, sample_weight, learning=True))

    def predict(self, X: Any) -> list[Any]:
        """Predict rows."""
        return self.bundle.predict(shaping.shape(self.recipe, X, learning=False))

    def predict_proba(self, X: Any) -> list[list[float]]:
        """Predict probabilities of rows."""
        return self.bundle.predict_proba(shaping.shape(self.recipe, X, learning=False))


def address_of(template: str) -> str:
    """Return a path of the API, about a model that does not exist, or of a stream that ends soon."""
    end = "?timeout=0.01" if template == "/v1/events" else ""
    return template.replace("{hash}", "0" * 64).replace("{version}", "1").replace("{job}", "0" * 32) + end


@asynccontextmanager
async def serving(settings: Settings, secrets: tuple[str, ...] = ()) -> AsyncIterator[Api]:
    """Run a gateway in this process, on a free port."""
    async with (
        app.serving(settings.model_copy(update={"port": 0})) as url,
        aiohttp.ClientSession(url) as http,
    ):
        yield Api(http, secrets)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = DEADLINE_S) -> None:
    """Wait until `condition` is true; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection to a gateway, to send what no HTTP client sends."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def exchange(url: str, data: bytes) -> bytes:
    """Send bytes and return everything received until the gateway closes the connection."""
    async with connected(url) as (reader, writer), asyncio.timeout(DEADLINE_S):
        writer.write(data)
        return await reader.read()
