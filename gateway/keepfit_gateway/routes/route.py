"""What one route of the API is: method, path, handler, form, answers and the scope that it needs.

Owns no route; the other modules of this package list them. Never handles a request.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from keepfit.security.api_keys import ADMIN, READ
from keepfit_gateway.parameters import REQUEST_ID

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Parameter = dict[str, Any]

# What keeps API keys that are bound to metadata to their models: the path has the hash of a model, which is checked
# before the handler; the request has the metadata of a model, which are checked where they become a hash; the handler
# shows only what belongs to models that the key may use; or such keys are refused.
BOUND_PATH, BOUND_METADATA, BOUND_FILTERED, BOUND_REFUSED = "path", "metadata", "filtered", "refused"

MODELS, LEARNING, PREDICTING = "models", "learning", "predicting"
DEAD_LETTERS, SNAPSHOTS, HISTORY_TAG, OPERATION = "dead letters", "snapshots", "history", "operation"
PROTOCOL = "inference protocol"
INFLUX = "line protocol"
JOBS = "jobs"
TAGS = {
    MODELS: "Create, describe, change and delete models.",
    LEARNING: "Send rows to learn.",
    JOBS: "Learn large sources, in jobs.",
    PREDICTING: "Ask for predictions and scores.",
    DEAD_LETTERS: "Requests that were accepted and could not be learned.",
    SNAPSHOTS: "Save and restore models.",
    HISTORY_TAG: "Snapshots and their metrics by time, and documents of your own.",
    PROTOCOL: "Predictions for clients of the Open Inference Protocol, version 2.",
    INFLUX: "Points from clients of InfluxDB 2: Telegraf, influxdb-client.",
    OPERATION: "Probes, metrics and this document.",
}


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `answers` maps status codes to forms (None: no body); `errors` are the other status codes.

    `form` is that of a JSON body; `file` says whether the body is a file; `lines` is the media type of a body of lines,
    of any length; `tables` says whether rows are also accepted as a table; `tensors` whether bytes of tensors may
    follow the JSON of the request and of the answer; `media_type` is that of the answers; `streams` are other media
    types of the answer, which is then sent while it is read, if `Accept` names them; `headers` are fields of an answer
    by its status. `scope` is the scope that an API key needs; by default READ for GET and ADMIN for all other methods;
    `also_needs` is one more, of a call that does two things. `bound_keys` says what keeps an API key that is bound to
    metadata to its models (:attr:`bound`).
    `by_metadata` says whether metadata name the model: such routes are made in
    :mod:`keepfit_gateway.routes.by_metadata`.
    """

    method: str
    path: str
    handler: Handler
    tag: str
    summary: str
    description: str
    answers: Mapping[int, type[Any] | None]
    form: Any = None
    errors: tuple[int, ...] = ()
    own_parameters: tuple[Parameter, ...] = ()
    headers: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    file: bool = False
    lines: str | None = None
    tables: bool = False
    tensors: bool = False
    body_optional: bool = False
    scope: str | None = None
    also_needs: str | None = None
    media_type: str = "application/json"
    streams: tuple[str, ...] = ()
    bound_keys: str | None = None
    by_metadata: bool = False

    @property
    def bound(self) -> str:
        """What keeps bound API keys to their models; by default the hash in the path, without one they are refused."""
        if self.bound_keys is not None:
            return self.bound_keys
        return BOUND_PATH if "{hash}" in self.path else BOUND_REFUSED

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its own parameters, and the one of every operation."""
        return (*self.own_parameters, REQUEST_ID)

    @property
    def needs(self) -> str:
        """The scope that the API key of the caller needs."""
        if self.scope is not None:
            return self.scope
        return READ if self.method == "GET" else ADMIN

    @property
    def scopes(self) -> tuple[str, ...]:
        """All scopes that the API key of the caller needs."""
        return (self.needs,) if self.also_needs is None else (self.needs, self.also_needs)


BODY_ERRORS = (400, 408, 413, 415, 422)
LEARN_ERRORS = (*BODY_ERRORS, 404, 409, 429, 503, 504)
ASK_ERRORS = LEARN_ERRORS
PULL_ERRORS = (*BODY_ERRORS, 404, 429, 503, 504)
