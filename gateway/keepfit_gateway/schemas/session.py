"""Forms of sessions."""

from typing import Annotated

from msgspec import Meta, Struct

from keepfit_gateway.schemas.requests import Form
from keepfit_gateway.schemas.values import Timestamp


class BeginSession(Form, kw_only=True):
    """The API key of the session."""

    key: Annotated[str, Meta(min_length=1, max_length=512, description="An API key.", examples=["kf_…"])]


class CallerAnswer(Struct, kw_only=True):
    """Who calls: the name and the scopes of the API key, and the end of the session, null without one."""

    name: str
    scopes: list[str]
    ends: Timestamp | None
