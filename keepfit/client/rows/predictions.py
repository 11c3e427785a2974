"""The answer to a prediction, as a sequence and as an array.

Pure. Never imports numpy before an array is asked for. Invariant: the labels and numbers are those of the answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np


class Predictions(Sequence[Any]):
    """Predictions, one for each row; numpy and scikit-learn take it as an array.

    >>> answer = Predictions({"hash": "5f", "version": 3, "rows_seen": 9, "predictions": [1.5, 2.5]})
    >>> answer[0], len(answer), answer.version
    (1.5, 2, 3)

    Attributes
    ----------
    predictions : list of numbers or labels as they came in, a list per row for several outputs; None for a row without
    answer : the answer of the gateway
    """

    __slots__ = ("_versions", "answer", "predictions")

    def __init__(self, answer: Mapping[str, Any], versions: tuple[int, ...] | None = None) -> None:
        self.answer = answer
        self.predictions: list[Any] = answer["predictions"]
        self._versions = versions

    @property
    def hash(self) -> str:
        """The model."""
        return str(self.answer["hash"])

    @property
    def version(self) -> int:
        """The version that predicted; if `X` was sent in parts, that of the last part."""
        return int(self.answer["version"])

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions of all parts, in order: several if the model learned in between."""
        return self._versions or (self.version,)

    @property
    def rows_seen(self) -> int:
        """Number of rows that this version has learned."""
        return int(self.answer["rows_seen"])

    @property
    def probabilities(self) -> list[Any] | None:
        """Shape (rows, classes), a list per output for several; None if not asked for."""
        return self.answer.get("probabilities")

    @property
    def classes(self) -> list[Any] | None:
        """Labels in the order of the probabilities."""
        return self.answer.get("classes")

    @property
    def scores(self) -> list[float | None] | None:
        """Anomaly scores of an outlier detector, shape (rows,)."""
        return self.answer.get("scores")

    @classmethod
    def join(cls, answers: Sequence[Mapping[str, Any]]) -> "Predictions":
        """Return the answers to the parts of `X` as one."""
        if len(answers) == 1:
            return cls(answers[0])
        whole = dict(answers[-1])
        for name in ("predictions", "probabilities", "scores"):
            if whole.get(name) is not None:
                whole[name] = [one for answer in answers for one in answer[name]]
        return cls(whole, tuple(dict.fromkeys(answer["version"] for answer in answers)))

    @property
    def values(self) -> "np.ndarray[Any, Any]":
        """The predictions as an array, shape (rows,) or (rows, outputs)."""
        return self.__array__()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "np.ndarray[Any, Any]":
        """Return the predictions as an array; labels of several types, or missing ones, as objects."""
        import numpy as np  # noqa: PLC0415 - slow to import, and not needed for lists

        if dtype is None and any(one is None for one in self.predictions):
            is_number = all(one is None or type(one) in (int, float) for one in self.predictions)
            dtype = np.float64 if is_number else object
        if dtype is None and len({type(one) for one in self.predictions} - {int, float}) > 1:
            dtype = object
        return np.array(self.predictions, dtype)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        return self.predictions[index]

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.predictions)

    def __eq__(self, other: object) -> bool:
        return self.predictions == (other.predictions if isinstance(other, Predictions) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(one) for one in self.predictions[:6])
        more = ", …" if len(self) > 6 else ""
        return f"Predictions([{shown}{more}], version={self.version}, rows_seen={self.rows_seen})"
