"""River behind Flask, its state pickled in Redis: a stand-in for chantilly with its Redis storage, in current versions.

Each call reads the model from Redis, and a call that learned writes it back. One process: several would overwrite what
the others have learned.
"""

import os
import pickle
import threading
from typing import Any

from flask import Flask, request
from redis import Redis
from river import linear_model, preprocessing

from benchmarks.model import TRAINED_ROWS, rows

KEY = "model"

app = Flask(__name__)
store = Redis.from_url(os.environ["REDIS_URL"])
lock = threading.Lock()


def trained_model() -> Any:
    """Return a model that has learned the rows that all models learn before a measurement."""
    model = preprocessing.StandardScaler() | linear_model.LinearRegression()
    for row, target in zip(*rows(TRAINED_ROWS), strict=True):
        model.learn_one(dict(zip("abcd", row, strict=True)), target)
    return model


store.set(KEY, pickle.dumps(trained_model()))


@app.get("/health")
def health() -> dict[str, str]:
    """Answer that the server is ready."""
    return {"status": "ok"}


def load_model() -> Any:
    """Load the model from Redis."""
    state: Any = store.get(KEY)
    return pickle.loads(state)  # noqa: S301 - our own Redis


@app.post("/predict")
def predict() -> dict[str, float]:
    """Predict one row."""
    return {"prediction": load_model().predict_one(request.get_json()["features"])}


@app.post("/learn")
def learn() -> dict[str, int]:
    """Learn one row."""
    body = request.get_json()
    with lock:
        model = load_model()
        model.learn_one(body["features"], body["ground_truth"])
        store.set(KEY, pickle.dumps(model))
    return {"learned": 1}
