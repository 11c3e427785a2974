"""Lineage: which logged requests a model has learned, as ranges of sequences.

Pure; owns the rule. Sequences continue when a model is restored from a snapshot as another generation, or goes back to
an older one. (origin, sequence) is therefore a position, where origin is the generation in which the numbering started,
and each generation begins at a position. The registry stores these links for every generation that a restore made while
there was a row log, before the generation goes live. Invariant: no span contains a request that the model has forgotten
or that was never accepted (`docs/guides/restore.md`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Link:
    """How a generation began: with what generation `base` had learned up to sequence `until`.

    Its own requests have the sequences after `after`, in the numbering of `origin` (0: the generation's own numbering).
    """

    origin: int
    after: int
    base: int
    until: int

    def with_origin(self, generation: int) -> "Link":
        """Return the link with `generation` as its origin, if it has none yet."""
        return self if self.origin else replace(self, origin=generation)


@dataclass(frozen=True, slots=True)
class Span:
    """Requests with ``after < sequence <= until`` in the numbering of `origin` that `generation` accepted."""

    generation: int
    origin: int
    after: int
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class Position:
    """State of a bundle: it has learned all requests up to `sequence`, as `generation`, numbered by `origin`."""

    generation: int
    origin: int
    sequence: int


Links = Mapping[int, Link]


def learned_spans(links: Links, generation: int) -> list[Span]:
    """Return the spans of requests that a generation has learned, oldest first, as far back as is known.

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


def spans_after(spans: Sequence[Span], position: Position) -> list[Span] | None:
    """Return the part of `spans` after a position; None if the model has forgotten requests before it.

    >>> spans = [Span(1, 1, 0, 5), Span(3, 3, 5)]
    >>> spans_after(spans, Position(1, 1, 4))
    [Span(generation=1, origin=1, after=4, until=5), Span(generation=3, origin=3, after=5, until=inf)]
    >>> spans_after(spans, Position(1, 1, 6)), spans_after(spans, Position(2, 2, 4))
    (None, None)
    """
    for i, span in enumerate(spans):
        if span.generation == position.generation:
            if position.sequence > span.until:
                return None
            return [replace(span, origin=position.origin, after=position.sequence), *spans[i + 1 :]]
    if position.generation < spans[0].generation:
        # The position is older than the first link, or from a time without a row log.
        return [Span(position.generation, position.origin, position.sequence), *spans]
    return None
