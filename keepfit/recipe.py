"""The recipe: JSON that says how to build a bundle.

Owns the form of a recipe and every check that can be made before a row has come. Never holds learned state.
Invariant: a `Recipe` that exists can be built; what is wrong with one is said when it is posted. Recipes come from
clients and are stored with the model as :meth:`Recipe.text`.
"""

from typing import Any, Literal

import msgspec

from keepfit import estimators
from keepfit.errors import InvalidError
from keepfit.identity import canonical, parse_json

Label = str | int | bool
Encoding = Literal["ordinal", "onehot", "hash"]

COLUMNS_MAX = 10_000
MATRIX_WIDTH_MAX = 1_000_000
CLASSES_MAX = 10_000
NAME_LENGTH_MAX = 256
LABEL_LENGTH_MAX = 1024


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to build a bundle; make one with :func:`parse`.

    `features` keeps its order: it is the order of the columns. Without it rows are plain lists of numbers.
    `updates` says whether each request is one ``partial_fit`` call ("exact") or waiting ones are joined ("merged").
    """

    estimator: str
    params: dict[str, Any] = {}
    features: dict[str, Literal["number", "category"]] | None = None
    scaler: str | None = None
    encoding: Encoding = "ordinal"
    max_categories: int = 128
    n_features: int = 256
    classes: list[Label] | None = None
    updates: Literal["exact", "merged"] = "exact"

    @property
    def entry(self) -> estimators.Entry:
        """The estimator's entry in the catalogue."""
        return estimators.entry_of(self.estimator)

    @property
    def numbers(self) -> list[str]:
        """Names of the number columns, in order (empty without `features`)."""
        return [name for name, kind in (self.features or {}).items() if kind == "number"]

    @property
    def categories(self) -> list[str]:
        """Names of the category columns, in order."""
        return [name for name, kind in (self.features or {}).items() if kind == "category"]

    def text(self) -> str:
        """JSON of the recipe with all defaults; two recipes are the same where their texts are.

        `params` are in canonical form: JavaScript's ``{"C": 1}`` and Python's ``{"C": 1.0}`` are the same recipe.

        >>> parse({"estimator": "SGDRegressor"}).text() == parse({"estimator": "SGDRegressor", "params": {}}).text()
        True
        """
        params: Any = msgspec.Raw(canonical(self.params))
        return msgspec.json.encode(msgspec.structs.replace(self, params=params)).decode()


def from_text(text: bytes | str) -> Recipe:
    """Read back what :meth:`Recipe.text` wrote; the checks were made when it was posted."""
    return msgspec.json.decode(text, type=Recipe)


def parse(document: Any) -> Recipe:
    """Check a posted recipe and return it.

    Raises
    ------
    InvalidError
        With what is wrong and what would be right.
    """
    try:
        recipe = msgspec.convert(document, Recipe)
    except msgspec.ValidationError as error:
        raise InvalidError(f"recipe: {error}.") from None
    estimators.build(recipe.estimator, recipe.params)
    # After the estimator's own checks, which say more: what has no text (an infinity in a list) cannot be stored.
    # Twice, because what is read back must have a text too: 1e20 is written like an integer of 2^53 or more.
    canonical(parse_json(canonical(recipe.params)))
    _check_features(recipe)
    _check_encoding(recipe)
    _check_classes(recipe)
    if recipe.scaler is not None:
        estimators.build_scaler(recipe.scaler)
    return recipe


def _check_features(recipe: Recipe) -> None:
    if recipe.features is None:
        return
    if not 0 < len(recipe.features) <= COLUMNS_MAX:
        raise InvalidError(f"recipe: features must name between 1 and {COLUMNS_MAX} columns.")
    for name in recipe.features:
        if not 0 < len(name) <= NAME_LENGTH_MAX or "\0" in name:
            raise InvalidError(f"recipe: the feature {name[:40]!r} has no usable name.")
    if recipe.scaler is not None and not recipe.numbers:
        raise InvalidError("recipe: a scaler works on number columns, and features names none.")


def _check_encoding(recipe: Recipe) -> None:
    if recipe.max_categories < 1 or recipe.n_features < 1:
        raise InvalidError("recipe: max_categories and n_features must be 1 or more.")
    columns = len(recipe.categories)
    width = {
        "ordinal": columns,
        "onehot": columns * recipe.max_categories,
        "hash": recipe.n_features if columns else 0,
    }[recipe.encoding]
    if width > MATRIX_WIDTH_MAX:
        raise InvalidError(f"recipe: {recipe.encoding} makes {width} columns, more than {MATRIX_WIDTH_MAX}.")


def _check_classes(recipe: Recipe) -> None:
    if recipe.entry.kind != "classifier":
        if recipe.classes is not None:
            raise InvalidError(f"recipe: {recipe.estimator} is no classifier and takes no classes.")
        return
    if recipe.classes is None:
        raise InvalidError(
            f"recipe: {recipe.estimator} is a classifier: name all its labels, for example "
            '"classes": ["no", "yes"]. Labels that turn up later are not learned by this version.'
        )
    if not 2 <= len(recipe.classes) <= CLASSES_MAX:
        raise InvalidError(f"recipe: classes must name between 2 and {CLASSES_MAX} labels.")
    if len({type(label) for label in recipe.classes}) != 1:
        raise InvalidError("recipe: classes must be all strings, all integers or all booleans.")
    if len(set(recipe.classes)) != len(recipe.classes):
        raise InvalidError("recipe: classes names a label twice.")
    if any(isinstance(label, int) and abs(label) >= 2**53 for label in recipe.classes):
        raise InvalidError("recipe: a label of 2^53 or more is not the same number in every language.")
    _check_class_weight(recipe.params.get("class_weight"), recipe.classes)
    # numpy takes a string that ends in NUL for one that does not, and gives every label the room of the longest.
    if any(isinstance(label, str) and ("\0" in label or len(label) > LABEL_LENGTH_MAX) for label in recipe.classes):
        raise InvalidError(f"recipe: a label must have at most {LABEL_LENGTH_MAX} characters, and no NUL among them.")


def _check_class_weight(weights: Any, classes: list[Label]) -> None:
    """Refuse weights of labels that are none: scikit-learn would refuse every row because of them."""
    foreign = sorted(weights.keys() - set(classes)) if isinstance(weights, dict) else []
    if foreign:
        raise InvalidError(
            f"recipe: class_weight names {foreign[0][:40]!r}, which is none of the classes. JSON has string keys only: "
            "for labels that are no strings, send sample_weight with the rows."
        )
