"""Forms of what is written to the history.

Owns their shapes. :mod:`keepfit.history.writing.checks` says what a document may hold.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

NewDocument = Annotated[dict[str, Any], Meta(title="NewDocument")]
NewDocuments = NewDocument | Annotated[list[NewDocument], Meta(min_length=1)]


class StoredAnswer(Struct, kw_only=True):
    """All documents of the request are stored."""

    stored: Annotated[int, Meta(description="Number of documents of the request.")]


class DeletedAnswer(Struct, kw_only=True):
    """Documents are deleted; unless `complete`, send the same request again for the others."""

    deleted: Annotated[int, Meta(description="Number of documents that this request deleted.")]
    complete: Annotated[bool, Meta(description="Whether no document is left that matches.")]


class InfluxError(Struct, kw_only=True):
    """An error, as clients of InfluxDB read it."""

    code: str
    message: str


class InfluxHealth(Struct, kw_only=True):
    """Whether points can be written, as clients of InfluxDB read it."""

    name: str
    message: str
    status: Annotated[str, Meta(description="`pass` or `fail`.")]
    version: str
