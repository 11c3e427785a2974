"""History: the registry of models and snapshots, and documents and numbers by time, in MongoDB.

Exports the public names. :mod:`keepfit.history.registry.registry` stores models and snapshots,
:mod:`keepfit.history.timeline` documents by time; :mod:`keepfit.history.mongo` connects to the server.
"""

from keepfit.history.dataframe import to_dataframe
from keepfit.history.mongo import Document, unavailable
from keepfit.history.queries.filters import Kind
from keepfit.history.queries.points import Point
from keepfit.history.registry.registry import SUMMARY_FIELDS, Registry, RegistryEntry
from keepfit.history.states import ABORTED, COMMITTED, CORRUPT, PENDING
from keepfit.history.timeline import Timeline
from keepfit.history.timeline_sync import TimelineSync

__all__ = [
    "ABORTED",
    "COMMITTED",
    "CORRUPT",
    "PENDING",
    "SUMMARY_FIELDS",
    "Document",
    "Kind",
    "Point",
    "Registry",
    "RegistryEntry",
    "Timeline",
    "TimelineSync",
    "to_dataframe",
    "unavailable",
]
