"""Trained objects as files: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit_gateway import schemas
from keepfit_gateway.handlers import estimators
from keepfit_gateway.parameters import METADATA_NAME
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
)  # fmt: skip
