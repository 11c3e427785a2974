"""Handler of the list of models: in order of their hash, or of what changes while they learn.

Owns the query parameters of this call. Invariant: the work of a request is bounded by its page; only the order and the
search look at all models, in memory (:mod:`keepfit_gateway.model_overview`).
"""

import re

from aiohttp import web

from keepfit.errors import MalformedError, UnavailableError
from keepfit.jobs import traffic
from keepfit_gateway import schemas
from keepfit_gateway.handlers.inputs import HASH, Page, page_parameters
from keepfit_gateway.model_overview import SORTS, Place, Sort, Wanted
from keepfit_gateway.service import SERVICE, Service
from keepfit_gateway.web.responses import encode_items, json_response

SORT, SEARCH = "sort", "search"
# The place after which a page begins, in another order than that of the hash.
PLACE = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-][0-9]{1,3})?:[0-9a-f]{64}")
SEARCH_LENGTH_MAX = 256


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: list models, filtered by their metadata."""
    service = request.app[SERVICE]
    lookup = service.models
    sort, words = _sort(request), _words(request)
    page = page_parameters(request, HASH if sort == "hash" else PLACE, filters=True, own=(SORT, SEARCH))
    if sort == "hash" and not words:
        models, following = await lookup.page(page.filters, page.limit, page.after)
    else:
        where = tuple((key, (text,)) for key, text in page.filters.items())
        models, place = await lookup.ordered_page(sort, Wanted(words, where), page.limit, _after(sort, page))
        rates = await _rates(service, [model["hash"] for model in models])
        models = [{**model, "rows_out_per_s": rates.get(model["hash"])} for model in models]
        following = None if place is None else place.hash if sort == "hash" else str(place)
    return json_response(schemas.ModelPage(models=await encode_items(models), next=following))


async def _rates(service: Service, hashes: list[str]) -> dict[str, float]:
    """Return the rows that are predicted each second, by hash; none without the queue's Redis."""
    try:
        found = await service.queues.traffic(hashes)
    except UnavailableError:
        return {}
    return {model_hash: traffic.rows_out(counts) / traffic.WINDOW_S for model_hash, counts in found.items()}


def _after(sort: Sort, page: Page) -> Place | None:
    if not page.after:
        return None
    return Place(0.0, page.after) if sort == "hash" else Place.parse(page.after)


def _sort(request: web.Request) -> Sort:
    asked = request.query.get(SORT, SORTS[0])
    for sort in SORTS:
        if asked == sort:
            return sort
    raise MalformedError(f"sort must be one of {', '.join(SORTS)}.")


def _words(request: web.Request) -> tuple[str, ...]:
    text = request.query.get(SEARCH, "")
    if len(text) > SEARCH_LENGTH_MAX:
        raise MalformedError(f"search has {len(text)} characters; at most {SEARCH_LENGTH_MAX} are possible.")
    return tuple(dict.fromkeys(text.lower().split()))
