"""Trained objects as files: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit.security.api_keys import ADMIN
from keepfit_gateway import schemas
from keepfit_gateway.handlers import estimators
from keepfit_gateway.parameters import FORMAT, HASH, IF_NONE_MATCH, METADATA_NAME, PART
from keepfit_gateway.routes.route import BODY_ERRORS, BOUND_METADATA, MODELS, Route

ROUTES = (
    Route(
        "POST", "/v1/estimator", estimators.upload_estimator, MODELS, "Upload a trained estimator",
        "The body is a file of skops, or a signed pickle, with a fitted object that has `partial_fit`. It becomes the "
        "first version of a model: 201 if that was created, 200 if it exists and was created from the same file, 409 "
        "if it exists with a recipe or was created from another file.",
        {200: schemas.ModelAnswer, 201: schemas.ModelAnswer}, errors=(*BODY_ERRORS, 409, 429, 503, 504),
        own_parameters=(METADATA_NAME,), headers={200: ("Location",), 201: ("Location",)}, file=True,
        bound_keys=BOUND_METADATA,
    ),
    Route(
        "GET", "/v1/models/{hash}/estimator", estimators.download_estimator, MODELS, "Download a model",
        "As a fitted object of scikit-learn or River that answers as the model does, in a file of skops or a signed "
        "pickle. `part=estimator` is the estimator alone, which takes rows as the model encodes them. It is all that "
        "the model has learned, so it needs the scope `admin`.",
        {200: bytes, 304: None}, errors=(400, 404, 409, 422, 429, 503, 504),
        own_parameters=(HASH, FORMAT, PART, IF_NONE_MATCH),
        headers={
            200: ("ETag", "Model-Version", "Model-Rows-Seen", "Repr-Digest", "Content-Disposition"),
            304: ("ETag",),
        },
        media_type="application/octet-stream", scope=ADMIN,
    ),
)  # fmt: skip
