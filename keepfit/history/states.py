"""The states of a snapshot's history document, and what of it users see.

Pure. Which step leads from one to the next is told in `docs/concepts/snapshots.md`.
"""

import json

from keepfit.history.mongo import Document

PENDING, COMMITTED, CORRUPT, ABORTED = "pending", "committed", "corrupt", "aborted"
# What users do not see.
HIDDEN = frozenset({"_id", "labels", "status", "begun"})


def public(document: Document) -> Document:
    """Return the document as users see it: metadata an object again, bookkeeping left out."""
    shown = {key: value for key, value in document.items() if key not in HIDDEN}
    shown["metadata"] = json.loads(document["metadata"])
    return shown
