"""Forms of pull jobs: what to pull, and how far a job is.

Owns shapes only; :mod:`keepfit.backends.source_urls` checks the address, and the job itself what is in the source.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from keepfit_gateway.schemas.requests import Form
from keepfit_gateway.schemas.values import Hash, Metadata, Next

Name = Annotated[str, Meta(min_length=1, max_length=256)]
JobId = Annotated[str, Meta(description="Id of the job.", pattern="^[0-9a-f]{32}$")]
Format = Annotated[Literal["csv", "parquet", "npy", "jsonl"], Meta(title="SourceFormat")]
LabelType = Annotated[Literal["string", "integer", "boolean"], Meta(title="LabelType")]
JobState = Annotated[Literal["queued", "running", "done", "failed", "cancelled"], Meta(title="JobState")]
Time = Annotated[float, Meta(description="Seconds since 1970.")]
# Columns by name: those of a source, or for each column of the model that of the source.
Columns = (
    Annotated[list[Name], Meta(min_length=1, max_length=10_000)]
    | Annotated[dict[Name, Name], Meta(title="SourceColumns", min_length=1, max_length=10_000)]
)


class Pull(Form, kw_only=True):
    """The source to learn: its address, format and columns, and how it is divided into requests."""

    url: Annotated[str, Meta(description="Below an allowed prefix: s3://, https:// or file:///.", max_length=2048)]
    format: Annotated[Format | None, Meta(description="Null: by the end of the name.")] = None
    columns: Annotated[
        Columns | None,
        Meta(
            description="Names of columns, or for each column of the model its name in the source. Null: the columns "
            "of the recipe; if it names none, all but the target and the weight."
        ),
    ] = None
    target: Annotated[Name | None, Meta(description="Column of the target. Null: `y`.")] = None
    sample_weight: Annotated[Name | None, Meta(description="Column of the weights. Null: no weights.")] = None
    label_type: Annotated[
        LabelType | None, Meta(description="Type of the labels in CSV, if the recipe names no classes. Null: string.")
    ] = None
    rows_per_call: Annotated[int, Meta(description="Rows of the source in one request.", ge=1, le=100_000)] = 1000
    skip_max: Annotated[
        int, Meta(description="Rows that may be left out because they do not fit.", ge=0, le=100_000)
    ] = 0


class JobAnswer(Struct, kw_only=True):
    """A job that was made, or that the same Idempotency-Key made."""

    job: JobId
    hash: Hash
    state: JobState


class SkippedRow(Struct, kw_only=True):
    """A row that was left out. `row` is its number in the source from 0; a line that is no row has none."""

    detail: str
    row: int | UnsetType = UNSET


class JobRows(Struct, kw_only=True):
    """Rows of the source. `done` are accepted or skipped; `total` is null where only the end of the source tells it."""

    done: int
    accepted: int
    skipped: int
    total: int | None


class JobDocument(Struct, kw_only=True):
    """A pull job and its progress."""

    job: JobId
    hash: Hash
    metadata: Metadata
    state: JobState
    url: str
    format: Format | None
    columns: Columns | None
    target: str | None
    sample_weight: str | None
    label_type: LabelType | None
    rows_per_call: int
    skip_max: int
    rows: JobRows
    calls: Annotated[int, Meta(description="Requests that were accepted.")]
    sequence: Annotated[int | None, Meta(description="Sequence of the last of them.")]
    size_bytes: Annotated[int | None, Meta(description="Size of the source as it is stored, if it is known.")]
    skipped: Annotated[list[SkippedRow], Meta(description="The first rows that were left out, and why.")]
    waiting: Annotated[str | None, Meta(description="Why a running job makes no progress.")]
    error: Annotated[str | None, Meta(description="Why the job failed.")]
    created: Time
    started: Time | None
    ended: Time | None


class JobList(Struct, kw_only=True):
    """Jobs, newest first."""

    jobs: list[JobDocument]
    next: Next
