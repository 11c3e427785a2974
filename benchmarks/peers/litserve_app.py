"""The model behind LitServe, with one process for the API server and one per worker."""

import os
from typing import Any

import litserve

from benchmarks.model import InProcess

BATCH_REQUESTS_MAX = 64


class Predict(litserve.LitAPI):
    """Decode requests, predict a batch of them, and encode the answers."""

    def setup(self, device: str) -> None:
        """Create the model."""
        self._model = InProcess()

    def decode_request(self, request: dict[str, Any], **_: Any) -> list[list[float]]:
        """Return the rows of the body."""
        X: list[list[float]] = request["X"]
        return X

    def predict(self, X: Any, **_: Any) -> Any:
        """Predict the rows of a batch."""
        return self._model.predict(X).tolist()

    def batch(self, inputs: list[list[list[float]]]) -> list[list[float]]:
        """Concatenate the rows of several requests."""
        return [row for X in inputs for row in X]

    def unbatch(self, output: list[float]) -> list[list[float]]:
        """Return one prediction per request."""
        return [[prediction] for prediction in output]

    def encode_response(self, output: list[float], **_: Any) -> dict[str, list[float]]:
        """Return the answer."""
        return {"predictions": output}


if __name__ == "__main__":
    # Without a timeout, a batch consists of the requests that are already waiting.
    api = Predict(max_batch_size=BATCH_REQUESTS_MAX, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=2)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
