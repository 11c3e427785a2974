"""Make documents that come from outside ready to be written: checked, with a time, and with an identity.

Pure, except for the clock and the random name of a request. Owns the three ways to identify a document: by the values
of its keys; by all its fields; or, without a time of its own, by its place in its request. Invariant: the same request,
sent again with the same time and name, has documents with the same identities.
"""

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keepfit.errors import InvalidError
from keepfit.history.mongo import Document
from keepfit.history.writing.checks import check_document
from keepfit.history.writing.line_protocol import Point
from keepfit.history.writing.writer import Existing, identify
from keepfit.times import parse_time


def new_name() -> str:
    """Return a name that no other request has."""
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True)
class Incoming:
    """The documents of one request.

    `keys` are names of the fields that identify a document: one with the same type and the same values replaces it.
    `at` (seconds) is the time of documents without a timestamp, `name` the request's own. Documents of different
    `owner` never replace each other. `taken` are types that only keepfit writes.
    """

    keys: Sequence[str] = ()
    at: float = field(default_factory=time.time)
    name: str = field(default_factory=new_name)
    owner: str = ""
    taken: Collection[str] = ()

    @property
    def existing(self) -> Existing:
        """What becomes of a document that is stored with the same identity."""
        return "replaced" if self.keys else "stays"

    def prepare(self, document: Any, position: int) -> Document:
        """Return a document of the request, at this position, in its stored form.

        Raises
        ------
        InvalidError, MalformedError
            If it may not be stored, or lacks one of the keys.
        """
        checked = self._check(document)
        if missing := [key for key in self.keys if key not in checked]:
            raise InvalidError(f"the document has no field {missing[0]!r}, which is one of its keys.")
        whole = {**checked, "timestamp": parse_time(checked.get("timestamp", self.at), words=False)}
        if self.keys:
            return identify(whole, {key: whole[key] for key in self.keys}, self.owner)
        return identify(whole, None if "timestamp" in checked else {"": [self.name, position]}, self.owner)

    def prepare_point(self, point: Point) -> Document:
        """Return a point of line protocol in the stored form of a document; raises as :meth:`prepare`."""
        document = {**self._check(point.document), "timestamp": parse_time(point.document["timestamp"])}
        return identify(document, point.identity, self.owner)

    def _check(self, document: Any) -> Mapping[str, Any]:
        checked = check_document(document)
        if checked["type"] in self.taken:
            raise InvalidError(f"the type {checked['type']!r} is that of a roll-up, which keepfit writes itself.")
        return checked
