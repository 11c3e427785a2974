"""Classes that turn up late, over HTTP: learned by real workers, and said again as they came in."""

import json
from typing import Any

from tests.gateway.api_client import Api, Twin

RECIPE = {"estimator": "SGDClassifier", "params": {"loss": "log_loss"}, "scaler": "StandardScaler"}
REQUESTS: list[tuple[list[list[float]], list[Any]]] = [
    ([[0.0, 9.0]], ["yes"]),
    ([[9.0, 0.0], [0.5, 8.0]], ["no", "yes"]),
    ([[9.0, 9.0], [8.5, 9.5]], [True, True]),
    ([[-9.0, 0.0], [0.0, -9.0], [-8.0, 1.0]], [1, "1", 1]),
    ([[0.0, 8.0], [9.0, 1.0], [9.0, 8.0], [-9.0, 1.0], [1.0, -9.0]], ["yes", "no", True, 1, "1"]),
]


async def test_late_labels_come_back_from_the_service_as_they_came_in(api: Api, metadata: dict[str, Any]) -> None:
    """A text, a boolean and a number that no recipe named are learned, predicted and scored over HTTP."""
    path, twin = await api.make(metadata, RECIPE), Twin(RECIPE)
    for version, (X, y) in enumerate(REQUESTS, start=1):
        learned = await api.learn(path, X, y)
        twin.learn(X, y)
        assert learned["version"] == version
        answer = await api.predict(path, X, proba=True)
        known = list(dict.fromkeys(json.dumps(label) for _, labels in REQUESTS[:version] for label in labels))
        assert [json.dumps(label) for label in answer["classes"]] == known
        assert json.dumps(answer["predictions"]) == json.dumps(twin.predict(X))
        assert answer["probabilities"] == twin.predict_proba(X)
    # Nothing was put aside on the way, and a label of another model's is no error of this one.
    assert (await api.model(path))["rows_seen"] == sum(len(y) for _, y in REQUESTS)
    X, y = REQUESTS[-1]
    score = (await api.post(f"{path}/score", {"X": X, "y": [*y[:-1], "never seen"]})).of(200)
    assert score["accuracy"] <= 0.8
