"""Probes, metrics, workers and the description of the API: their routes.

Owns no behaviour. A part of the table of :mod:`keepfit_gateway.routes`.
"""

from keepfit.security.api_keys import OPEN
from keepfit_gateway import schemas
from keepfit_gateway.handlers import api_page as page_handlers
from keepfit_gateway.handlers import dashboard, events, operations, system
from keepfit_gateway.parameters import EVENTS, IF_NONE_MATCH
from keepfit_gateway.routes.route import BOUND_FILTERED, OPERATION, Route
from keepfit_gateway.schemas.values import OpenApiDocument

ROUTES = (
    Route(
        "GET", "/livez", operations.livez, OPERATION, "Liveness probe", "200 if the process responds.",
        {200: schemas.Live}, scope=OPEN,
    ),
    Route(
        "GET", "/readyz", operations.readyz, OPERATION, "Readiness probe",
        "Whether the service can learn and predict: 200 with `status` `ok` or `degraded`, 503 with `unavailable`.",
        {200: schemas.Ready, 503: schemas.Ready}, scope=OPEN,
    ),
    Route(
        "GET", "/v1/workers", operations.list_workers, OPERATION, "List workers",
        "The worker processes that are alive, on all machines. One that died is listed until its supervisor removes "
        "it, or its record expires.",
        {200: schemas.WorkerList}, errors=(503,),
    ),
    Route(
        "GET", "/v1/system", system.show_system, OPERATION, "State of the service",
        "Gateways, workers, models, waiting work, dependencies and snapshots, of all machines. It answers 200 also if "
        "something fails; `ready` says what.",
        {200: schemas.SystemAnswer}, errors=(503,),
    ),
    Route(
        "GET", "/v1/events", events.stream_events, OPERATION, "Listen to events",
        "Server-sent events about models and workers, of all gateways and machines, as they happen. Each `data` is the "
        "JSON of an event. A client that connects again continues after the last event that it got.",
        {200: schemas.EventMessage}, errors=(400, 429, 503), own_parameters=EVENTS,
        headers={200: ("Cache-Control",)}, media_type="text/event-stream", bound_keys=BOUND_FILTERED,
    ),
    Route(
        "GET", "/metrics", operations.show_metrics, OPERATION, "Metrics",
        "Of this gateway and its dependencies, in the text format of Prometheus.",
        {200: str}, errors=(503,), media_type="text/plain",
    ),
    Route(
        "GET", "/openapi.json", operations.openapi, OPERATION, "This document", "OpenAPI 3.1, in JSON.",
        {200: OpenApiDocument}, errors=(503,), scope=OPEN,
    ),
    Route(
        "GET", "/", dashboard.show_dashboard, OPERATION, "Dashboard",
        "A page, in HTML, that shows models as they learn, changes and restores them, and shows the state of the "
        "service. It needs no other server; its calls need an API key where there are any.",
        {200: str, 304: None}, errors=(503,), own_parameters=(IF_NONE_MATCH,),
        headers=dict.fromkeys((200, 304), ("ETag", "Cache-Control")), scope=OPEN, media_type="text/html",
    ),
    Route(
        "GET", "/docs", page_handlers.docs, OPERATION, "API page",
        "This document as a page, in HTML, from which a browser can send requests. It needs no other server.",
        {200: str, 304: None}, errors=(503,), own_parameters=(IF_NONE_MATCH,),
        headers=dict.fromkeys((200, 304), ("ETag", "Cache-Control")), scope=OPEN, media_type="text/html",
    ),
)  # fmt: skip
