"""The model as a BentoML service."""

import bentoml

from benchmarks.model import InProcess


@bentoml.service(workers=2)
class Predict:
    """Service that `bentoml serve` runs."""

    def __init__(self) -> None:
        self._model = InProcess()

    @bentoml.api
    def predict(self, X: list[list[float]]) -> dict[str, list[float]]:
        """Predict rows."""
        return {"predictions": self._model.predict(X).tolist()}
