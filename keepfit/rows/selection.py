"""Which columns of a file or a table become the columns of a model, its target and its weights.

Pure. Owns the match of names. Never reads a value. Invariant: the result names each column of the model once, in the
recipe's order where it has one; a column that the model needs and the source lacks is an error before any row is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keepfit.errors import Fault, InvalidError
from keepfit.recipe.recipe import Recipe
from keepfit.rows.tables import TARGET, WEIGHTS

NAME_SHOWN_MAX = 100


@dataclass(frozen=True, slots=True)
class Selection:
    """The columns to read: `columns` names of the source, or by names of the model the names of the source.

    None: all columns of the recipe, or, if it names none, all but target and weight. `target` None: the column `y`, of
    an estimator with a target. `weight` None: no weights.
    """

    columns: Sequence[str] | Mapping[str, str] | None = None
    target: str | None = None
    weight: str | None = None

    def check(self, recipe: Recipe, *, by_name: bool) -> None:
        """Check the selection without its source; `by_name`: a value of a row may be a list, as in JSON.

        Raises
        ------
        InvalidError
            If the estimator takes no target or no weights, or the recipe has other columns.
        """
        if recipe.entry.multi_output and not by_name:
            raise InvalidError(f"{recipe.name} learns several values of y for each row: send JSON lines.")
        self._special(recipe)
        if self.columns is not None:
            self._named(recipe, (), frozenset())

    def bind(self, recipe: Recipe, available: Sequence[str], *, learning: bool = True) -> dict[str, str]:
        """Return the names of the source by those of the model; the target is `y`, the weight `sample_weight`.

        Rows to predict have neither: their columns are not read.

        Raises
        ------
        InvalidError
            If a column is missing or named twice, or the estimator takes no target or no weights.
        """
        special = self._special(recipe) if learning else {}
        unread = frozenset(special.values()) if learning else {self.target or TARGET, self.weight or WEIGHTS}
        named = self._named(recipe, available, frozenset(unread))
        bound = {**named, **special}
        if len(bound) < len(named) + len(special):
            raise InvalidError(f"A column of the rows has the name {TARGET!r} or {WEIGHTS!r}: map it to another name.")
        absent = [name for name in bound.values() if name not in set(available)]
        if absent:
            shown = ", ".join(repr(name[:NAME_SHOWN_MAX]) for name in available[:20])
            raise InvalidError(
                f"The source has no column {absent[0][:NAME_SHOWN_MAX]!r}; it has {shown or 'none'}.",
                [Fault("the source has no such column", None, name[:NAME_SHOWN_MAX]) for name in absent[:20]],
            )
        if not named:
            raise InvalidError("The source has no columns for the rows.")
        return bound

    def _special(self, recipe: Recipe) -> dict[str, str]:
        special = {}
        if recipe.entry.takes_y:
            special[TARGET] = self.target or TARGET
        elif self.target is not None:
            raise InvalidError(f"{recipe.name} takes no y: leave the target out.")
        if self.weight is not None:
            if not recipe.entry.takes_sample_weight:
                raise InvalidError(f"{recipe.name} takes no sample_weight: leave it out.")
            special[WEIGHTS] = self.weight
        return special

    def _named(self, recipe: Recipe, available: Sequence[str], special: frozenset[str]) -> dict[str, str]:
        features = recipe.features
        if self.columns is None and features is None:
            return {name: name for name in available if name not in special}
        if self.columns is None:
            found = {recipe.known_name(name): name for name in available}
            nullable = recipe.layout.nullable
            return {name: found.get(name, name) for name in features or () if name in found or name not in nullable}
        given = self.columns if isinstance(self.columns, Mapping) else {name: name for name in self.columns}
        if len(given) < len(self.columns):
            raise InvalidError("columns names a column twice.")
        if features is None:
            return dict(given)
        by_name = {recipe.known_name(name): source for name, source in given.items()}
        unknown = [name for name in by_name if name not in features]
        if unknown or len(by_name) < len(given):
            raise InvalidError(
                f"columns: the recipe has no column {unknown[0][:NAME_SHOWN_MAX]!r}."
                if unknown
                else "columns names a column in two Unicode forms."
            )
        lacking = [name for name in features if name not in by_name and name not in recipe.layout.nullable]
        if lacking:
            raise InvalidError(f"columns lacks the recipe's column {lacking[0][:NAME_SHOWN_MAX]!r}.")
        return {name: by_name[name] for name in features if name in by_name}
