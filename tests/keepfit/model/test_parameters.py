"""Changes of parameters: after one a bundle learns what a plain loop learns after ``set_params``."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.utils import all_estimators

from keepfit.errors import InvalidError
from keepfit.model.bundle import Bundle
from keepfit.model.estimators import PASSIVE_AGGRESSIVE as SUCCEEDED
from keepfit.model.estimators import SGD_ONLY, build
from keepfit.model.parameters import (
    COMPUTATION,
    FIRST_ONLY,
    FIT_ONLY,
    IMMUTABLE,
    OPTIMIZER_ATTRIBUTES,
    UNREAD,
    WIDTH,
    check,
    immutable_reason,
)
from keepfit.model.serialization import seal, unseal
from keepfit.recipe.catalogue import CATALOGUE, entry_of
from keepfit.recipe.patch import with_changes
from keepfit.recipe.recipe import Recipe, parse
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring
from tests.conftest import SIGNING_KEYS

PAGE = Path(__file__).parents[3] / "docs/guides/changing-parameters.md"
Params = Mapping[str, Any]

CONSTANT = {"learning_rate": "constant", "eta0": 0.01}
LINEAR: list[tuple[dict[str, Any], Params]] = [
    ({}, {"alpha": 0.1}),
    ({}, {"penalty": "l1", "alpha": 0.1}),
    ({"penalty": "elasticnet", "alpha": 0.1}, {"l1_ratio": 0.9}),
    ({}, {"fit_intercept": False}),
    ({}, {"shuffle": True}),
    ({"shuffle": True}, {"random_state": 7}),
    ({}, {"eta0": 0.5}),
]
SCHEDULED: list[tuple[Params, Params]] = [
    ({}, {"learning_rate": "adaptive", "eta0": 0.02}),
    ({"learning_rate": "invscaling", "eta0": 0.1}, {"power_t": 0.1}),
]
WEIGHED: list[tuple[Params, Params]] = [({}, {"class_weight": {"0": 3.0, "1": 0.5, "2": 1}})]
SGD_CLASSIFIER: list[tuple[Params, Params]] = [
    *((CONSTANT | params, change) for params, change in LINEAR),
    *SCHEDULED,
    *WEIGHED,
    ({"loss": "log_loss"}, {"loss": "modified_huber"}),
    ({}, {"loss": "epsilon_insensitive"}),
    (CONSTANT | {"loss": "epsilon_insensitive"}, {"epsilon": 50.0}),
]
PASSIVE_AGGRESSIVE: list[tuple[Params, Params]] = [
    ({}, {"C": 0.01}),
    ({}, {"fit_intercept": False}),
    ({}, {"shuffle": True}),
    ({"shuffle": True}, {"random_state": 7}),
]
MLP: list[tuple[Params, Params]] = [
    ({}, {"activation": "tanh"}),
    ({}, {"alpha": 5.0}),
    ({}, {"batch_size": 2}),
    ({}, {"learning_rate_init": 0.5}),
    ({}, {"beta_1": 0.5}),
    ({}, {"beta_2": 0.5}),
    ({}, {"epsilon": 0.1}),
    ({}, {"shuffle": True, "batch_size": 2}),
    ({"shuffle": True, "batch_size": 2}, {"random_state": 7}),
    ({"solver": "sgd"}, {"learning_rate_init": 0.5}),
    ({"solver": "sgd"}, {"momentum": 0.1}),
    ({"solver": "sgd"}, {"nesterovs_momentum": False}),
    ({"solver": "sgd"}, {"learning_rate": "invscaling"}),
    ({"solver": "sgd", "learning_rate": "invscaling"}, {"power_t": 0.1, "learning_rate_init": 0.1}),
    ({"solver": "sgd", "learning_rate": "adaptive"}, {"tol": 100.0, "n_iter_no_change": 1}),
]
COUNTED: list[tuple[Params, Params]] = [
    ({}, {"alpha": 3.0}),
    ({"alpha": 1e-11}, {"force_alpha": False}),
    ({}, {"class_prior": [0.2, 0.3, 0.5]}),
    ({}, {"fit_prior": False}),
]
TRANSFORMERS: Mapping[str, list[tuple[Params, Params]]] = {
    "BernoulliRBM": [({"n_components": 2}, {"learning_rate": 0.5})],
    "HashingVectorizer": [],
    "IncrementalPCA": [({"n_components": 2}, {"whiten": True})],
    "LatentDirichletAllocation": [
        ({"n_components": 2}, change)
        for change in (
            {"learning_decay": 0.9},
            {"learning_offset": 2.0},
            {"total_samples": 10.0},
            {"max_doc_update_iter": 1},
            {"mean_change_tol": 5.0},
            {"batch_size": 1},
        )
    ],
    "MaxAbsScaler": [({}, {"clip": True})],
    "MinMaxScaler": [({}, {"feature_range": [0, 2]}), ({}, {"clip": True})],
    "MiniBatchDictionaryLearning": [
        ({"n_components": 2}, change)
        for change in (
            {"alpha": 0.1},
            {"positive_dict": True},
            {"transform_algorithm": "lasso_lars"},
            {"transform_n_nonzero_coefs": 2},
            {"transform_alpha": 3.0, "transform_algorithm": "threshold"},
        )
    ]
    + [({"n_components": 2, "fit_algorithm": "cd"}, {"transform_max_iter": 1})],
    "MiniBatchNMF": [
        *(
            ({"n_components": 2}, change)
            for change in (
                {"alpha_W": 0.5},
                {"alpha_H": 0.5},
                {"tol": 0.5},
                {"fresh_restarts_max_iter": 1},
            )
        ),
        ({"n_components": 2, "alpha_W": 0.5}, {"l1_ratio": 0.5}),
    ],
    "StandardScaler": [],
}
# Changes of each estimator, each after the parameters that it begins with; together all that can be changed.
CASES: Mapping[str, list[tuple[Params, Params]]] = {
    "BernoulliNB": [*COUNTED, ({}, {"binarize": 2.0})],
    "Birch": [({"threshold": 0.1}, {"n_clusters": 2}), ({}, {"compute_labels": False})],
    "CategoricalNB": [*COUNTED, ({}, {"min_categories": 12})],
    "ComplementNB": [*COUNTED, ({}, {"norm": True})],
    "GaussianNB": [({}, {"var_smoothing": 0.5})],
    "MLPClassifier": MLP,
    "MLPRegressor": MLP,
    "MiniBatchKMeans": [
        ({"n_clusters": 2}, {"reassignment_ratio": 0.9}),
        ({"n_clusters": 2}, {"compute_labels": False}),
    ],
    "MultinomialNB": COUNTED,
    "PassiveAggressiveClassifier": [*PASSIVE_AGGRESSIVE, *WEIGHED, ({}, {"loss": "squared_hinge"})],
    "PassiveAggressiveRegressor": [
        *PASSIVE_AGGRESSIVE,
        ({}, {"loss": "squared_epsilon_insensitive"}),
        ({}, {"epsilon": 2.0}),
    ],
    "Perceptron": [*(({"penalty": "l2", **params}, change) for params, change in LINEAR), *WEIGHED],
    "SGDClassifier": SGD_CLASSIFIER,
    "SGDOneClassSVM": [
        *((CONSTANT | p, c) for p, c in LINEAR if not {"penalty", "l1_ratio", "alpha"} & {*p, *c}),
        *SCHEDULED,
        ({}, {"nu": 0.1}),
    ],
    "SGDRegressor": [*LINEAR, *SCHEDULED, ({}, {"loss": "huber"}), ({"loss": "huber"}, {"epsilon": 2.0})],
    **TRANSFORMERS,
}  # fmt: skip
INNER_PARAM: list[tuple[Params, Params]] = [({"estimator": {"SGDClassifier": {}}}, {"estimator__alpha": 0.1})]
WRAPPED: Mapping[str, list[tuple[Params, Params]]] = {
    "MultiOutputClassifier": INNER_PARAM,
    "MultiOutputRegressor": [({"estimator": {"SGDRegressor": {}}}, {"estimator__alpha": 0.1, "estimator__eta0": 0.1})],
    "OneVsOneClassifier": INNER_PARAM,
    "OneVsRestClassifier": [
        *INNER_PARAM,
        ({"estimator": {"PassiveAggressiveClassifier": {}}}, {"estimator__C": 0.01}),
        ({"estimator": {"MLPClassifier": {}}}, {"estimator__learning_rate_init": 0.1}),
    ],
    "SelectFromModel": [({"estimator": {"SGDRegressor": {}}}, {"estimator__alpha": 10.0})],
}
# What keepfit's own names are in scikit-learn's words.
SUCCESSORS: Mapping[str, Params] = {
    "C": {"eta0": 0.01},
    "squared_hinge": {"learning_rate": "pa2"},
    "squared_epsilon_insensitive": {"learning_rate": "pa2"},
}


def requests(name: str) -> Iterator[tuple[Any, Any]]:
    """Yield eight requests of a few rows of counts, and their target."""
    random = np.random.default_rng(5)
    for size in [5, 1, 1, 3] * 2:
        X = random.integers(0, 6, size=(size, 3)) - (2.5 if name == "SGDOneClassSVM" else 0.0)
        numbers, labels = X @ [1.0, -2.0, 0.5], random.integers(0, 3, size=size)
        y = labels if entry_of(name).target == "labels" else numbers
        yield X, np.stack([y, 2 - y], axis=1) if entry_of(name).multi_output else y


class Loop:
    """A plain loop over ``partial_fit``."""

    def __init__(self, name: str, params: Params) -> None:
        self.name, self.estimator, self.begun = name, build(name, params), False

    def learn(self, X: Any, y: Any) -> None:
        """Learn rows."""
        entry, classes = entry_of(self.name), np.arange(3)
        first = {"classes": [classes, classes] if entry.multi_output else classes}
        taking = entry.takes_y or self.name == "SelectFromModel"
        only_first = first if entry.target == "labels" and not self.begun else {}
        self.estimator.partial_fit(X, *([y] if taking else []), **only_first)
        self.begun = True

    def change(self, params: Params) -> None:
        """Change parameters, and what an MLP's optimizer was made with."""
        inner = {name.removeprefix("estimator__"): v for name, v in params.items() if name.startswith("estimator__")}
        if inner:
            made = [*getattr(self.estimator, "estimators_", ()), getattr(self.estimator, "estimator_", None)]
            for each in (self.estimator.estimator, *made):
                if each is not None:
                    self._set(each, inner)
        else:
            self._set(self.estimator, params)

    def _set(self, estimator: Any, params: Params) -> None:
        asked = {key: tuple(v) if key == "feature_range" else v for key, v in params.items()}
        if "C" in params or self.name.startswith("PassiveAggressive"):
            for name, value in params.items():
                asked |= SUCCESSORS.get(name if name == "C" else str(value), {})
            asked = {key: value for key, value in asked.items() if key not in ("C", "loss")}
        if isinstance(asked.get("class_weight"), dict):
            asked["class_weight"] = {int(label): weight for label, weight in asked["class_weight"].items()}
        estimator.set_params(**asked)
        optimizer = getattr(estimator, "_optimizer", None)
        for name in asked if optimizer is not None else ():
            other = {"nesterovs_momentum": "nesterov", "learning_rate": "lr_schedule"}.get(name, name)
            if hasattr(optimizer, other):
                setattr(optimizer, other, asked[name])
            if name in ("learning_rate_init", "learning_rate", "power_t"):
                late = estimator.learning_rate == "invscaling" and estimator.solver == "sgd"
                ago = (estimator.t_ + 1) ** estimator.power_t if late else 1
                optimizer.learning_rate = estimator.learning_rate_init / ago


