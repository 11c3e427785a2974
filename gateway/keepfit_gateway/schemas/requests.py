"""Forms of requests.

A field with a default may be omitted; unknown fields are refused.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from keepfit.errors import MalformedError
from keepfit_gateway.schemas.values import DeadId, Metadata, Recipe, TargetList, Weights, X

Y = Annotated[
    TargetList | None,
    Meta(description="One number or label per row, or a list of them; omit it for estimators without target."),
]


class Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body."""


class CreateModel(Form, kw_only=True):
    """The model to create."""

    metadata: Metadata
    recipe: Recipe


class PatchModel(Form, kw_only=True):
    """The parameters to change."""

    params: Annotated[
        dict[str, Any],
        Meta(title="Params", description="Parameters with their new values, at least one; all others keep theirs."),
    ]


class PartialFit(Form, kw_only=True):
    """Rows to learn."""

    X: X
    y: Y = None
    sample_weight: Annotated[Weights | None, Meta(description="One non-negative number per row.")] = None


class Predict(Form, kw_only=True):
    """Rows to predict."""

    X: X
    proba: Annotated[bool, Meta(description="Also return probabilities, or anomaly scores.")] = False


class Score(Form, kw_only=True):
    """Rows to score on, with their target."""

    X: X
    y: Y = None


class PartialFitByMetadata(PartialFit, kw_only=True):
    """Rows to learn, for the model that `metadata` names."""

    metadata: Metadata


class PredictByMetadata(Predict, kw_only=True):
    """Rows to predict, for the model that `metadata` names."""

    metadata: Metadata


class ScoreByMetadata(Score, kw_only=True):
    """Rows to score on, for the model that `metadata` names."""

    metadata: Metadata


class RetryDead(Form, kw_only=True):
    """The dead letters to retry; without `ids` the oldest ones."""

    ids: Annotated[list[DeadId], Meta(max_length=128)] | None = None


class DiscardDead(Form, kw_only=True):
    """The dead letters to delete."""

    ids: Annotated[list[DeadId], Meta(min_length=1, max_length=128)]


class RestoreModel(Form, kw_only=True):
    """The snapshot to restore: the newest not later than `at`, of this `version`; without both, what Redis lost."""

    at: Annotated[float | str | None, Meta(description="Seconds since 1970 or ISO 8601, not in the future.")] = None
    version: Annotated[int, Meta(ge=1, le=2**53 - 1, examples=[1])] | None = None


FormT = TypeVar("FormT", bound=Form)


def convert(document: Any, form: type[FormT]) -> FormT:
    """Convert parsed JSON to `form`.

    Raises
    ------
    MalformedError
        With the path and the type of the value that does not fit.
    """
    try:
        return msgspec.convert(document, form)
    except msgspec.ValidationError as error:
        raise MalformedError(f"The body does not have the required form: {error}.") from None
