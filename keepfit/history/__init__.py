"""History: the register of models, their snapshots, and documents and numbers by time, in MongoDB.

Owns what the rest of the project may import of it. Of its modules :mod:`keepfit.history.registry` knows models and
their snapshots, :mod:`keepfit.history.timeline` knows time, :mod:`keepfit.history.mongo` the connection.
"""

from keepfit.history.dataframe import to_dataframe
from keepfit.history.mongo import Document, unavailable
from keepfit.history.points import Point
from keepfit.history.registry import SUMMARY_FIELDS, Registry, RegistryEntry
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
    "Point",
    "Registry",
    "RegistryEntry",
    "Timeline",
    "TimelineSync",
    "to_dataframe",
    "unavailable",
]
