"""The Open Inference Protocol, version 2: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit.security.api_keys import OPEN, PREDICT
from keepfit_gateway import schemas
from keepfit_gateway.handlers import inference_protocol
from keepfit_gateway.parameters import CACHE_CONTROL, HASH, HEADER_LENGTH, VERSION
from keepfit_gateway.routes.route import ASK_ERRORS, PROTOCOL, Route

INFERRED = {200: ("Inference-Header-Content-Length", "Age", "Cache-Status")}

MODEL_TEXT = "Its inputs and outputs with their datatypes, and its live version. -1 stands for any length."
READY_TEXT = "200 if the model has learned rows, so that it can predict; else 409."
INFER_TEXT = (
    "One prediction for each row, by the newest version of the model. The rows are tensors: `X`, or one for each "
    "column of the recipe. Outputs are `predictions` and, if they are named, `probabilities`, `classes` and `scores`. "
    "The bytes of binary tensors follow the JSON, whose length is then in `Inference-Header-Content-Length`."
)
VERSION_TEXT = "404 unless `version` is the live version."

ROUTES = (
    Route(
        "GET", "/v2", inference_protocol.server_metadata, PROTOCOL, "Describe the server",
        "Its name, its version, and the extensions of the protocol that it has.",
        {200: schemas.ServerMetadata}, scope=OPEN,
    ),
    Route(
        "GET", "/v2/health/live", inference_protocol.server_live, PROTOCOL, "Liveness of the server",
        "200 if the process responds.",
        {200: schemas.ServerLive}, scope=OPEN,
    ),
    Route(
        "GET", "/v2/health/ready", inference_protocol.server_ready, PROTOCOL, "Readiness of the server",
        "200 if the service can learn and predict, 503 if not; `/readyz` names what is unavailable.",
        {200: schemas.ServerReady, 503: schemas.ServerReady}, scope=OPEN,
    ),
    Route(
        "GET", "/v2/models/{hash}", inference_protocol.model_metadata, PROTOCOL, "Describe the tensors of a model",
        MODEL_TEXT, {200: schemas.ModelMetadata}, errors=(404, 503, 504), own_parameters=(HASH,),
    ),
    Route(
        "GET", "/v2/models/{hash}/versions/{version}", inference_protocol.model_metadata, PROTOCOL,
        "Describe the tensors of a version", f"{MODEL_TEXT} {VERSION_TEXT}",
        {200: schemas.ModelMetadata}, errors=(404, 503, 504), own_parameters=(HASH, VERSION),
    ),
    Route(
        "GET", "/v2/models/{hash}/ready", inference_protocol.model_ready, PROTOCOL, "Readiness of a model",
        READY_TEXT, {200: schemas.ModelReady}, errors=(404, 409, 503, 504), own_parameters=(HASH,),
    ),
    Route(
        "GET", "/v2/models/{hash}/versions/{version}/ready", inference_protocol.model_ready, PROTOCOL,
        "Readiness of a version", f"{READY_TEXT} {VERSION_TEXT}",
        {200: schemas.ModelReady}, errors=(404, 409, 503, 504), own_parameters=(HASH, VERSION),
    ),
    Route(
        "POST", "/v2/models/{hash}/infer", inference_protocol.infer, PROTOCOL, "Predict tensors", INFER_TEXT,
        {200: schemas.InferenceAnswer}, schemas.InferenceRequest, ASK_ERRORS, (HASH, HEADER_LENGTH, CACHE_CONTROL),
        INFERRED, tensors=True, scope=PREDICT,
    ),
    Route(
        "POST", "/v2/models/{hash}/versions/{version}/infer", inference_protocol.infer, PROTOCOL,
        "Predict tensors with a version", f"{INFER_TEXT} {VERSION_TEXT}",
        {200: schemas.InferenceAnswer}, schemas.InferenceRequest, ASK_ERRORS,
        (HASH, VERSION, HEADER_LENGTH, CACHE_CONTROL), INFERRED, tensors=True, scope=PREDICT,
    ),
)  # fmt: skip
