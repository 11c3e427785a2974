"""Forms of events."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from keepfit_gateway.schemas.values import REFERENCE


class Drift(Struct, kw_only=True):
    """A drift: the error of the last rows is significantly larger than that of the rows before them."""

    metric: Annotated[Literal["accuracy", "mean_absolute_error"], Meta(title="DriftMetric")]
    before: Annotated[float, Meta(description="The metric over the rows before the last ones.")]
    recent: Annotated[float, Meta(description="The metric over the last rows.")]
    rows: Annotated[int, Meta(description="Number of the last rows.")]
    output: Annotated[int, Meta(description="Which output, from 0, of a model with several.")] | UnsetType = UNSET


class Event(Struct, kw_only=True):
    """An event: the JSON of each `data` of the stream. Its id is in the stream's own field `id`.

    Events of models have `hash`, `metadata` and `generation`, those of workers `worker` and `host`. `version` and
    `rows_seen` are the model's after the event. `gap` is sent where events are missing, because the stream keeps the
    last 10,000 only.
    """

    kind: Annotated[
        Literal[
            "commit", "drift", "dead_letter", "snapshot", "restored", "model_created", "model_patched", "model_deleted",
            "worker_joined", "worker_left", "worker_died", "worker_lost", "gap",
        ],
        Meta(title="EventKind"),
    ]  # fmt: skip
    timestamp: Annotated[float, Meta(description="Seconds since 1970.")]
    hash: str | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    generation: int | UnsetType = UNSET
    version: int | UnsetType = UNSET
    rows_seen: int | UnsetType = UNSET
    metrics: (
        Annotated[dict[str, Any], Meta(description="Of a commit: as in the model's document, up to 4 KiB.")] | UnsetType
    ) = UNSET
    drift: Drift | UnsetType = UNSET
    sequence: Annotated[int, Meta(description="Of a dead letter: the request's sequence.")] | UnsetType = UNSET
    reason: Annotated[str, Meta(description="Of a dead letter: the class of the error.")] | UnsetType = UNSET
    size_bytes: Annotated[int, Meta(description="Of a snapshot: the size of the bundle.")] | UnsetType = UNSET
    worker: Annotated[str, Meta(description="Name of the worker.")] | UnsetType = UNSET
    host: Annotated[str, Meta(description="Host of the worker.")] | UnsetType = UNSET
    exitcode: Annotated[int, Meta(description="Of a worker that died.")] | UnsetType = UNSET
    after: Annotated[str, Meta(description="Of a gap: the id after which events are missing.")] | UnsetType = UNSET


class EventMessage(Struct, kw_only=True):
    """A stream of server-sent events; this is one of them, as an object of its fields."""

    data: Annotated[
        str,
        Meta(
            description="The event, as JSON.",
            extra_json_schema={
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": REFERENCE.format(name="Event")},
            },
        ),
    ]
    id: Annotated[str, Meta(description="Position in the stream: the `Last-Event-ID` to continue after it.")]
