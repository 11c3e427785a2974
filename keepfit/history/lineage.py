"""Lineage: which logged requests a model consists of, told by their places alone.

Owns the rule. A model's sequences go on when it comes back from a snapshot as another generation, or goes back to an
older one; so (origin, sequence) is a place, and each generation begins at one. The register keeps that for every
generation that a restore made while there was a row log, written before it went live. Never talks to anything.
Invariant: a request that the model forgot, or that nobody was promised, is in no span (`docs/guides/restore.md`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Link:
    """How a generation began: behind what generation `base` had up to sequence `until`.

    Its own requests have the sequences after `after`, in the numbering of `origin` (0: that of the generation itself).
    """

    origin: int
    after: int
    base: int
    until: int

    def with_origin(self, generation: int) -> "Link":
        """Link of `generation`, where no `origin` was named yet: its sequences are its own."""
        return self if self.origin else replace(self, origin=generation)


@dataclass(frozen=True, slots=True)
class Span:
    """Requests with ``after < sequence <= until`` in the numbering of `origin`, which `generation` took in."""

    generation: int
    origin: int
    after: int
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Position:
    """What a bundle has learned: all up to `sequence`, as `generation`, in the numbering of `origin`."""

    generation: int
    origin: int
    sequence: int


Links = Mapping[int, Link]


def learned_spans(links: Links, generation: int) -> list[Span]:
    """Spans that what a generation has learned came from, oldest first, as far back as is known.

    >>> links = {2: Link(2, 8, 1, 8), 3: Link(2, 20, 1, 5)}
    >>> [(s.origin, s.after, s.until) for s in learned_spans(links, 2)]
    [(1, 0, 8), (2, 8, inf)]
    >>> [(s.origin, s.after, s.until) for s in learned_spans(links, 3)]
    [(1, 0, 5), (2, 20, inf)]
    """
    spans: list[Span] = []
    until = math.inf
    while (link := links.get(generation)) is not None and link.base < generation:
        spans.append(Span(generation, link.origin, link.after, until))
        generation, until = link.base, link.until
    spans.append(Span(generation, generation, 0, until))
    return spans[::-1]


def spans_after(spans: Sequence[Span], place: Position) -> list[Span] | None:
    """What of `spans` comes after a place; None where the model has forgotten what was learned there.

    >>> spans = [Span(1, 1, 0, 5), Span(3, 3, 5)]
    >>> spans_after(spans, Position(1, 1, 4))
    [Span(generation=1, origin=1, after=4, until=5), Span(generation=3, origin=3, after=5, until=inf)]
    >>> spans_after(spans, Position(1, 1, 6)), spans_after(spans, Position(2, 2, 4))
    (None, None)
    """
    for i, span in enumerate(spans):
        if span.generation == place.generation:
            if place.sequence > span.until:
                return None
            return [replace(span, origin=place.origin, after=place.sequence), *spans[i + 1 :]]
    if place.generation < spans[0].generation:
        # From before the register kept this, or while there was no log.
        return [Span(place.generation, place.origin, place.sequence), *spans]
    return None
