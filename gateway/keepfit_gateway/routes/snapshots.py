"""Snapshots and the history: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit_gateway import schemas
from keepfit_gateway.handlers import history, history_stream, snapshots
from keepfit_gateway.parameters import HASH, HISTORY, SNAPSHOTS_AFTER, SNAPSHOTS_LIMIT
from keepfit_gateway.routes.route import BODY_ERRORS, BOUND_FILTERED, HISTORY_TAG, SNAPSHOTS, Route

ROUTES = (
    Route(
        "POST", "/v1/models/{hash}/snapshot", snapshots.make_snapshot, SNAPSHOTS, "Save a snapshot now",
        "201 also if this version was saved already; 409 before the first row.",
        {201: schemas.SnapshotAnswer}, errors=(400, 404, 409, 429, 503, 504), own_parameters=(HASH,),
        headers={201: ("Location",)},
    ),
    Route(
        "GET", "/v1/models/{hash}/snapshots", snapshots.list_snapshots, SNAPSHOTS, "List snapshots",
        "Of one model, newest first.",
        {200: schemas.SnapshotList}, errors=(400, 404, 503), own_parameters=(HASH, SNAPSHOTS_LIMIT, SNAPSHOTS_AFTER),
    ),
    Route(
        "POST", "/v1/models/{hash}/restore", snapshots.restore_model, SNAPSHOTS, "Restore a snapshot",
        "The newest one not later than `at`, or the one of `version`, which also rewinds a live model. Without both: "
        "what Redis lost; 409 if the model is live and has learned since its snapshot.",
        {200: schemas.RestoredAnswer}, schemas.RestoreModel, (*BODY_ERRORS, 404, 409, 429, 503, 504), (HASH,),
        body_optional=True,
    ),
    Route(
        "GET", "/v1/history", history.list_history, HISTORY_TAG, "Query the history",
        "Documents, newest first; or, with `every`, points aggregated from their numbers. `metadata` selects documents "
        "by values of their metadata; any other query parameter selects by metadata or field: `brand=nike`. With "
        "`Accept: application/x-ndjson` or `text/csv` all documents, or `limit` of them, are sent as lines while they "
        "are read.",
        {200: schemas.HistoryAnswer}, errors=(400, 422, 503), own_parameters=HISTORY,
        bound_keys=BOUND_FILTERED, streams=history_stream.MEDIA_TYPES,
    ),
)  # fmt: skip
