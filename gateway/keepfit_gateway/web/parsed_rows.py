"""Rows of a JSON body as lists.

Owns no rule: :func:`keepfit.rows.shaping.shape` checks the rows.
"""

from dataclasses import dataclass
from typing import Any

from keepfit.recipe.recipe import Recipe
from keepfit.rows import shaping
from keepfit.rows.rows import Rows


@dataclass(slots=True, eq=False)
class ParsedRows:
    """Rows as lists, from small JSON or from JSON that only the strict parser can read; `size` in bytes of JSON.

    `ids` are those of the rows, if they are to be kept until their labels come; only the strict parser reads them.
    """

    size: int
    X: Any
    y: Any
    sample_weight: Any
    proba: bool
    model_hash: str
    ids: list[str] | None = None

    def shape(self, recipe: Recipe, *, learning: bool) -> Rows:
        """Check the rows against `recipe` and return them."""
        return shaping.shape(recipe, self.X, self.y, self.sample_weight, learning=learning)