def bundle_of(name: str, params: Params) -> Bundle:
    """Build a bundle that has learned nothing."""
    document: dict[str, Any] = {"estimator": name, "params": dict(params)}
    if entry_of(name).target == "labels":
        document["classes"] = [[0, 1, 2], [0, 1, 2]] if entry_of(name).multi_output else [0, 1, 2]
    return Bundle.new(parse(document))


def learn(bundle: Bundle, X: Any, y: Any) -> None:
    """Have a bundle learn rows that came as lists."""
    wanted = y.tolist() if bundle.recipe.entry.takes_y else None
    bundle.partial_fit(shape(bundle.recipe, X.tolist(), wanted, learning=True))


def learned(estimator: Any) -> dict[str, Any]:
    """Return attributes of an estimator as digests, without those that have no state."""
    found = {k: v for k, v in vars(estimator).items() if k not in ("_loss_function_", "_random_state", "class_weight")}
    return {key: joblib.hash(value) for key, value in found.items()}


def keep_last_loss(estimator: Any) -> None:
    """Drop from a network, or from those of a wrapper, the losses that a bundle does not keep."""
    for each in (estimator, *getattr(estimator, "estimators_", ())):
        if hasattr(each, "loss_curve_"):
            each.loss_curve_ = each.loss_curve_[-1:]


