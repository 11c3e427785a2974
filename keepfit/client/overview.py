"""What a gateway knows of a deployment at a moment: its dependencies, workers and models, with their rates.

Owns one reading over the REST API, so that it needs a gateway and a key with the scope `read`, and no other server.
Changes nothing. Invariant: a part that cannot be read is empty in the reading, whose `error` says why.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from keepfit.client.gateway import Gateway
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


async def read(gateway: Gateway, where: Iterable[tuple[str, str]] = ()) -> Reading:
    """Read the state once, without repeating a call; only models with these values in their metadata."""
    ready, workers, listed = await asyncio.gather(
        gateway.ready(), _get(gateway, "/v1/workers"), _models(gateway, where), return_exceptions=True
    )
    if isinstance(workers, ForbiddenError):
        # A key for a part of the models sees no workers.
        workers = {"workers": []}
    errors = [found for found in (ready, workers, listed) if isinstance(found, BaseException)]
    for error in errors:
        if not isinstance(error, KeepfitError):
            raise error
    models, is_cut = ([], False) if isinstance(listed, BaseException) else listed
    return Reading(
        time.time(),
        time.monotonic(),
        {} if isinstance(ready, BaseException) else ready,
        [] if isinstance(workers, BaseException) else workers["workers"],
        models,
        is_cut,
        str(errors[0]) if errors else "",
    )


async def _get(gateway: Gateway, path: str) -> Any:
    async with gateway.open("GET", path, {}) as response:
        return await response.json()


async def _models(gateway: Gateway, where: Iterable[tuple[str, str]]) -> tuple[list[dict[str, Any]], bool]:
    filters = {f"metadata[{key}]": value for key, value in where}
    models: list[dict[str, Any]] = []
    after = ""
    while after is not None and len(models) < MODELS_MAX:
        page = await _get(gateway, f"/v1/models?{urlencode({**filters, 'limit': PAGE, 'after': after})}")
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
