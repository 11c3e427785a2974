"""The recipe: JSON that says how to build a bundle.

Owns the form of a recipe and every check that needs no estimator. Never imports scikit-learn and never holds learned
state. Before a recipe is stored, :mod:`keepfit.model.recipe_check` also builds its estimator and tries it. Recipes come
from clients and are stored with the model as :meth:`Recipe.text`.
"""

import unicodedata
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from keepfit.errors import InvalidError
from keepfit.identity import canonical, parse_json
from keepfit.recipe import catalogue, encoding_choice, features, uploads
from keepfit.recipe.features import Encoding, Feature, Layout
from keepfit.security.envelope import Keyring

Label = str | int | bool
# Titles name the parts of a recipe in the OpenAPI document.
Params = Annotated[dict[str, Any], Meta(title="Params")]
Step = Annotated[dict[str, Params], Meta(title="Step", description="Name of an estimator and its parameters: one key.")]

CLASSES_MAX = 10_000
LABEL_LENGTH_MAX = 1024
WINDOW_MIN, WINDOW_MAX = 10, 1_000_000
# Stored where an encoding applies to no column, as 0.1 did, so that both releases read it.
UNUSED: Encoding = "ordinal"
# What earlier releases stored for a field that a client left out, where this release stores something else.
EARLIER_DEFAULTS: Mapping[str, Collection[Any]] = {"encoding": ("ordinal",)}


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """How to build a bundle: exactly one of `estimator`, `steps` and `object`, and options; :func:`parse` makes one.

    The order of `features` is the order of the columns; each is stored in its canonical form. Without `features` rows
    are lists of numbers. With `updates` "exact" each request is one ``partial_fit`` call; with "merged" consecutive
    pending requests are one call. `window` is the number of last rows for which metrics are also reported separately.
    `encoding` is None if it applies to no column.
    """

    estimator: Annotated[
        str | None, Meta(description="Name of an estimator; null with `steps` or `object`.", examples=["SGDRegressor"])
    ] = None
    params: Annotated[Params, Meta(description="Parameters of the estimator; all others have their defaults.")] = {}
    steps: Annotated[
        list[Step] | None, Meta(description="Instead of `estimator`: a pipeline of estimators, in their order.")
    ] = None
    object: Annotated[
        str | None, Meta(description="Instead of `estimator`: a signed upload, as `keepfit.objects.dump` returns it.")
    ] = None
    features: (
        Annotated[
            dict[str, Feature],
            Meta(
                title="Features",
                description="Columns in order: a type, or an object with options; null: rows are lists of numbers.",
            ),
        ]
        | None
    ) = None
    scaler: Annotated[str | None, Meta(description="Scaler of the number columns.", examples=["StandardScaler"])] = None
    encoding: Annotated[
        Encoding | None,
        Meta(description="How category columns become numbers; null: as suits the estimator, or there are none."),
    ] = None
    max_categories: Annotated[
        int, Meta(description="Columns of a category with the encoding `onehot`, the last for infrequent labels.")
    ] = 128
    n_features: Annotated[int, Meta(description="Columns of all categories with the encoding `hash`.")] = 256
    classes: Annotated[
        list[Label | list[Label]] | None,
        Meta(description="Labels of a classifier known beforehand; with several outputs a list for each."),
    ] = None
    updates: Annotated[
        Literal["exact", "merged"],
        Meta(
            title="Updates",
            description="`exact`: one `partial_fit` call per request; `merged`: pending requests share one.",
        ),
    ] = "exact"
    window: Annotated[int, Meta(description="Number of last rows with metrics of their own, 10 to 1,000,000.")] = 1000

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
    def takes_dicts(self) -> bool:
        """Whether the estimator takes rows as dicts, whose values may be missing; without `features` of any columns."""
        return self.entry.takes_dicts

    @cached_property
    def layout(self) -> Layout:
        """The positions of the values of the columns."""
        columns = tuple((self.features or {}).items())
        if self.takes_dicts:
            columns = tuple([(name, features.nullable(feature)) for name, feature in columns])
        return features.layout(columns, self.encoding or UNUSED, self.max_categories, self.n_features)

    @cached_property
    def ngram_lengths(self) -> tuple[tuple[int, int], ...]:
        """For each text column its position among the non-numeric columns, and the number of lengths of its n-grams."""
        own = self.named_steps[0][1].get("ngram_range") if self.reads_text else None
        found = []
        for column in () if self.takes_dicts else self.layout.non_numeric:
            if isinstance(column.options, features.TextOptions):
                low, high = own or column.options.ngram_range
                found.append((column.rows_index, high - low + 1))
        return tuple(found)

    @property
    def numbers(self) -> list[str]:
        """Names of the number columns, in order, timestamps among them (empty without `features`)."""
        return [column.name for column in self.layout.numbers]

    @property
    def categories(self) -> list[str]:
        """Names of the category columns, in order."""
        return [column.name for column in self.layout.non_numeric if column.kind == "category"]

    def known_name(self, name: str) -> str:
        """Return the name of the column that `name` is in any Unicode form; `name` itself if there is none."""
        return self._names_by_form.get(unicodedata.normalize("NFC", name), name)

    @cached_property
    def _names_by_form(self) -> dict[str, str]:
        """Names of the columns by their normal form C."""
        return {unicodedata.normalize("NFC", name): name for name in self.features or ()}

    def __post_init__(self) -> None:
        if self.features is not None and set(map(type, self.features.values())) != {str}:
            canonical_features = {name: features.canonical_feature(feature) for name, feature in self.features.items()}
            msgspec.structs.force_setattr(self, "features", canonical_features)
        if self.classes is not None:
            msgspec.structs.force_setattr(self, "classes", _in_normal_form(self.classes))
        if self.encoding == UNUSED and not features.has_categories(self.features or {}):
            msgspec.structs.force_setattr(self, "encoding", None)

    def text(self) -> str:
        """Return the JSON of the recipe with all defaults. Two recipes are equal if their texts are.

        `params` are in canonical form, so that JavaScript's ``{"C": 1}`` and Python's ``{"C": 1.0}`` are equal.

        >>> parse({"estimator": "SGDRegressor"}).text() == parse({"estimator": "SGDRegressor", "params": {}}).text()
        True
        """
        params: Any = msgspec.Raw(canonical(self.params))
        steps: Any = self.steps and msgspec.Raw(canonical(self.steps))
        document = msgspec.structs.asdict(self) | {
            "params": params,
            "steps": steps,
            "encoding": self.encoding or UNUSED,
        }
        return msgspec.json.encode(document).decode()


