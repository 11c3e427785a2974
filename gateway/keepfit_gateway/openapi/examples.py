"""Examples of requests and answers, by operation.

Owns one session: on an empty service the requests, in this order, give these answers, except for times, addresses and
computed numbers. A test runs it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from keepfit_gateway.parameters import EXAMPLE_HASH


@dataclass(frozen=True, slots=True)
class Example:
    """Bodies of an operation: `requests` by name, `answers` by status; `query` and `headers` give those answers."""

    requests: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[int, Any] = field(default_factory=dict)
    query: str = ""
    headers: Mapping[int, Mapping[str, str]] = field(default_factory=dict)


WAIT = {200: {"Prefer": "wait=10"}}
METADATA = {"type": "shoes", "brand": "nike"}
HASH = EXAMPLE_HASH
VOTE = {"type": "vote", "timestamp": 1795176000.0, "brand": "nike", "fit": 4.5}
PARAMS = {"learning_rate": "constant", "eta0": 0.3}
RECIPE = {
    "estimator": "SGDRegressor",
    "params": PARAMS,
    "features": {"make": "category", "year": "number"},
    "scaler": "StandardScaler",
    "encoding": "onehot",
    "max_categories": 16,
}
STORED_RECIPE = {
    **RECIPE,
    "steps": None,
    "object": None,
    "n_features": 256,
    "classes": None,
    "updates": "exact",
    "window": 1000,
}
BY_NAME = [{"make": "pegasus", "year": 2001}, {"make": "cortez", "year": 2010}]
BY_POSITION = [["pegasus", 2001], ["cortez", 2010]]
# By how many sizes a pair is larger than its label.
TARGET = [0.5, -0.5]
ROWS = {"X": BY_NAME, "y": TARGET}
SCORED = {"max_error": 0.0005, "mean_absolute_error": 0.0005, "r2": 1.0}
RUNNING = {
    "mean_absolute_error": 0.0275,
    "baseline_mean_absolute_error": 0.5,
    "root_mean_squared_error": 0.0355,
    "r2": 0.9949,
    "rows": 4,
}
METRICS = {**RUNNING, "window": RUNNING}
MODEL = {
    "hash": HASH,
    "metadata": METADATA,
    "recipe": STORED_RECIPE,
    "warnings": [],
    "version": 0,
    "rows_seen": 0,
    "metrics": {},
    "inbox": 0,
    "snapshot": None,
}
TRAINED = {
    **MODEL,
    "hash": "0d5f0c2e5d8b3a6d8c1c6b1f4a8f5a0f3f7c0b1d2e3f4a5b6c7d8e9f0a1b2c3d",
    "metadata": {"type": "digits"},
    "recipe": {
        **dict.fromkeys(("estimator", "steps", "features", "scaler", "encoding", "classes")),
        "params": {},
        "object": "sha256:6a3b1c54a0f7b5a0a2a3c1fbd6c7d1e4f3a6d4a4bb0a6b8a0f6c9d1e2f3a4b5c",
        "max_categories": 128,
        "n_features": 256,
        "updates": "exact",
        "window": 1000,
    },
    "object": {
        "name": "Pipeline",
        "size_bytes": 40812,
        "sha256": "6a3b1c54a0f7b5a0a2a3c1fbd6c7d1e4f3a6d4a4bb0a6b8a0f6c9d1e2f3a4b5c",
        "format": "skops",
    },
    "version": 1,
    "rows_seen": 1000,
}
PATCHED = {
    **MODEL,
    "recipe": {**STORED_RECIPE, "params": {**PARAMS, "alpha": 0.01}},
    "version": 4,
    "rows_seen": 6,
    "metrics": METRICS,
}
STORED = {
    "uri": f"s3://models/{HASH}/1/4-4cf79787a29a",
    "sha256": "4cf79787a29abe51a0dfc6576bdf4d05f9067233d4c9806d4f0ffbd6283fc5e9",
    "size_bytes": 1599,
}
SNAPSHOT = {
    "type": "shoes",
    "timestamp": 1795983706.81,
    "hash": HASH,
    "metadata": METADATA,
    "generation": 1,
    "version": 4,
    "sequence": 4,
    "rows_seen": 6,
    "metrics": METRICS,
    **STORED,
    "runtime": {"python": "3.11.7", "scikit-learn": "1.9.1", "numpy": "2.4.6"},
    "open_rows": 0,
}
OF_MODEL = {"hash": HASH, "version": 4}
ACCEPTED = {"hash": HASH, "accepted": 2, "sequence": 1, "generation": 1, "version": 0}
LEARNED = {"hash": HASH, "accepted": 2, "sequence": 2, "version": 2, "rows_seen": 4}
TRAIN_SCORE_PREDICT = {
    **LEARNED,
    "train_rows": 1,
    "test_rows": 1,
    "score": {"max_error": 0.25, "mean_absolute_error": 0.25, "r2": None},
    "predictions": [0.4995],
    "warnings": [],
}
LABELS = [{"id": "pair-7", "y": 0.5}, {"id": "pair-0", "y": 0.5}]
UNKNOWN = {
    "index": 1,
    "id": "pair-0",
    "reason": "unknown",
    "detail": "No row is open under this id, and none was lately.",
}
LABELLED = {"hash": HASH, "accepted": 1, "sequence": 3, "version": 3, "rows_seen": 5, "errors": [UNKNOWN]}
TENSORS = [
    {"name": "make", "shape": [1], "datatype": "BYTES", "data": ["pegasus"]},
    {"name": "year", "shape": [1], "datatype": "INT64", "data": [2001]},
]
INFERENCE = Example(
    {"columns": {"id": "1", "inputs": TENSORS}},
    {
        200: {
            "model_name": HASH,
            "model_version": "3",
            "id": "1",
            "outputs": [{"name": "predictions", "datatype": "FP64", "shape": [1], "data": [0.4995]}],
        }
    },
)
MODEL_METADATA = {
    "name": HASH,
    "versions": ["3"],
    "platform": "keepfit",
    "inputs": [
        {"name": "make", "datatype": "BYTES", "shape": [-1]},
        {"name": "year", "datatype": "FP64", "shape": [-1]},
    ],
    "outputs": [{"name": "predictions", "datatype": "FP64", "shape": [-1]}],
}
MODEL_READY = {"name": HASH, "ready": True}
WORKER = {"name": "web-1.4711.9c1fa0de", "host": "web-1", "pid": 4712, "state": "busy", "call_s": 0}
WORKERS = [
    {**WORKER, "models_held": 1, "rows_per_s": 0.6},
    {**WORKER, "name": "web-1.4711.b57a2f10", "pid": 4713, "state": "idle", "models_held": 0, "rows_per_s": 0.0},
]
READY = {"status": "ok", "redis": "ok", "queue": "ok", "mongo": "ok", "snapshots": "ok", "workers": 2}
TRAFFIC = {
    "window_s": 60.0,
    "rows_in_per_s": 0.0,
    "rows_out_per_s": 0.0,
    "predictions": {"kept": 0, "scored": 0, "worker": 0, "stale": 0},
    "latency_p50_s": 0.0,
    "latency_p99_s": 0.0,
}
SYSTEM = {
    "timestamp": 1795392000.0,
    "ready": READY,
    "gateways": [
        {
            "name": "web-1.4700.3f0c11aa",
            "host": "web-1",
            "pid": 4700,
            "started": 1795388400.0,
            "requests_per_s": 12.5,
            "connections": 3,
            "event_streams": 1,
        }
    ],
    "workers": WORKERS,
    "models": {"registered": 1, "live": 1},
    "waiting": {"models": 0, "requests": 0, "models_to_predict": 0, "oldest_s": 0.0},
    "snapshots": {"ended": 1795391979.0, "changed": 1, "failed": 0},
    "traffic": TRAFFIC,
    "pull_jobs": 0,
    "unloadable": 0,
}
CALLER = {"name": "unrestricted", "scopes": ["admin", "learn", "predict", "read"], "ends": None}
PULL = {"url": "s3://data/daily/shoes.parquet", "target": "size", "columns": {"make": "brand_name", "year": "released"}}
JOB_ID = "5f0c1d2e3a4b5c6d7e8f90a1b2c3d4e5"
JOB_MADE = {"job": JOB_ID, "hash": HASH, "state": "queued"}
JOB = {
    "job": JOB_ID,
    "hash": HASH,
    "metadata": METADATA,
    "state": "queued",
    **PULL,
    "format": None,
    "sample_weight": None,
    "label_type": None,
    "rows_per_call": 1000,
    "skip_max": 0,
    "rows": {"done": 0, "accepted": 0, "skipped": 0, "total": None},
    "calls": 0,
    "sequence": None,
    "size_bytes": None,
    "skipped": [],
    "waiting": None,
    "error": None,
    "created": 1795983706.81,
    "started": None,
    "ended": None,
}
POINT = {**{name: value for name, value in RUNNING.items() if name != "rows"}, "rows_seen": 26, "time": 1795983706.81}
CURVE_POINT = {**POINT, "window": {name: POINT[name] for name in RUNNING if name != "rows"}}
SCORED_ROWS = [{"output": 0, "target": None, "truth": [0.5, -0.5] * 12, "prediction": [0.4987, -0.4931] * 12}]
PREDICTED = {"hash": HASH, "version": 3, "rows_seen": 6, "predictions": [0.4995]}

BY_HASH: dict[str, Example] = {
    "upload_estimator": Example(answers={201: TRAINED, 200: TRAINED}),
    "create_model": Example({"recipe": {"metadata": METADATA, "recipe": RECIPE}}, {201: MODEL, 200: MODEL}),
    "list_models": Example({}, {200: {"models": [MODEL], "next": None}}, "?metadata[brand]=nike"),
    "partial_fit": Example(
        {"objects": ROWS, "lists": {"X": BY_POSITION, "y": TARGET}}, {202: ACCEPTED, 200: LEARNED}, headers=WAIT
    ),
    "train_score_predict": Example(
        {"objects": {**ROWS, "X_pred": BY_NAME[:1]}},
        {200: TRAIN_SCORE_PREDICT, 202: ACCEPTED},
        headers={**WAIT, 202: {"Prefer": "wait=0"}},
    ),
    "predict": Example(
        {
            "objects": {"X": BY_NAME[:1]},
            "lists": {"X": BY_POSITION[:1]},
            "kept for its label": {"X": BY_NAME[:1], "id": "pair-7"},
            "kept for their labels": {"X": BY_NAME[:1], "id": ["pair-8"]},
        },
        {200: PREDICTED},
    ),
    "label_rows": Example({"labels": {"labels": LABELS}}, {200: LABELLED}, headers=WAIT),
    "label_rows_by_metadata": Example(
        {"labels": {"metadata": METADATA, "labels": [{"id": "pair-8", "y": 0.5}, LABELS[1]]}},
        {200: LABELLED},
        headers=WAIT,
    ),
    "score": Example({"objects": ROWS}, {200: {"hash": HASH, "version": 3, "rows_seen": 6, **SCORED}}),
    "pull": Example({"parquet": PULL}, {202: JOB_MADE}),
    "list_jobs": Example({}, {200: {"jobs": [JOB], "next": "001795983706810-" + JOB_ID}}, "?limit=1"),
    "get_job": Example({}, {200: JOB}),
    "cancel_job": Example({}, {202: {**JOB, "state": "cancelled", "ended": 1795983712.3}}),
    "server_metadata": Example(
        {}, {200: {"name": "keepfit", "version": "0.3.0", "extensions": ["binary_tensor_data"]}}
    ),
    "server_live": Example({}, {200: {"live": True}}),
    "server_ready": Example({}, {200: {"ready": True}}),
    "model_metadata": Example({}, {200: MODEL_METADATA}),
    "model_metadata_of_version": Example({}, {200: MODEL_METADATA}),
    "model_ready": Example({}, {200: MODEL_READY}),
    "model_ready_of_version": Example({}, {200: MODEL_READY}),
    "infer": INFERENCE,
    "infer_of_version": INFERENCE,
    "patch_model": Example({"alpha": {"params": {"alpha": 0.01}}}, {200: PATCHED}),
    "get_model": Example({}, {200: PATCHED}),
    "show_curve": Example(
        {},
        {
            200: {
                **OF_MODEL,
                "rows_seen": 26,
                "rows_before": 0,
                "spacing": 1,
                "points": [CURVE_POINT],
                "scored": SCORED_ROWS,
            }
        },
        "?since_rows=25",
    ),
    "show_traffic": Example({}, {200: {"hash": HASH, **TRAFFIC}}),
    "list_dead": Example({}, {200: {**OF_MODEL, "dead": [], "next": None}}),
    "retry_dead": Example(
        {"oldest": {}},
        {202: {**OF_MODEL, "generation": 1, "accepted": 0, "sequence": None, "refused": [], "left": 0}},
    ),
    "discard_dead": Example({"ids": {"ids": ["1-7"]}}, {200: {**OF_MODEL, "discarded": 0}}),
    "make_snapshot": Example({}, {201: SNAPSHOT}),
    "list_snapshots": Example({}, {200: {**OF_MODEL, "snapshots": [SNAPSHOT], "next": None}}, "?limit=1"),
    "restore_model": Example(
        {"lost": {}},
        {
            200: {
                **OF_MODEL,
                "rows_seen": 6,
                "generation": 1,
                "sequence": 4,
                "restored": False,
                "rows_forgotten": 0,
                "replayed": 0,
                "damaged": 0,
                "snapshot": SNAPSHOT,
            }
        },
    ),
    "list_history": Example(
        {},
        {200: {"points": [{"timestamp": 1795392000.0, "value": 6.0}]}},
        "?metadata[brand]=nike&every=1w&stat=max&field=rows_seen",
    ),
    "store_documents": Example(
        {"one": {"type": "vote", "brand": "nike", "fit": 4.5}, "several": [VOTE, {**VOTE, "fit": 4.0}]},
        {200: {"stored": 2}},
    ),
    "delete_documents": Example({}, {200: {"deleted": 3, "complete": True}}, "?type=vote&brand=nike"),
    "influx_health": Example(
        {}, {200: {"name": "keepfit", "message": "ready for writes", "status": "pass", "version": "0.3.0"}}
    ),
    "list_workers": Example({}, {200: {"workers": WORKERS}}),
    "begin_session": Example({"key": {"key": "kf_…"}}, {200: CALLER}),
    "show_caller": Example({}, {200: CALLER}),
    "show_system": Example({}, {200: SYSTEM}),
    "livez": Example({}, {200: {"status": "ok"}}),
    "readyz": Example({}, {200: READY}),
}
# Calls about a model that have a second form, with metadata in the body or, without one, in the query.
BOTH = (
    "partial_fit", "train_score_predict", "predict", "score", "patch_model", "get_model", "show_curve", "show_traffic",
    "list_dead", "retry_dead", "discard_dead", "make_snapshot", "list_snapshots", "restore_model", "pull",
)  # fmt: skip


def _in_session() -> Iterator[tuple[str, Example]]:
    """Yield the examples in the order of the session, each call by metadata after the one by hash."""
    for name, example in BY_HASH.items():
        yield name, example
        if name in BOTH:
            requests = {"model": {}} if name == "make_snapshot" else example.requests
            named = {title: {"metadata": METADATA, **request} for title, request in requests.items()}
            query = f"?metadata={quote(json.dumps(METADATA))}{example.query.replace('?', '&', 1)}"
            yield f"{name}_by_metadata", replace(example, requests=named, query=example.query if named else query)


EXAMPLES = dict(_in_session())
PROBLEM = {
    "type": "urn:keepfit:problem:invalid",
    "title": "Unprocessable Entity",
    "status": 422,
    "detail": "column 'year': 'abc' is not a number (row 3).",
    "errors": [{"detail": "'abc' is not a number", "row": 3, "column": "year"}],
}
