"""Models and dead letters: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit.security.api_keys import ADMIN
from keepfit_gateway import schemas
from keepfit_gateway.handlers import curve, dead_letters, model_list, models, traffic
from keepfit_gateway.parameters import (
    CURVE,
    DEAD_AFTER,
    DEAD_LIMIT,
    HASH,
    IF_NONE_MATCH,
    KEY,
    LIMIT,
    METADATA,
    MODELS_AFTER,
    PREFER_PATCH,
    SEARCH,
    SORT,
    TIMEOUT,
)
from keepfit_gateway.routes.route import (
    BODY_ERRORS,
    BOUND_FILTERED,
    BOUND_METADATA,
    DEAD_LETTERS,
    LEARN_ERRORS,
    MODELS,
    Route,
)

PREFERRED = {200: ("Preference-Applied",)}

ROUTES = (
    Route(
        "POST", "/v1/models", models.create_model, MODELS, "Create a model",
        "201 if it was created, 200 if it exists with this recipe, 409 if it exists with another one.",
        {200: schemas.ModelAnswer, 201: schemas.ModelAnswer}, schemas.CreateModel, (*BODY_ERRORS, 409, 503, 504),
        headers={200: ("Location",), 201: ("Location",)}, bound_keys=BOUND_METADATA,
    ),
    Route(
        "GET", "/v1/models", model_list.list_models, MODELS, "List models",
        "In order of their hash, or as `sort` says. `metadata` selects models by values of their metadata; any other "
        "query parameter does the same: `brand=nike`.",
        {200: schemas.ModelList}, errors=(400, 422, 503),
        own_parameters=(METADATA, SEARCH, SORT, LIMIT, MODELS_AFTER),
        bound_keys=BOUND_FILTERED,
    ),
    Route(
        "GET", "/v1/models/{hash}", models.get_model, MODELS, "Describe a model",
        "Metadata, the recipe in force, progress and running metrics. A model that Redis lost is restored first.",
        {200: schemas.ModelAnswer}, errors=(400, 404, 503, 504), own_parameters=(HASH,),
    ),
    Route(
        "GET", "/v1/models/{hash}/curve", curve.show_curve, MODELS, "Learning curve",
        "The running metrics of a model and of its baseline, as they were after some of its rows, and when: at most "
        "1,000 points, which a restore restores with the model. 304 if the client has the newest answer.",
        {200: schemas.CurveAnswer, 304: None}, errors=(400, 404, 422, 429, 503, 504),
        own_parameters=(HASH, *CURVE, TIMEOUT, IF_NONE_MATCH),
        headers=dict.fromkeys((200, 304), ("ETag", "Cache-Control")),
    ),
    Route(
        "GET", "/v1/models/{hash}/traffic", traffic.show_traffic, MODELS, "Traffic of a model",
        "Rows in and out, predictions by source and their latency, in the last minute and of all gateways.",
        {200: schemas.ModelTraffic}, errors=(400, 404, 503, 504), own_parameters=(HASH,),
    ),
    Route(
        "PATCH", "/v1/models/{hash}", models.patch_model, MODELS, "Change parameters or code of a model",
        "In order with its rows. `object` replaces the code of an uploaded object, and `state` says whether it keeps "
        "what was learned or learns all rows again. "
        "200 with the model once the change is made, 202 if that takes longer than "
        "`Prefer: wait=SECONDS` (5 seconds by default).",
        {200: schemas.ModelAnswer, 202: schemas.ChangeAnswer}, schemas.PatchModel, LEARN_ERRORS,
        (HASH, PREFER_PATCH, KEY), PREFERRED,
    ),
    Route(
        "DELETE", "/v1/models/{hash}", models.delete_model, MODELS, "Delete a model",
        "From Redis and from the registry; its snapshots stay.",
        {204: None}, errors=(400, 404, 503), own_parameters=(HASH,),
    ),
    Route(
        "GET", "/v1/models/{hash}/dead", dead_letters.list_dead, DEAD_LETTERS, "List dead letters",
        "Oldest first. It shows rows, so it needs the scope `admin`.",
        {200: schemas.DeadAnswer}, errors=(400, 404, 503, 504), own_parameters=(HASH, DEAD_LIMIT, DEAD_AFTER),
        scope=ADMIN,
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/retry", dead_letters.retry_dead, DEAD_LETTERS, "Retry dead letters",
        "Move them to the end of the inbox: those named by `ids`, or the oldest 128.",
        {202: schemas.RetriedAnswer}, schemas.RetryDead, LEARN_ERRORS, (HASH,),
    ),
    Route(
        "POST", "/v1/models/{hash}/dead/discard", dead_letters.discard_dead, DEAD_LETTERS, "Delete dead letters",
        "For good: those named by `ids`.",
        {200: schemas.DiscardedAnswer}, schemas.DiscardDead, (*BODY_ERRORS, 404, 503), (HASH,),
    ),
)  # fmt: skip