def _in_normal_form(value: Any) -> Any:
    """Return a label, or lists of them, with text in Unicode's normal form C, as rows have it."""
    if isinstance(value, list):
        return [_in_normal_form(each) for each in value]
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def from_text(text: bytes | str) -> Recipe:
    """Return the recipe that :meth:`Recipe.text` wrote. It was checked when it was posted."""
    return msgspec.json.decode(text, type=Recipe)


def left_out(document: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the fields that the JSON document of a recipe leaves out, or gives as null."""
    return frozenset(name for name in Recipe.__struct_fields__ if document.get(name) is None)


def is_same(stored: Recipe, posted: Recipe, fields_left_out: Collection[str]) -> bool:
    """Whether a posted recipe is that of an existing model.

    A field that the client left out also equals what an earlier release stored for it: the client that created the
    model may send the same document today.

    >>> stored = Recipe("SGDRegressor", features={"make": "category"}, encoding="ordinal")
    >>> posted = msgspec.structs.replace(stored, encoding="onehot")
    >>> is_same(stored, posted, ["encoding"]), is_same(stored, posted, [])
    (True, False)
    """
    earlier = {
        name: value for name in fields_left_out if (value := getattr(stored, name)) in EARLIER_DEFAULTS.get(name, ())
    }
    return msgspec.structs.replace(posted, **earlier).text() == stored.text()


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

    This is the first half of :func:`parse`, enough to build what the recipe names. An encoding that the document leaves
    out is the one that suits the estimator.

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
    return recipe if recipe.encoding is not None else _with_encoding(recipe)


def _with_encoding(recipe: Recipe) -> Recipe:
    if recipe.takes_dicts:
        return recipe
    choice = encoding_choice.choose(recipe.named_steps, recipe.features, recipe.max_categories)
    return msgspec.structs.replace(recipe, encoding=choice)


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
    if recipe.scaler is not None or recipe.encoding not in (None, UNUSED):
        raise InvalidError(f"recipe: {header.name} receives rows unchanged: leave out scaler and encoding.")
    if header.multi_output and recipe.classes is not None:
        raise InvalidError(f"recipe: {header.name} has several targets: leave out classes.")
    if recipe.features is not None and any(not isinstance(feature, str) for feature in recipe.features.values()):
        raise InvalidError(f"recipe: {header.name} receives rows unchanged: its features have no options.")


def _check_steps(recipe: Recipe) -> None:
    if recipe.steps is None:
        return
    if recipe.params:
        raise InvalidError(
            'recipe: write the parameters inside steps, and leave out params: [{"SGDRegressor": {"alpha": 0.1}}].'
        )
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
    features.check_categories(recipe.features or {}, recipe.encoding or UNUSED)
    features.check_width(recipe.features or {}, recipe.encoding or UNUSED, recipe.max_categories, recipe.n_features)


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
    unknown = sorted(set(_in_normal_form(list(weights))) - names) if isinstance(weights, dict) else []
    if unknown:
        raise InvalidError(f"recipe: class_weight names {unknown[0][:40]!r}: add it to classes.")
