"""Forms of requests.

A field with a default may be omitted; unknown fields are refused.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from keepfit.errors import MalformedError
from keepfit.recipe.patch import KEEP
from keepfit_gateway.schemas.values import DeadId, Metadata, Recipe, RowId, TargetList, Weights, X

Y = Annotated[
    TargetList | None,
    Meta(description="One number or label per row, or a list of them; omit it for estimators without target."),
]


class Form(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body."""


class Call(Form, kw_only=True):
    """A call without fields."""


class CreateModel(Form, kw_only=True):
    """The model to create."""

    metadata: Metadata
    recipe: Recipe


class PatchModel(Form, kw_only=True):
    """Either `params`, the parameters to change, or `object`, new code for an uploaded object."""

    params: Annotated[
        dict[str, Any] | None,
        Meta(title="Params", description="Parameters with their new values, at least one; all others keep theirs."),
    ] = None
    object: Annotated[
        str | None,
        Meta(
            description="A signed object, as `keepfit.objects.dump` returns it: its code replaces that in force.",
            examples=["S0YyAXUx…"],
        ),
    ] = None
    state: Annotated[
        str,
        Meta(
            description="What becomes of what was learned: `keep` keeps it; `learn_again` forgets it, and learns all "
            "rows of the row log again.",
            examples=["keep"],
        ),
    ] = KEEP


class PartialFit(Form, kw_only=True):
    """Rows to learn."""

    X: X
    y: Y = None
    sample_weight: Annotated[Weights | None, Meta(description="One non-negative number per row.")] = None


class Predict(Form, kw_only=True):
    """Rows to predict."""

    X: X
    proba: Annotated[bool, Meta(description="Also return probabilities, or anomaly scores.")] = False
    id: Annotated[
        RowId | list[RowId] | None,
        Meta(description="Id of the row, or a list with one for each row: they are kept until their labels come."),
    ] = None


class Score(Form, kw_only=True):
    """Rows to score on, with their target."""

    X: X
    y: Y = None


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


_by_metadata: dict[type[Form], type[Form]] = {}


def with_metadata(form: type[Form]) -> type[Form]:
    """Return the form with one more field, `metadata`, which names the model; its name ends in `ByMetadata`.

    >>> with_metadata(PatchModel).__struct_fields__
    ('params', 'object', 'state', 'metadata')
    """
    if form not in _by_metadata:
        text = (form.__doc__ or "").rstrip(".")
        made: Any = msgspec.defstruct(
            f"{form.__name__}ByMetadata",
            [("metadata", Metadata)],
            bases=(form,),
            namespace={"__doc__": f"{text}, for the model that `metadata` names."},
            kw_only=True,
        )
        _by_metadata[form] = made
    return _by_metadata[form]


PartialFitByMetadata = with_metadata(PartialFit)
PredictByMetadata = with_metadata(Predict)
ScoreByMetadata = with_metadata(Score)


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
