"""Forms of the answers about traffic."""

from typing import Annotated

from msgspec import Meta, Struct

from keepfit_gateway.schemas.values import Hash

Latency = Annotated[
    float,
    Meta(
        description="Seconds from the arrival of a request to its answer that this share of the predictions took at "
        "most, within a factor of 1.5; 0 without a prediction."
    ),
]


class PredictionsBySource(Struct, kw_only=True):
    """Numbers of predict calls by what answered: a kept answer, a scorer in the gateway, a worker, a stale answer."""

    kept: int
    scored: int
    worker: int
    stale: int


class Traffic(Struct, kw_only=True):
    """Rows in and out and predictions of the live version, of all gateways, in the last `window_s` seconds.

    Gateways report every ten seconds, so it is up to ten seconds old.
    """

    window_s: Annotated[float, Meta(description="Seconds that it is about.")]
    rows_in_per_s: Annotated[float, Meta(description="Rows that gateways accepted to be learned, each second.")]
    rows_out_per_s: Annotated[float, Meta(description="Rows that were predicted, each second.")]
    predictions: PredictionsBySource
    latency_p50_s: Latency
    latency_p99_s: Latency


class ModelTraffic(Traffic, kw_only=True):
    """The traffic of a model."""

    hash: Hash
