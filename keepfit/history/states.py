"""States of a snapshot's history document, and its public form.

Pure. `docs/concepts/snapshots.md` describes the transitions between the states.
"""

import json

from keepfit.history.mongo import Document

PENDING, COMMITTED, CORRUPT, ABORTED = "pending", "committed", "corrupt", "aborted"
# Fields that clients do not see.
HIDDEN_FIELDS = frozenset({"_id", "labels", "status", "begun"})


def to_public(document: Document) -> Document:
    """Return the document in its public form: metadata as an object, without internal fields."""
    public = {key: value for key, value in document.items() if key not in HIDDEN_FIELDS}
    public["metadata"] = json.loads(document["metadata"])
    return public
