"""Predict the rows of a file through a gateway, and write them with their predictions.

Owns the columns of the predictions, and the division of requests whose answers are too large. Invariant: rows are
written in the order of the file, each once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from keepfit.client.clients import Model
from keepfit.client.files.chunks import ROWS_MAX, Chunk, Report, chunks, place_of, send_good_rows
from keepfit.client.files.row_files import FileRow, RowFile
from keepfit.client.files.row_values import ModelColumns
from keepfit.client.files.row_writer import RowWriter
from keepfit.errors import InvalidError, TooLargeError


def predict_file(
    model: Model,
    source: RowFile,
    columns: ModelColumns,
    writer: RowWriter,
    *,
    name: str = "prediction",
    proba: bool = False,
    only: bool = False,
    rows_max: int = ROWS_MAX,
    skip_bad: bool = False,
    report: Report = lambda position, rows: None,
) -> list[str]:
    """Predict the rows of a file and write each with its prediction; return the places and faults of bad rows.

    Parameters
    ----------
    name : column of the predictions; the others are ``<name>_<class>`` and, for outlier detectors, ``<name>_score``
    proba : whether to write probabilities, or anomaly scores, as well
    only : whether to leave out the columns of the file
    skip_bad : whether to write bad rows without a prediction instead of stopping

    Requests whose answers are too large are divided.

    Raises
    ------
    InvalidError
        For a bad row, or if the file has a column of the predictions' name.
    KeepfitError
        As the calls of a client.
    """
    skipped: list[str] = []
    done = 0
    empty: dict[str, Any] = {name: None}
    if not only:
        writer.expect(source.columns or ())

    def answer_to(chunk: Chunk) -> dict[str, Any] | None:
        return send_good_rows(chunk, source, columns, skip_bad, lambda: model.predict_json(chunk.body(proba=proba)))

    for chunk, answer in _answers(chunks(source, columns, rows_max), answer_to):
        numbers = {position: number for number, position in enumerate(chunk.sent)}
        for position, row in enumerate(chunk.rows):
            has_answer = answer is not None and position in numbers
            result = _prediction(answer, numbers[position], name) if answer and has_answer else empty
            empty = dict.fromkeys(result)
            written = {} if only else _whole(row, source)
            # The class of one row may have the name of a column that only another row has.
            taken = writer.expect(written, result)
            if taken is not None:
                raise InvalidError(f"{source.name} has a column {taken!r} already; name another one with --column.")
            writer.write(written, result)
        skipped += [place_of(source, chunk, position) for position in sorted(chunk.faults)]
        done += len(chunk.sent)
        report(source.position, done)
    if not done and not skipped:
        writer.expect((), (name,))
    return skipped


def _answers(
    found: Iterable[Chunk], answer_to: Callable[[Chunk], dict[str, Any] | None]
) -> Iterator[tuple[Chunk, dict[str, Any] | None]]:
    """Yield each chunk with its answer; chunks are divided into halves until their answers are not too large."""
    fits = None
    for whole in found:
        waiting = [whole]
        while waiting:
            chunk = waiting.pop(0)
            if fits is not None and len(chunk.rows) > fits:
                waiting[:0] = chunk.divide(fits)
                continue
            try:
                answer = answer_to(chunk)
            except TooLargeError:
                if len(chunk.rows) == 1:
                    raise
                fits = (len(chunk.rows) + 1) // 2
                waiting.insert(0, chunk)
            else:
                yield chunk, answer


def _whole(row: FileRow, source: RowFile) -> dict[str, Any]:
    """Return the values of a row, empty ones for a line that is not a row."""
    return row.values or dict.fromkeys(source.columns or ())


def _prediction(answer: dict[str, Any], number: int, name: str) -> dict[str, Any]:
    """Return the columns of one prediction.

    >>> _prediction({"predictions": ["a"], "probabilities": [[0.9, 0.1]], "classes": ["a", "b"]}, 0, "p")
    {'p': 'a', 'p_a': 0.9, 'p_b': 0.1}
    """
    found: dict[str, Any] = {}
    value = answer["predictions"][number]
    if isinstance(value, list):
        found = {f"{name}_{output}": one for output, one in enumerate(value, 1)}
    else:
        found[name] = value
    if answer.get("scores") is not None:
        found[f"{name}_score"] = answer["scores"][number]
    if answer.get("probabilities") is not None:
        classes: Sequence[Any] = answer.get("classes") or ()
        probabilities = answer["probabilities"][number]
        if any(isinstance(one, list) for one in classes):
            pairs = [(f"{o}_{c}", p) for o, (cs, ps) in enumerate(zip(classes, probabilities, strict=True), 1)
                     for c, p in zip(cs, ps, strict=True)]  # fmt: skip
        else:
            pairs = [(str(c), p) for c, p in zip(classes, probabilities, strict=True)]
        found |= {f"{name}_{label}": probability for label, probability in pairs}
    return found