def fitted(estimator: Any) -> dict[str, Any]:
    """Return the learned attributes, which are not parameters."""
    return {key: value for key, value in learned(estimator).items() if key not in estimator.get_params()}


def answers(estimator: Any) -> Any:
    """Return predictions of some rows; a transformer gets larger rows than it has learned."""
    rows = np.arange(12.0).reshape(4, 3)
    return (estimator.predict(rows % 6) if hasattr(estimator, "predict") else estimator.transform(rows)).tolist()


@pytest.mark.parametrize(
    ("name", "params", "change"),
    [
        pytest.param(name, params, change, id=f"{name}-{number}-{'-'.join(change)}")
        for name, listed in (CASES | WRAPPED).items()
        for number, (params, change) in enumerate(listed)
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_a_changed_bundle_equals_a_plain_loop(name: str, params: Params, change: Params) -> None:
    """After a change each attribute equals the plain loop's bit for bit, and differs from one without the change."""
    bundle, loop, other = bundle_of(name, params), Loop(name, params), Loop(name, params)
    keyring = Keyring.from_text(SIGNING_KEYS)
    header = Header(envelope.BUNDLE, "a", 1, 1, 1, 1, "", envelope.runtime())
    for number, (X, y) in enumerate(requests(name)):
        if number == 4:
            asked = check(bundle.recipe, bundle.changed, change)
            bundle.change(asked)
            loop.change(asked)
            # A change outlives its worker, like rows.
            bundle = unseal(seal(bundle, keyring, header), keyring, bundle.recipe, "a")[1]
            assert bundle.changed == asked
        learn(bundle, X, y)
        loop.learn(X, y)
        other.learn(X, y)
    keep_last_loss(loop.estimator)
    keep_last_loss(other.estimator)
    assert learned(bundle.estimator) == learned(loop.estimator)
    answered = answers(loop.estimator)
    assert answers(bundle.estimator) == answered
    assert fitted(other.estimator) != fitted(loop.estimator) or answers(other.estimator) != answered


def changeable(name: str) -> set[str]:
    """Return the names of the parameters of an estimator that can be changed with one of its settings."""
    found: set[str] = set()
    for solver in OPTIMIZER_ATTRIBUTES if name.startswith("MLP") else (None,):
        owner = build(name, {} if solver is None else {"solver": solver})
        found |= {key for key in owner.get_params(deep=False) if immutable_reason(owner, key) is None}
    return found


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - WRAPPED.keys()))
def test_every_changeable_parameter_is_tested(name: str) -> None:
    """The changes tested above cover all parameters that the table allows."""
    tried = {key for _, change in CASES[name] for key in change}
    if name.startswith("PassiveAggressive"):
        # Its hinge has no epsilon.
        unused = {"epsilon"} if name.endswith("Classifier") else set()
        assert tried == changeable(name) - SGD_ONLY - unused | {"C"}
    else:
        assert tried == changeable(name)


