"""The same figures from a running keepfit: each row is one request over HTTP, in order.

A figure is read off the model's running metrics where keepfit has that metric. For ROC AUC, and for the log loss, whose
smallest probability is another one in River, each row is predicted over HTTP before it is learned, and River's metric
judges the answers.
"""

import http.client
import json
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
from river import metrics

from keepfit.objects import dump
from tests.published.river_figures import RiverFigure
from tests.published.sklearn_figures import SklearnFigure

WAIT = {"Prefer": "wait=60"}
# Requests that are sent before their answers are read.
PIPELINED = 100


class Service:
    """One connection to a gateway."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Make a request; return its JSON. Any status other than 2xx is an error of the test."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status < 300, (answer.status, content[:1000])
        return json.loads(content)

    def call_all(self, path: str, bodies: Sequence[Any]) -> None:
        """Make a POST request for each body, in order, many before the first answer is read (HTTP pipelining)."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._connection.host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((self._connection.host, self._connection.port), timeout=60) as connection:
            answers = connection.makefile("rb")
            for start in range(0, len(bodies), PIPELINED):
                texts = [json.dumps(body) for body in bodies[start : start + PIPELINED]]
                requests = [f"{head}Content-Length: {len(text)}\r\n\r\n{text}" for text in texts]
                connection.sendall("".join(requests).encode())
                for _ in texts:
                    status = answers.readline()
                    content = answers.read(int(http.client.parse_headers(answers)["Content-Length"]))
                    assert status.startswith(b"HTTP/1.1 2"), (status, content[:1000])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


METRICS = {"ROCAUC": metrics.ROCAUC, "LogLoss": metrics.LogLoss}
# The figure by the name of River's metric, from keepfit's running metrics.
RUNNING: dict[str, Callable[[Any], float]] = {
    "MAE": lambda found: found["mean_absolute_error"],
    # The mean over the outputs.
    "MicroAverage(MAE)": lambda found: found["mean_absolute_error"],
    "RMSE": lambda found: found["root_mean_squared_error"],
    "MSE": lambda found: found["root_mean_squared_error"] ** 2,
    "R2": lambda found: found["r2"],
    "Accuracy": lambda found: found["accuracy"],
    "MacroF1": lambda found: found["f1"],
    "F1": lambda found: binary_f1(found["confusion"]),
}


def binary_f1(confusion: Any) -> float:
    """Return the F1 score of the label True from a confusion matrix."""
    counts, position = confusion["counts"], confusion["classes"].index(True)
    correct = counts[position][position]
    return 2 * correct / (sum(counts[position]) + sum(row[position] for row in counts))


def host(service: Service, figure: RiverFigure, upload_keys: str) -> float:
    """Create the figure's model, teach it row by row, and return the figure."""
    names = list(figure.rows[0][0])
    by_position = _are_positions(names)
    features = None if by_position else {str(name): _feature([x[name] for x, _ in figure.rows]) for name in names}
    recipe = {"object": dump(figure.model, upload_keys), "features": features}
    metadata = {"type": "published", "run": uuid.uuid4().hex}
    path = "/v1/models/" + service.call("POST", "/v1/models", {"metadata": metadata, "recipe": recipe})["hash"]
    *rows, (last, last_target) = [(x, _target(y)) for x, y in figure.rows]
    if figure.published.metric in RUNNING:
        service.call_all(f"{path}/partial_fit", [{"X": [list(x.values())], "y": [y]} for x, y in rows])
        service.call("POST", f"{path}/partial_fit", {"X": [list(last.values())], "y": [last_target]}, WAIT)
        return RUNNING[figure.published.metric](service.call("GET", path)["metrics"])
    metric = METRICS[figure.published.metric]()
    for x, y in figure.rows:
        answer = service.call("POST", f"{path}/predict", {"X": [list(x.values())], "proba": True})
        # River's loop leaves out rows for which the model has no probabilities yet, too.
        if answer["probabilities"][0]:
            metric.update(y, dict(zip(answer["classes"], answer["probabilities"][0], strict=True)))
        service.call("POST", f"{path}/partial_fit", {"X": [list(x.values())], "y": [y]}, WAIT)
    return float(metric.get())


def answer(service: Service, figure: SklearnFigure) -> list[float]:
    """Create the model of `figure`, let it learn the batches; return the numbers that it answers."""
    metadata = {"type": "published", "run": uuid.uuid4().hex}
    path = "/v1/models/" + service.call("POST", "/v1/models", {"metadata": metadata, "recipe": figure.recipe})["hash"]
    for X, y in figure.batches:
        service.call("POST", f"{path}/partial_fit", {"X": X} if y is None else {"X": X, "y": y}, WAIT)
    predictions = service.call("POST", f"{path}/predict", {"X": figure.rows})["predictions"]
    return np.ravel(predictions).tolist()


def _are_positions(names: list[Any]) -> bool:
    return names == list(range(len(names)))


def _target(y: Any) -> Any:
    """Return a target as JSON has it: several targets with numbers as names are a list."""
    return list(y.values()) if isinstance(y, dict) and _are_positions(list(y)) else y


def _feature(values: list[Any]) -> Any:
    """Return the kind of a column that holds `values`."""
    return "category" if any(isinstance(value, str) for value in values) else "number"
