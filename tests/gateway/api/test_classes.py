"""Late classes over HTTP: real workers learn them, and answers return them with their original type."""

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


async def test_late_classes_are_returned_with_their_original_type(api: Api, metadata: dict[str, Any]) -> None:
    """A string, a boolean and a number that the recipe does not name are learned, predicted and scored."""
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
    # Nothing was put aside, and an unknown label in a score is not an error.
    assert (await api.model(path))["rows_seen"] == sum(len(y) for _, y in REQUESTS)
    X, y = REQUESTS[-1]
    score = (await api.post(f"{path}/score", {"X": X, "y": [*y[:-1], "never seen"]})).of(200)
    assert score["accuracy"] <= 0.8
