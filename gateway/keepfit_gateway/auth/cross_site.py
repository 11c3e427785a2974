"""Web pages of other sites: which of them may call a gateway from a browser, and under which names it is called.

Owns the check of ``Host`` against DNS rebinding, the check of ``Origin`` against forged requests, and CORS (the Fetch
standard, 3.3). Never reads a key. Invariants: a page of another site reads no answer and changes nothing unless its
origin is in KEEPFIT_CORS_ORIGINS; programs, which send no ``Origin``, are not affected. Both checks are for gateways
without API keys: a browser attaches no key by itself.
"""

import re
from typing import Any

from aiohttp import hdrs, web
from aiohttp.web_request import BaseRequest
from multidict import istr

from keepfit.errors import ForeignOriginError, MalformedError
from keepfit.security.origins import ANY, host_name, is_loopback, origin_of, parse_hosts, parse_origins
from keepfit.settings import Settings
from keepfit_gateway.web import fields
from keepfit_gateway.web.fields import Headers

HOST = re.compile(r"(\[[0-9a-f:.%]+\]|[^\s\[\]:/?#@]+)(?::[0-9]{0,5})?", re.IGNORECASE)
SEC_FETCH_SITE = istr("Sec-Fetch-Site")
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
# Names of hosts that passed; few, but clients choose the port and the case.
PASSED_MAX = 1000

ALLOWED_HEADERS = (
    "Accept, Authorization, Cache-Control, Content-Encoding, Content-Type, Idempotency-Key, If-None-Match, "
    "Inference-Header-Content-Length, Last-Event-ID, Prefer, X-Request-ID"
)
# Pages read these in addition to the fields that the Fetch standard exposes always.
EXPOSED_HEADERS = (
    "Accept, Accept-Encoding, Age, Allow, Cache-Status, Content-Disposition, ETag, Inference-Header-Content-Length, "
    "Location, Model-Rows-Seen, Model-Version, Preference-Applied, RateLimit, RateLimit-Policy, Repr-Digest, "
    "Retry-After, WWW-Authenticate, X-Influxdb-Build, X-Influxdb-Version, X-Request-ID"
)
# Chromium's limit.
PREFLIGHT_S = 7200


class CrossSitePolicy:
    """What one gateway allows to pages of other sites. `keys` says whether requests need an API key.

    `permits_pages` says whether there are any that may read answers.

    Raises
    ------
    SettingsError
        If KEEPFIT_ALLOWED_HOSTS or KEEPFIT_CORS_ORIGINS has an unusable entry.
    """

    def __init__(self, settings: Settings, *, keys: bool) -> None:
        self._hosts = parse_hosts(settings.allowed_hosts)
        self._origins = parse_origins(settings.cors_origins)
        named = bool(self._hosts) or (not keys and is_loopback(settings.host))
        self._checks_host = named and ANY not in self._hosts
        self._checks_origin = not keys
        self._passed: set[str] = set()
        self.permits_pages = bool(self._origins)
        self.fields_without_origin = "Vary: Origin\r\n" if self.permits_pages and ANY not in self._origins else ""

    def check(self, request: BaseRequest) -> None:
        """Refuse a request that names another host, or that a page of another site may have forged.

        Raises
        ------
        web.HTTPMisdirectedRequest
            If the gateway is not called by this host name.
        ForeignOriginError
            If the page that sent a request to change something is of another site.
        """
        headers = request.headers
        if self._checks_host and headers.get(hdrs.HOST) not in self._passed:
            self._check_host(request)
        if (
            self._checks_origin
            and (hdrs.ORIGIN in headers or SEC_FETCH_SITE in headers)
            and request.method not in SAFE_METHODS
        ):
            self._check_origin(request)

    def passes(self, headers: Headers) -> bool:
        """Return whether :meth:`check` would pass, without checking what it has not checked before.

        CORS then adds :attr:`fields_without_origin` to the answer.
        """
        return (
            (not self._checks_host or headers.get(hdrs.HOST) in self._passed)
            and hdrs.ORIGIN not in headers
            and SEC_FETCH_SITE not in headers
        )

    def allows(self, request: BaseRequest) -> bool:
        """Return whether CORS permits the page that sent `request` to read its answer."""
        if hdrs.ORIGIN not in request.headers:
            return False
        return ANY in self._origins or origin_of(request.headers[hdrs.ORIGIN]) in self._origins

    def is_preflight(self, request: BaseRequest) -> bool:
        """Return whether a browser asks before it sends the request of a page that CORS permits."""
        return (
            request.method == hdrs.METH_OPTIONS
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
            and self.allows(request)
        )

    def cors_fields(self, request: BaseRequest, answer: Any) -> list[tuple[str, str]]:
        """Return the header fields that CORS adds to an answer."""
        added = [] if ANY in self._origins else [("Vary", "Origin")]
        if self.allows(request):
            origin = ANY if ANY in self._origins else request.headers[hdrs.ORIGIN]
            added.append(("Access-Control-Allow-Origin", origin))
            if self.is_preflight(request):
                if hdrs.ALLOW in answer.headers:
                    added.append(("Access-Control-Allow-Methods", answer.headers[hdrs.ALLOW]))
                added.append(("Access-Control-Allow-Headers", ALLOWED_HEADERS))
                added.append(("Access-Control-Max-Age", str(PREFLIGHT_S)))
            else:
                added.append(("Access-Control-Expose-Headers", EXPOSED_HEADERS))
        return added

    def _check_host(self, request: BaseRequest) -> None:
        sent = request.headers.get(hdrs.HOST)
        if sent is None:
            # Only HTTP/1.0 allows that, which no browser speaks.
            return
        found = HOST.fullmatch(sent)
        if found is None:
            raise MalformedError(f"The Host {sent!r} is not a host name or address with an optional port.")
        name = host_name(found[1])
        if name in self._hosts or is_loopback(name) or name.endswith(".localhost") or name == _own_address(request):
            if len(self._passed) < PASSED_MAX:
                self._passed.add(sent)
            return
        raise web.HTTPMisdirectedRequest(
            text=f"This gateway is not called {name!r}: use localhost or a loopback address, or add the name to "
            "KEEPFIT_ALLOWED_HOSTS."
        )

    def _check_origin(self, request: BaseRequest) -> None:
        headers = request.headers
        origin = fields.single(headers, hdrs.ORIGIN)
        site = headers.get(SEC_FETCH_SITE)
        if self.allows(request) or site in ("same-origin", "none"):
            return
        if origin is None:
            if site is None:
                return
            origin = f"another site ({site})"
        elif site is None:
            scheme, _, _ = origin.partition("://")
            if origin_of(origin) == origin_of(f"{scheme}://{headers.get(hdrs.HOST, '')}"):
                return
        raise ForeignOriginError(
            f"A page of {origin} may not change anything here: add its origin to KEEPFIT_CORS_ORIGINS, or call the "
            "gateway from a server."
        )


def _own_address(request: BaseRequest) -> str | None:
    """Return the address on which a request arrived: a name of an attacker's page cannot be one."""
    own = None if request.transport is None else request.transport.get_extra_info("sockname")
    return own[0] if own else None
