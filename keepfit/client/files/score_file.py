"""Score a model on the rows of a file, through a gateway.

Owns the one request that a whole file becomes, since scores of parts of it do not add up to those of the file, and each
part could be scored by another version. Invariant: the rows wait in temporary files, so that what is in memory does not
depend on the length of the file but for the place of each row.
"""

import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import msgspec

from keepfit.client.clients import Client
from keepfit.client.files.chunks import Chunk, Report, chunks, faults_by_row
from keepfit.client.files.row_files import RowFile
from keepfit.client.files.row_values import ModelColumns
from keepfit.errors import InvalidError, TooLargeError

IN_MEMORY_BYTES_MAX = 8 * 2**20
PIECE_BYTES = 256 * 1024
# Many rows take time to predict.
ANSWER_S_MAX = 600.0


class _Table:
    """Rows and their targets, one in each line of a temporary file, and the place of each in its source.

    It is the body of a request, whose length only its end shows.
    """

    size: int | None = None

    def __init__(self) -> None:
        self._X = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES_MAX)  # noqa: SIM115 - closed in __exit__
        self._y = tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES_MAX)  # noqa: SIM115 - closed in __exit__
        self._has_targets = False
        self.places: list[str] = []
        self.faults: dict[int, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._X.close()
        self._y.close()

    @property
    def n(self) -> int:
        """Number of rows without a fault."""
        return len(self.places) - len(self.faults)

    def add(self, chunk: Chunk) -> None:
        """Add the rows of a chunk that have no fault."""
        for lines, values in ((self._X, chunk.X), (self._y, chunk.y)):
            lines.writelines(msgspec.json.encode(value) + b"\n" for value in values)
        self._has_targets = self._has_targets or bool(chunk.y)
        self.places += [chunk.rows[position].place for position in chunk.sent]

    def __iter__(self) -> Iterator[bytes]:
        """Yield the JSON of the request: the rows without a fault."""
        piece = bytearray()
        for part in self._parts():
            piece += part
            if len(piece) >= PIECE_BYTES:
                yield bytes(piece)
                piece.clear()
        yield bytes(piece)

    def _parts(self) -> Iterator[bytes]:
        # An estimator without a target takes no `y`.
        for begin, lines in ((b'{"X":[', self._X), (b'],"y":[', self._y))[: 2 if self._has_targets else 1]:
            yield begin
            lines.seek(0)
            between = b""
            for number, line in enumerate(lines):
                if number not in self.faults:
                    yield between + line[:-1]
                    between = b","
        yield b"]}"


def score_file(
    client: Client,
    model_hash: str,
    source: RowFile,
    columns: ModelColumns,
    *,
    skip_bad: bool = False,
    report: Report = lambda position, rows: None,
) -> tuple[dict[str, Any], int, list[str]]:
    """Score a model on the rows of a file.

    Returns
    -------
    answer, rows, skipped
        The scores with the version that has them, how many rows they are of, and the places and faults of bad rows.

    Raises
    ------
    InvalidError
        For a bad row, unless `skip_bad`, or if the file has no other rows.
    KeepfitError
        As the calls of a client; TooLargeError for more rows than a request may have.
    """
    skipped: list[str] = []
    with _Table() as table:
        for chunk in chunks(source, columns):
            skipped += [f"{source.name}, {chunk.rows[row].place}: {fault}" for row, fault in chunk.faults.items()]
            if skipped and not skip_bad:
                raise InvalidError(f"{skipped[0]}.")
            table.add(chunk)
            report(source.position, len(table.places))
        while table.n:
            try:
                _, answer = client.request(
                    "POST", f"/v1/models/{model_hash}/score", table, is_repeatable=True, timeout_s=ANSWER_S_MAX
                )
            except TooLargeError as error:
                raise TooLargeError(f"{source.name} does not fit into one request, as scores need: {error}") from None
            except InvalidError as error:
                # Rows are counted without those that were found before.
                sent = [row for row in range(len(table.places)) if row not in table.faults]
                found = {sent[row]: detail for row, detail in sorted(faults_by_row(error, columns).items())}
                table.faults |= found
                skipped += [f"{source.name}, {table.places[row]}: {detail}" for row, detail in found.items()]
                if not skip_bad:
                    raise InvalidError(f"{skipped[0]}.", error.faults) from None
            else:
                return answer, table.n, skipped
        raise InvalidError(f"{source.name} has no rows to score.")
