"""The model behind LitServe, its API server and its workers each a process."""

import os
from typing import Any

import litserve

from benchmarks.model import InProcess

BATCH_REQUESTS_MAX = 64


class Predict(litserve.LitAPI):
    """How a request becomes rows, rows become predictions, and those an answer; `predict` gets a whole batch."""

    def setup(self, device: str) -> None:
        """Make the model."""
        self._model = InProcess()

    def decode_request(self, request: dict[str, Any], **_: Any) -> list[list[float]]:
        """Take the rows out of the body."""
        X: list[list[float]] = request["X"]
        return X

    def predict(self, X: Any, **_: Any) -> Any:
        """Predict rows."""
        return self._model.predict(X).tolist()

    def batch(self, inputs: list[list[list[float]]]) -> list[list[float]]:
        """Join the rows of several requests."""
        return [row for X in inputs for row in X]

    def unbatch(self, output: list[float]) -> list[list[float]]:
        """Give each request its prediction."""
        return [[prediction] for prediction in output]

    def encode_response(self, output: list[float], **_: Any) -> dict[str, list[float]]:
        """Make the answer."""
        return {"predictions": output}


if __name__ == "__main__":
    # Without a timeout, a batch is what waits already.
    api = Predict(max_batch_size=BATCH_REQUESTS_MAX, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
