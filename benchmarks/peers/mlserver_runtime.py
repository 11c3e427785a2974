"""The model as a custom runtime of MLServer, called with the Open Inference Protocol v2."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.model import InProcess


class Runtime(MLModel):
    """Runtime that MLServer loads; :mod:`benchmarks.systems` has its settings."""

    async def load(self) -> bool:
        """Create the model."""
        self._model = InProcess()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Predict the rows of the first input."""
        X = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("predictions", self._model.predict(X))
        return InferenceResponse(model_name=self.name, outputs=[output])
