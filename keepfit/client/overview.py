"""What a gateway knows of a deployment at a moment: its dependencies, workers, traffic and models, with their rates.

Owns one reading over the REST API, so that it needs a gateway and a key with the scope `read`, and no other server.
Changes nothing. Invariants: a reading has one page of models, which the gateway puts in order, whatever their number;
what cannot be read, and what is asked for after it, is empty in the reading, whose `error` says why.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keepfit.client.clients import Client
from keepfit.client.transport.address import target as target_of
from keepfit.errors import ForbiddenError, KeepfitError

# Models of a page, at most.
PAGE_MAX = 1000
# The metrics of a model that is as good as its baseline, for which 1 is best.
ACCURACY = "accuracy"
ERROR = "mean_absolute_error"


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading: the answer of `/readyz`, a page of `/v1/models`, and `system`, the answer of `/v1/system`.

    `system` is empty for a key that may not read it. `is_cut` says that there are more models.
    """

    timestamp: float
    ready: Mapping[str, Any] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)
    is_cut: bool = False
    error: str = ""

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The workers; empty if they cannot be read."""
        return self.system.get("workers") or []


def read(client: Client, where: Iterable[tuple[str, str]] = (), sort: str = "rate", limit: int = PAGE_MAX) -> Reading:
    """Read the state once, without repeating a call; the first models in an order, with these values in metadata."""
    ready: Mapping[str, Any] = {}
    system: Mapping[str, Any] = {}
    page: Mapping[str, Any] = {"models": [], "next": None}
    error = ""
    try:
        try:
            system = _get(client, "/v1/system")
            ready = system["ready"]
        except ForbiddenError:
            # A key for a part of the models sees nothing of the whole service.
            ready = client.ready()
        filters = {f"metadata[{key}]": value for key, value in where}
        page = _get(client, target_of("/v1/models", **filters, sort=sort, limit=min(limit, PAGE_MAX)))
    except KeepfitError as raised:
        error = str(raised)
    return Reading(time.time(), ready, system, page["models"], page["next"] is not None, error)


def _get(client: Client, path: str) -> Any:
    return client.request("GET", path, is_repeated=False)[1]


def describe(reading: Reading) -> list[dict[str, Any]]:
    """Return the models of a reading in short; their rates are None in the order of the hash."""
    described = []
    for model in reading.models:
        metric, value, share = error_of(model["metrics"])
        described.append(
            {
                "hash": model["hash"],
                "metadata": model["metadata"],
                "version": model["version"],
                "rows_seen": model["rows_seen"],
                "rows_per_s": model.get("rows_per_s"),
                "rows_out_per_s": model.get("rows_out_per_s"),
                "inbox": model["inbox"],
                "metric": metric,
                "value": value,
                "error_share": share,
            }
        )
    return described


def error_of(metrics: Mapping[str, Any]) -> tuple[str | None, float | None, float | None]:
    """Return name and value of the main metric over the last rows, and the error as a share of the baseline's.

    >>> error_of({"window": {"mean_absolute_error": 0.5, "baseline_mean_absolute_error": 2.0}})
    ('mean_absolute_error', 0.5, 0.25)
    >>> error_of({"accuracy": 0.75, "baseline_accuracy": 0.5}), error_of({})
    (('accuracy', 0.75, 0.5), (None, None, None))
    """
    window = metrics.get("window") or {}
    for name in (ERROR, ACCURACY):
        recent = window if isinstance(window.get(name), int | float) else metrics
        value, baseline = recent.get(name), recent.get(f"baseline_{name}")
        if not isinstance(value, int | float):
            continue
        if not isinstance(baseline, int | float):
            return name, value, None
        error, of_baseline = (value, baseline) if name == ERROR else (1 - value, 1 - baseline)
        return name, value, error / of_baseline if of_baseline > 0 else None
    return None, None, None
