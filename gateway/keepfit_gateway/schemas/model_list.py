"""Forms of lists of models."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from keepfit_gateway.schemas.answers import ModelAnswer
from keepfit_gateway.schemas.values import Next


class ListedModel(ModelAnswer, kw_only=True):
    """A model in a list; in one that is sorted or searched, with its rates and its error."""

    rows_per_s: Annotated[float, Meta(description="Rows learned each second.")] | UnsetType = UNSET
    rows_out_per_s: (
        Annotated[float, Meta(description="Rows predicted each second of the last minute; null if it is not known.")]
        | UnsetType
        | None
    ) = UNSET
    error_share: (
        Annotated[
            float | None,
            Meta(
                description="Error over the last rows in relation to the baseline's, as 0.5 for half of it; null if it "
                "is not known."
            ),
        ]
        | UnsetType
    ) = UNSET


class ModelList(Struct, kw_only=True):
    """Models in the order that `sort` names; send `next` as `after` to get the next page, null on the last page."""

    models: list[ListedModel]
    next: Next


class ModelPage(Struct, kw_only=True):
    """A page of models whose documents are encoded already; as :class:`keepfit_gateway.schemas.ModelList` otherwise."""

    models: list[Any]
    next: Next
