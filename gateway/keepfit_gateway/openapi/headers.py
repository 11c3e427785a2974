"""Header fields of answers.

Owns their descriptions, and which answers have those that do not depend on the operation.
"""

from collections.abc import Iterable
from typing import Any


def _header(description: str, schema: dict[str, Any] | None = None, *, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema or {"type": "string"}}


# By the name of the component: the name of the field without hyphens.
COMPONENTS = {
    "XRequestID": _header("Id of the request: its `X-Request-ID`, or a new one.", required=True),
    "RetryAfter": _header("Seconds after which the request may be repeated.", {"type": "integer", "minimum": 0}),
    "WWWAuthenticate": _header("`Bearer`."),
    "Accept": _header("Media types that are supported, if that of the body is not."),
    "AcceptEncoding": _header("Codings that are supported, if that of the body is not."),
    "RateLimitPolicy": _header("Limit of the API key: `q` requests in `w` seconds."),
    "RateLimit": _header("Rest of the API key's limit: `r` requests; full again in `t` seconds."),
    "Location": _header("Path of what was created."),
    "PreferenceApplied": _header("The preference that was applied: `wait=SECONDS`, if one was sent."),
    "ETag": _header("Tag of this answer: send it as `If-None-Match`.", required=True),
    "Age": _header(
        "Age of an answer from the cache in seconds, or time since which it may be outdated.",
        {"type": "integer", "minimum": 0},
    ),
    "CacheStatus": _header(
        "Only if the answer is sent instead of an error (`stale-if-error`): `ttl` is negative, since when it may be "
        "outdated in seconds; `detail` names the error (RFC 9211)."
    ),
    "InferenceHeaderContentLength": _header(
        "Number of bytes of the JSON, if bytes of tensors follow it.", {"type": "integer", "minimum": 0}
    ),
    "ModelVersion": _header("Version of the model in the file.", {"type": "integer", "minimum": 0}, required=True),
    "ModelRowsSeen": _header("Rows that it had learned.", {"type": "integer", "minimum": 0}, required=True),
    "ReprDigest": _header("SHA-256 of the file (RFC 9530).", required=True),
    "ContentDisposition": _header("`attachment`, with a name for the file."),
    "CacheControl": _header(
        "`no-cache`: ask with `If-None-Match` before you use the answer again; `no-store`: do not store it."
    ),
    "XInfluxdbVersion": _header("Version of InfluxDB whose calls these are.", required=True),
    "XInfluxdbBuild": _header("`keepfit`.", required=True),
    "SetCookie": _header("The cookie of a session, or its removal. A gateway without API keys sets none."),
}
BY_STATUS = {
    401: ("WWW-Authenticate",),
    415: ("Accept", "Accept-Encoding"),
    429: ("Retry-After",),
    503: ("Retry-After",),
}


def references(status: int | None, more: Iterable[str], *, keys: bool) -> dict[str, Any]:
    """Return the header fields of an answer with `status` (None: of any other problem), `more` of them by name."""
    limits = ("RateLimit-Policy", "RateLimit") if keys else ()
    by_status = BY_STATUS.get(status, ()) if status is not None else ("Retry-After",)
    names = dict.fromkeys(["X-Request-ID", *by_status, *more, *limits])
    return {name: {"$ref": f"#/components/headers/{name.replace('-', '')}"} for name in names}
