"""Forms of the answer about the whole service."""

from typing import Annotated

from msgspec import Meta, Struct

from keepfit_gateway.schemas.answers import Ready, WorkerAnswer
from keepfit_gateway.schemas.traffic import Traffic
from keepfit_gateway.schemas.values import Timestamp


class GatewayAnswer(Struct, kw_only=True):
    """A process of a gateway. All numbers are as of its last heartbeat, which is seconds old."""

    name: str
    host: str
    pid: int
    started: Timestamp
    requests_per_s: Annotated[float, Meta(description="Requests that it has answered each second, since the last one.")]
    connections: Annotated[int, Meta(description="Open connections of clients.")]
    event_streams: Annotated[int, Meta(description="Clients that listen to events.")]


class ModelCounts(Struct, kw_only=True):
    """Numbers of models: all that exist, and those in Redis."""

    registered: int
    live: int


class Waiting(Struct, kw_only=True):
    """Work that waits. Models and requests are null if there are too many models to count them."""

    models: Annotated[int | None, Meta(description="Models with requests that wait to be learned.")]
    requests: Annotated[int | None, Meta(description="Requests that wait to be learned.")]
    models_to_predict: Annotated[int, Meta(description="Models with predictions that no worker has begun.")]
    oldest_s: Annotated[
        float,
        Meta(description="Seconds for which no worker has claimed what waits to be learned; 0 if all is claimed."),
    ]


class SnapshotPass(Struct, kw_only=True):
    """The last pass over the changed models, and the models that have changed since their snapshot."""

    ended: Annotated[float, Meta(description="When the last pass ended, in seconds since 1970; 0 before the first.")]
    changed: int
    failed: int


class SystemAnswer(Struct, kw_only=True):
    """The whole service at a moment; `ready` is the answer of `GET /readyz`. What cannot be read at present is null."""

    timestamp: Timestamp
    ready: Ready
    gateways: list[GatewayAnswer] | None
    workers: list[WorkerAnswer] | None
    models: ModelCounts | None
    waiting: Waiting | None
    snapshots: SnapshotPass | None
    traffic: Traffic | None
    pull_jobs: Annotated[int, Meta(description="Pull jobs that have not ended.")]
    unloadable: Annotated[int, Meta(description="Models that no worker loads, because workers died of it.")]
