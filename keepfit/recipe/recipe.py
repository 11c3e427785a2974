"""The recipe: JSON that says how to build a bundle.

Owns the form of a recipe and every check that needs no estimator. Never imports scikit-learn and never holds learned
state. Before a recipe is stored, :mod:`keepfit.model.recipe_check` also builds its estimator and tries it. Recipes come
from clients and are stored with the model as :meth:`Recipe.text`.
"""

from functools import cached_property
from typing import Any, Literal

import msgspec

from keepfit.errors import InvalidError
from keepfit.identity import canonical, parse_json
from keepfit.recipe import catalogue, features, uploads
from keepfit.recipe.features import Encoding, Feature, Layout
from keepfit.security.envelope import Keyring

Label = str | int | bool

CLASSES_MAX = 10_000
LABEL_LENGTH_MAX = 1024
WINDOW_MIN, WINDOW_MAX = 10, 1_000_000


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """How to build a bundle; make one with :func:`parse`.

    The order of `features` is the order of the columns; each is stored in its canonical form. Without `features` rows
    are lists of numbers. With `updates` "exact" each request is one ``partial_fit`` call; with "merged" consecutive
    pending requests are one call. `window` is the number of last rows for which metrics are also reported separately.
    """

    estimator: str | None = None
    params: dict[str, Any] = {}
    steps: list[dict[str, dict[str, Any]]] | None = None
    object: str | None = None
    features: dict[str, Feature] | None = None
    scaler: str | None = None
    encoding: Encoding = "ordinal"
    max_categories: int = 128
    n_features: int = 256
    classes: list[Label | list[Label]] | None = None
    updates: Literal["exact", "merged"] = "exact"
    window: int = 1000

    @property
    def name(self) -> str:
        """The name for messages: of the estimator, of the steps, or of the object."""
        if self.object is not None:
            return self.entry.name
        return self.estimator or " → ".join([name for name, _ in self.named_steps])

    @cached_property
    def named_steps(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Name and parameters of each step, or of the single estimator; empty for an object."""
        if self.steps is None:
            return () if self.estimator is None else ((self.estimator, self.params),)
        return tuple([next(iter(step.items())) for step in self.steps])

    @cached_property
    def entry(self) -> catalogue.Entry:
        """The catalogue entry of the estimator, or of the last step; of a wrapper with its inner estimator."""
        if self.object is not None:
            return uploads.entry_of(self.object)
        name, params = self.named_steps[-1]
        return catalogue.entry_with_inner(name, catalogue.inner_name(params))

    @cached_property
    def reads_text(self) -> bool:
        """Whether the first estimator takes texts instead of numbers."""
        return bool(self.named_steps) and catalogue.entry_of(self.named_steps[0][0]).reads_text

    @cached_property
    def layout(self) -> Layout:
        """The positions of the values of the columns."""
        columns = tuple((self.features or {}).items())
        return features.layout(columns, self.encoding, self.max_categories, self.n_features)

    @property
    def numbers(self) -> list[str]:
        """Names of the number columns, in order, timestamps among them (empty without `features`)."""
        return [column.name for column in self.layout.numbers]

    @property
    def categories(self) -> list[str]:
        """Names of the category columns, in order."""
        return [column.name for column in self.layout.non_numeric if column.kind == "category"]

    def __post_init__(self) -> None:
        if self.features is not None and set(map(type, self.features.values())) != {str}:
            canonical_features = {name: features.canonical_feature(feature) for name, feature in self.features.items()}
            msgspec.structs.force_setattr(self, "features", canonical_features)

    def text(self) -> str:
        """Return the JSON of the recipe with all defaults. Two recipes are equal if their texts are.

        `params` are in canonical form, so that JavaScript's ``{"C": 1}`` and Python's ``{"C": 1.0}`` are equal.

        >>> parse({"estimator": "SGDRegressor"}).text() == parse({"estimator": "SGDRegressor", "params": {}}).text()
        True
        """
        params: Any = msgspec.Raw(canonical(self.params))
        steps: Any = self.steps and msgspec.Raw(canonical(self.steps))
        return msgspec.json.encode(msgspec.structs.replace(self, params=params, steps=steps)).decode()


def from_text(text: bytes | str) -> Recipe:
    """Return the recipe that :meth:`Recipe.text` wrote. It was checked when it was posted."""
    return msgspec.json.decode(text, type=Recipe)


def parse(document: Any, keyring: Keyring | None = None) -> Recipe:
    """Return the recipe of a JSON document, checked as far as that needs no estimator.

    `keyring` has the upload keys, None where no objects are accepted. The parameters are not checked:
    :func:`keepfit.model.recipe_check.check` does that too.

    Raises
    ------
    InvalidError
        With what is wrong and what would be right.
    """
    recipe = from_document(document, keyring)
    check_fields(recipe)
    return recipe


def from_document(document: Any, keyring: Keyring | None = None) -> Recipe:
    """Return the recipe of a JSON document that names estimators of the catalogue or holds a signed object.

    This is the first half of :func:`parse`, enough to build what the recipe names.

    Raises
    ------
    InvalidError
        With what is wrong and what would be right.
    """
    try:
        recipe = msgspec.convert(document, Recipe)
    except msgspec.ValidationError as error:
        raise InvalidError(f"recipe: {features.with_column_name(document, str(error))}.") from None
    _check_one_of(recipe)
    if recipe.object is not None:
        _check_object(recipe, uploads.verify(recipe.object, keyring))
    _check_steps(recipe)
    for name, _ in recipe.named_steps:
        catalogue.entry_of(name)
    return recipe


def check_fields(recipe: Recipe) -> None:
    """Check that the fields of a recipe fit each other; the second half of :func:`parse`.

    Raises
    ------
    InvalidError
        With what is wrong and what would be right.
    """
    # Parameters without canonical JSON (an infinity in a list) cannot be stored. Converted twice, because the JSON that
    # is read back must have canonical JSON too: 1e20 is written like an integer of 2^53 or more.
    canonical(parse_json(canonical([recipe.params, recipe.steps])))
    _check_features(recipe)
    _check_encoding(recipe)
    _check_classes(recipe)
    if not WINDOW_MIN <= recipe.window <= WINDOW_MAX:
        raise InvalidError(f"recipe: window must be between {WINDOW_MIN} and {WINDOW_MAX} rows.")
    if recipe.scaler is not None:
        catalogue.check_scaler(recipe.scaler)


def _check_one_of(recipe: Recipe) -> None:
    found = [name for name in ("estimator", "steps", "object") if getattr(recipe, name) is not None]
    if len(found) != 1:
        raise InvalidError(
            'recipe: exactly one of estimator ("estimator": "SGDRegressor"), steps and object is required, '
            f"not {' and '.join(found) or 'none'}."
        )


def _check_object(recipe: Recipe, header: uploads.ObjectHeader) -> None:
    """Raise InvalidError for fields that do not apply to an object."""
    if recipe.params:
        raise InvalidError(f"recipe: {header.name} is an object: set its parameters before dump, and leave out params.")
    if header.calls == "partial_fit":
        return
    if recipe.scaler is not None or recipe.encoding != "ordinal":
        raise InvalidError(f"recipe: {header.name} receives rows unchanged: leave out scaler and encoding.")
    if recipe.features is not None and any(not isinstance(feature, str) for feature in recipe.features.values()):
        raise InvalidError(f"recipe: {header.name} receives rows unchanged: its features have no options.")


def _check_steps(recipe: Recipe) -> None:
    if recipe.steps is None:
        return
    if recipe.params:
        raise InvalidError("recipe: params of steps belong in the steps.")
    if any(len(step) != 1 for step in recipe.steps):
        raise InvalidError('recipe: each step is an object with one key: {"StandardScaler": {}}.')
    catalogue.check_steps([next(iter(step)) for step in recipe.steps])


def _check_features(recipe: Recipe) -> None:
    if recipe.features is not None:
        features.check(recipe.features)
    if recipe.reads_text:
        features.check_single_text(recipe.features, recipe.named_steps[0][0])
    if recipe.scaler is not None and recipe.features is not None and not features.has_numbers(recipe.features):
        raise InvalidError("recipe: a scaler needs number columns, and features names none.")


def _check_encoding(recipe: Recipe) -> None:
    if recipe.max_categories < 1 or recipe.n_features < 1:
        raise InvalidError("recipe: max_categories and n_features must be 1 or more.")
    features.check_width(recipe.features or {}, recipe.encoding, recipe.max_categories, recipe.n_features)


def _check_classes(recipe: Recipe) -> None:
    entry = recipe.entry
    if entry.target != "labels":
        if recipe.classes is not None:
            raise InvalidError(f"recipe: {recipe.name} is not a classifier and takes no classes.")
        return
    is_list = [isinstance(one, list) for one in recipe.classes or ()]
    if any(is_list) and not (entry.multi_output and all(is_list)):
        raise InvalidError("recipe: classes is a list of labels.")
    if recipe.classes is not None and entry.multi_output and not (is_list and all(is_list)):
        raise InvalidError(f"recipe: classes of {recipe.name} is a list of lists, the labels of each output.")
    outputs: Any = recipe.classes if entry.multi_output else [recipe.classes]
    if not entry.multi_output and recipe.object is None:
        _check_class_weight(recipe.named_steps[-1][1].get("class_weight"), outputs[0] or [])
    for classes in outputs or ():
        if classes is not None:
            _check_labels(classes)


def _check_labels(classes: list[Label]) -> None:
    if not 1 <= len(classes) <= CLASSES_MAX:
        raise InvalidError(
            f"recipe: classes must name between 1 and {CLASSES_MAX} labels; leave it out to let rows name them."
        )
    if len({type(label) for label in classes}) != 1:
        raise InvalidError("recipe: classes must be all strings, all integers or all booleans.")
    if len(set(classes)) != len(classes):
        raise InvalidError("recipe: classes names a label twice.")
    for label in classes:
        fault = label_fault(label)
        if fault is not None:
            raise InvalidError(f"recipe: classes: {fault}.")


def label_fault(label: Label) -> str | None:
    """Return what is wrong with a label, or None."""
    if isinstance(label, str):
        if "\0" in label:
            return "a label holds a NUL character"
        if len(label) > LABEL_LENGTH_MAX:
            return f"the label has {len(label)} characters, more than {LABEL_LENGTH_MAX}"
    elif abs(label) >= 2**53:
        return f"the label {str(label)[:40]} is 2^53 or more, which some languages cannot represent exactly"
    return None


def _check_class_weight(weights: Any, classes: list[Label]) -> None:
    """Raise InvalidError for weights of unknown labels: scikit-learn would reject every row because of them."""
    names = {str(label).lower() if isinstance(label, bool) else str(label) for label in classes}
    unknown = sorted(weights.keys() - names) if isinstance(weights, dict) else []
    if unknown:
        raise InvalidError(f"recipe: class_weight names {unknown[0][:40]!r}: add it to classes.")
