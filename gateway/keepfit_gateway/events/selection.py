"""Which events a client asks for, and which it may see.

Pure. Invariant: a filter compares values of metadata as the list of models does (:mod:`keepfit.conditions`).
"""

from dataclasses import dataclass

from keepfit import conditions
from keepfit.conditions import Conditions
from keepfit.store.events import Event


@dataclass(frozen=True, slots=True)
class Selection:
    """Kinds, hashes and metadata of events; empty ones select all. Events of workers have neither of the latter."""

    kinds: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    where: Conditions = ()

    def selects(self, event: Event) -> bool:
        """Return whether the client asks for an event.

        >>> fields = {b"kind": b"commit", b"hash": b"ab", b"metadata": b'{"type": "shoes", "year": 1}'}
        >>> event = Event.parse(b"1-0", fields)
        >>> [Selection(where=((key, (text,)),)).selects(event) for key, text in (("year", "1"), ("type", "boots"))]
        [True, False]
        >>> Selection(kinds=frozenset(["drift"])).selects(event), Selection(hashes=frozenset(["ab"])).selects(event)
        (False, True)
        """
        if self.kinds and event.kind not in self.kinds:
            return False
        if self.hashes and event.hash not in self.hashes:
            return False
        return not self.where or (event.metadata is not None and conditions.matches(event.metadata, self.where))
