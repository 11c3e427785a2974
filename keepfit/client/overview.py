"""What a gateway knows of a deployment at a moment: its dependencies, workers and models, with their rates.

Owns one reading over the REST API, so that it needs a gateway and a key with the scope `read`, and no other server.
Changes nothing. Invariant: what cannot be read, and what is asked for after it, is empty in the reading, whose `error`
says why.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from keepfit.client.clients import Client
from keepfit.client.transport.address import target as target_of
from keepfit.errors import ForbiddenError, KeepfitError

PAGE = 1000
# Models that a reading has at most; a deployment with more is read in parts, by metadata.
MODELS_MAX = 10_000
# The metrics of a model that is as good as its baseline, for which 1 is best.
ACCURACY = "accuracy"
ERROR = "mean_absolute_error"


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading: when (`monotonic_s` for rates), the answers of `/readyz`, `/v1/workers` and `/v1/models`.

    `is_cut` says that there are more models than were read.
    """

    timestamp: float
    monotonic_s: float
    ready: Mapping[str, Any] = field(default_factory=dict)
    workers: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    is_cut: bool = False
    error: str = ""


def read(client: Client, where: Iterable[tuple[str, str]] = ()) -> Reading:
    """Read the state once, without repeating a call; only models with these values in their metadata."""
    ready: dict[str, Any] = {}
    workers: list[dict[str, Any]] = []
    listed: tuple[list[dict[str, Any]], bool] = [], False
    error = ""
    try:
        ready = client.ready()
        with suppress(ForbiddenError):
            # A key for a part of the models sees no workers.
            workers = _get(client, "/v1/workers")["workers"]
        listed = _models(client, where)
    except KeepfitError as raised:
        error = str(raised)
    return Reading(time.time(), time.monotonic(), ready, workers, *listed, error)


def _get(client: Client, path: str) -> Any:
    return client.request("GET", path, is_repeated=False)[1]


def _models(client: Client, where: Iterable[tuple[str, str]]) -> tuple[list[dict[str, Any]], bool]:
    filters = {f"metadata[{key}]": value for key, value in where}
    models: list[dict[str, Any]] = []
    after: Any = ""
    while after is not None and len(models) < MODELS_MAX:
        page = _get(client, target_of("/v1/models", **filters, limit=PAGE, after=after))
        models += page["models"]
        after = page["next"]
    return models, after is not None


def describe(reading: Reading, before: Reading | None) -> list[dict[str, Any]]:
    """Return the models of a reading in short, each with the rows that it has learned each second since `before`."""
    seen = {} if before is None else {model["hash"]: model["rows_seen"] for model in before.models}
    seconds = 0.0 if before is None else reading.monotonic_s - before.monotonic_s
    described = []
    for model in reading.models:
        # A model that was created again or restored has seen fewer rows than before.
        learned = max(0, model["rows_seen"] - seen.get(model["hash"], model["rows_seen"]))
        metric, value, share = error_of(model["metrics"])
        described.append(
            {
                "hash": model["hash"],
                "metadata": model["metadata"],
                "version": model["version"],
                "rows_seen": model["rows_seen"],
                "rows_per_s": learned / seconds if seconds > 0 else 0.0,
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