IDLE_VALUES: Params = {
    "max_iter": 3, "tol": 0.5, "n_iter_no_change": 2, "validation_fraction": 0.3, "warm_start": True, "max_fun": 7,
    "max_no_improvement": 2, "verbose": 0, "n_jobs": 1, "early_stopping": False, "n_iter": 3, "batch_size": 2,
    "copy": True, "evaluate_every": 5, "learning_method": "batch", "perp_tol": 0.5, "fresh_restarts": True,
    "callback": None, "shuffle": True,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - WRAPPED.keys() - {"HashingVectorizer"}))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_unread_parameters_have_no_effect(name: str) -> None:
    """Parameters that the table calls of no effect do not change what partial_fit learns."""
    table = IMMUTABLE[type(build(name, {})).__name__]
    idle = " ".join(table.get(reason, "") for reason in (UNREAD, COMPUTATION)).split()
    params = CASES[name][0][0] if CASES[name] else {}
    told, plain = Loop(name, params), Loop(name, params)
    for number, (X, y) in enumerate(requests(name)):
        if number == 4:
            told.estimator.set_params(**{key: IDLE_VALUES[key] for key in idle if key in plain.estimator.get_params()})
        told.learn(X, y)
        plain.learn(X, y)
    assert fitted(told.estimator) == fitted(plain.estimator)


WORDS = {
    FIRST_ONLY: "first rows only",
    UNREAD: "never read",
    FIT_ONLY: "only in fit",
    COMPUTATION: "computation only",
    WIDTH: "columns",
}


