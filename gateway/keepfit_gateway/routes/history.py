"""What writes to the history: its routes, with those that clients of InfluxDB call.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit.security.api_keys import LEARN, OPEN
from keepfit_gateway.handlers import history_writing, influx
from keepfit_gateway.parameters import HISTORY_DELETION, HISTORY_KEYS, INFLUX_WRITE, KEY
from keepfit_gateway.routes.route import BODY_ERRORS, BOUND_FILTERED, HISTORY_TAG, INFLUX, Route
from keepfit_gateway.schemas.history import DeletedAnswer, InfluxHealth, NewDocuments, StoredAnswer

STORE_TEXT = (
    "One document, a list of them, or a stream with one on each line (`application/x-ndjson`), of any length. Each has "
    "a `type`, a `timestamp` (now without it) and any other fields. Of a JSON body all are stored or none; of a stream "
    "those before the first that is wrong, and the error says how many. With `keys` a document replaces the one that "
    "was stored with the same keys, type and values of them. A document that is sent twice is stored once; send an "
    "`Idempotency-Key` if it has no timestamp."
)
WRITE_TEXT = (
    "Points in InfluxDB's line protocol: the measurement is the `type`, tags and fields are fields. A point with the "
    "measurement, tags and time of a stored one changes its fields. 204 if all are stored; 400 names lines that are "
    "wrong, and the others are stored. The API key may be sent as `Authorization: Token KEY`."
)

ROUTES = (
    Route(
        "POST", "/v1/history", history_writing.store_documents, HISTORY_TAG, "Store documents", STORE_TEXT,
        {200: StoredAnswer}, NewDocuments, (*BODY_ERRORS, 429, 503, 504), (HISTORY_KEYS, KEY),
        scope=LEARN, bound_keys=BOUND_FILTERED, lines="application/x-ndjson",
    ),
    Route(
        "DELETE", "/v1/history", history_writing.delete_documents, HISTORY_TAG, "Delete documents",
        "Documents that users stored, and never those of snapshots: those that match all filters, newest first. "
        "`metadata`, and any other query parameter, filters as in a query. A call takes a few seconds at most and says "
        "whether it is complete.",
        {200: DeletedAnswer}, errors=(400, 422, 503), own_parameters=HISTORY_DELETION, bound_keys=BOUND_FILTERED,
    ),
    Route(
        "POST", "/api/v2/write", influx.write_points, INFLUX, "Write points", WRITE_TEXT,
        {204: None}, errors=(400, 408, 413, 415, 422, 429, 503), own_parameters=INFLUX_WRITE,
        scope=LEARN, bound_keys=BOUND_FILTERED, lines="text/plain",
    ),
    Route(
        "GET", "/ping", influx.ping, INFLUX, "Liveness, as InfluxDB has it", "204 if the process responds.",
        {204: None}, headers={204: ("X-Influxdb-Version", "X-Influxdb-Build")}, scope=OPEN,
    ),
    Route(
        "GET", "/health", influx.influx_health, INFLUX, "Readiness, as InfluxDB has it",
        "200 if points can be written, 503 if not; `/readyz` is about learning and predicting.",
        {200: InfluxHealth, 503: InfluxHealth}, scope=OPEN,
    ),
)  # fmt: skip
