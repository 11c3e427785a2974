"""Forms of late labels, and the ids of predictions that they name.

Owns their shapes. What a target may be depends on the model; :mod:`keepfit.rows.served` checks it.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from keepfit.store.open_rows import CALL_ROWS_MAX
from keepfit_gateway.schemas.requests import Form
from keepfit_gateway.schemas.values import (
    Generation,
    Hash,
    RowId,
    RowsSeen,
    Sequence,
    Target,
    Version,
)


class LateLabel(Form, kw_only=True):
    """The label of the row that was predicted with this `id`."""

    id: RowId
    y: Target
    sample_weight: Annotated[float | None, Meta(description="A number above 0.")] = None


class LabelRows(Form, kw_only=True):
    """Labels of rows that were predicted with an `id`; they are learned in this order."""

    labels: Annotated[list[LateLabel], Meta(min_length=1, max_length=CALL_ROWS_MAX)]


class RefusedLabel(Struct, kw_only=True):
    """A label that was not accepted: `index` is its position in the request, from 0.

    `reason` is `unknown` if no row has this id, `expired` if its label came too late, `labelled` if the row was
    labelled before, `full` if the inbox has no space for it now.
    """

    index: int
    id: RowId
    reason: Annotated[Literal["unknown", "expired", "labelled", "full"], Meta(title="LabelReason")]
    detail: str


class LabelsAnswer(Struct, kw_only=True):
    """`accepted` labels will be learned, each as a request of one row, the last with `sequence`.

    `errors` has one entry for each of the others, in their order.
    """

    hash: Hash
    accepted: Annotated[int, Meta(description="Number of accepted labels.")]
    sequence: Sequence | None
    generation: Generation
    version: Version
    errors: list[RefusedLabel]


class LabelsLearnedAnswer(Struct, kw_only=True):
    """The accepted labels are learned; `version` is the first that contains them."""

    hash: Hash
    accepted: Annotated[int, Meta(description="Number of accepted labels.")]
    sequence: Sequence
    version: Version
    rows_seen: RowsSeen
    errors: list[RefusedLabel]