def test_the_table_has_scikit_learns_parameters() -> None:
    """The table has every class with ``partial_fit``, and names only parameters of the class."""
    classes = {name: cls for name, cls in all_estimators() if hasattr(cls, "partial_fit")}
    assert set(IMMUTABLE) == classes.keys() - SUCCEEDED.keys()
    for name, reasons in IMMUTABLE.items():
        fixed = " ".join(reasons.values()).split()
        # Relatives share their list, and not all have all of it.
        relatives = [other for other in IMMUTABLE if IMMUTABLE[other] is reasons]
        known = {parameter for each in relatives for parameter in inspect.signature(classes[each]).parameters}
        assert set(fixed) <= known, name
        assert len(set(fixed)) == len(fixed)


def test_the_page_has_the_table() -> None:
    """docs/guides/changing-parameters.md lists for each estimator what cannot be changed, and why."""
    rows = ["| estimator | cannot be changed |", "|---|---|"]
    for name, reasons in sorted(IMMUTABLE.items()):
        told = [f"{WORDS[why]}: {', '.join(f'`{each}`' for each in names.split())}" for why, names in reasons.items()]
        rows.append(f"| `{name}` | {'; '.join(told) or 'nothing'} |")
    table = PAGE.read_text().partition("<!-- fixed -->\n")[2].partition("<!-- end -->")[0]
    assert table == "\n".join(rows) + "\n"


CHAIN: dict[str, Any] = {
    "steps": [{"StandardScaler": {}}, {"OneVsRestClassifier": {"estimator": {"SGDClassifier": {"alpha": 1}}}}]
}


def test_names_address_steps_and_wrappers() -> None:
    """The current recipe has a changed parameter at its nested place; an unknown name is rejected."""
    recipe = Recipe(**CHAIN)
    deep = "OneVsRestClassifier__estimator__alpha"
    forced = with_changes(recipe, {deep: 2, "StandardScaler__copy": False})
    assert forced.steps == [
        {"StandardScaler": {"copy": False}},
        {"OneVsRestClassifier": {"estimator": {"SGDClassifier": {"alpha": 2}}}},
    ]
    assert recipe.steps == CHAIN["steps"]
    for name in ("alpha", "SGDClassifier__alpha", "OneVsRestClassifier", "OneVsRestClassifier__alpha__x"):
        with pytest.raises(InvalidError, match="params: "):
            with_changes(recipe, {name: 1})
    twice = Recipe(steps=[{"StandardScaler": {}}, {"StandardScaler": {}}])
    with pytest.raises(InvalidError, match="two steps"):
        with_changes(twice, {"StandardScaler__copy": False})


def test_a_step_of_a_pipeline_is_changed() -> None:
    """In a pipeline the change equals that in a plain loop over its steps; class weights are by label there too."""
    steps = [{"MinMaxScaler": {}}, {"SGDClassifier": {}}]
    bundle = Bundle.new(parse({"steps": steps, "classes": ["a", "b", "c"]}))
    scaler, last = build("MinMaxScaler", {}), build("SGDClassifier", {})
    for number, (X, codes) in enumerate(requests("SGDClassifier")):
        if number == 4:
            change = {"SGDClassifier__class_weight": {"a": 5, "c": 0}, "SGDClassifier__alpha": 0.5}
            bundle.change(check(bundle.recipe, {}, {**change, "MinMaxScaler__feature_range": [0, 2]}))
            last.set_params(class_weight={0: 5, 2: 0}, alpha=0.5)
            scaler.set_params(feature_range=(0, 2))
        bundle.partial_fit(shape(bundle.recipe, X.tolist(), ["abc"[code] for code in codes], learning=True))
        last.partial_fit(scaler.partial_fit(X).transform(X), codes, classes=None if number else np.arange(3))
    assert learned(bundle.estimator.final) == learned(last)
    assert learned(bundle.estimator.transformers[0]) == learned(scaler)


def test_a_change_that_prevents_learning_is_rejected() -> None:
    """Priors of a wrong length are rejected with scikit-learn's message, and the bundle learns on as before."""
    bundle = bundle_of("MultinomialNB", {})
    for X, y in requests("MultinomialNB"):
        learn(bundle, X, y)
    with pytest.raises(ValueError, match="Number of priors must match"):
        bundle.change({"class_prior": [0.5, 0.5]})
    assert bundle.changed == {}
    learn(bundle, X, y)


def test_parameters_of_an_object_cannot_be_changed() -> None:
    """The parameters of an uploaded object cannot be changed."""
    with pytest.raises(InvalidError, match="an object cannot be changed"):
        check(Recipe(object="YQ=="), {}, {"alpha": 1})
