"""Texts that count their comparisons: a test of linear time counts operations, so that no busy machine fails it."""


class ComparisonCounter:
    """Counts the comparisons of all texts that it made.

    >>> counter = ComparisonCounter()
    >>> names = [counter.text(name) for name in "abc"]
    >>> "c" in names, counter.comparisons
    (True, 3)
    >>> "c" in set(names), counter.comparisons
    (True, 4)
    """

    def __init__(self) -> None:
        self.comparisons = 0

    def text(self, value: str) -> str:
        """Return `value` as a text whose comparisons are counted."""
        counter = self

        class Counted(str):
            __slots__ = ()
            __hash__ = str.__hash__

            def __eq__(self, other: object) -> bool:
                counter.comparisons += 1
                return str.__eq__(self, other)

        return Counted(value)
