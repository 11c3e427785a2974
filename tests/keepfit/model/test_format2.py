"""Bundles that the last keepfit of format 2 wrote: they are read, predict and learn as they did there."""

import json
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_info

from keepfit.model.bundle import Bundle
from keepfit.model.format2 import CLASSES
from keepfit.model.serialization import seal, unseal
from keepfit.recipe.recipe import from_text
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import BUNDLE, Header, Keyring
from tests import catalogue
from tests.keepfit.model.test_serialization import names_in

FOLDER = Path(__file__).parents[2] / "fixtures" / "format2"
LISTED = json.loads((FOLDER / "cases.json").read_text())
# As in make.py: public keys that sign these files only.
KEYRING = Keyring.from_text("test-only:" + b"keepfit's test fixtures, public!".hex())
KERNELS = {str(found["architecture"]) for found in threadpool_info() if "architecture" in found}
# OpenBLAS sums in another order on another processor. There the results agree in their first digits.
SAME_KERNELS = set(LISTED["blas"]) == KERNELS

each_case = pytest.mark.parametrize("name", LISTED["cases"])


def skip_unless_loadable(header: Header) -> None:
    """Skip where a minor release differs from the one that wrote a file: no bundle of another one can be loaded.

    On the pinned versions nothing is skipped, and another patch release is no reason either.
    """
    for name, difference in envelope.differences(header).items():
        if header.runtime[name].split(".")[:2] != envelope.installed(name).split(".")[:2]:
            pytest.skip(f"written with {name} {difference}")


class Case:
    """The files of a case."""

    def __init__(self, name: str) -> None:
        self.known: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.recipe = from_text(self.known["recipe"])
        self.name = name
        skip_unless_loadable(KEYRING.open((FOLDER / f"{name}.before").read_bytes(), BUNDLE)[0])

    def bundle(self, when: str) -> tuple[Header, Bundle]:
        """Read the bundle `before` or `after` the last requests."""
        data = (FOLDER / f"{self.name}.{when}").read_bytes()
        return unseal(data, KEYRING, self.recipe, self.known["hash"])

    def bundle_payload(self) -> bytes:
        """Return the pickle of the bundle before the last requests."""
        return KEYRING.open((FOLDER / f"{self.name}.before").read_bytes(), BUNDLE)[1]

    def answers(self, bundle: Bundle) -> dict[str, Any]:
        """Return what `bundle` answers about the rows of the case, and its metrics."""
        rows = shape(bundle.recipe, self.known["X"], learning=False)
        found: dict[str, Any] = {"metrics": bundle.metrics(), "rows_seen": bundle.rows_seen, "classes": bundle.classes}
        if not bundle.waiting:
            found["predictions"] = bundle.predict(rows)
            found["chances"] = None if self.known["after"]["chances"] is None else bundle.confidences(rows)
        return found

    def learn(self, bundle: Bundle) -> None:
        """Learn the last requests."""
        for sent in self.known["more"]:
            bundle.partial_fit(shape(bundle.recipe, sent["X"], sent.get("y"), sent.get("sample_weight"), learning=True))


def state(bundle: Bundle) -> list[Any]:
    """All that a bundle holds but its recipe, bit for bit."""
    parts = [bundle.columns, bundle.labels, bundle.estimator, bundle.prequential, bundle.waiting, bundle.changed]
    return catalogue.state([*parts, bundle.rows_seen])


def comparable(name: str, answers: dict[str, Any]) -> Any:
    """Return what this version must answer as the former one did.

    Its answers after single rows with a variance of zero (GaussianNB, in `late_classes`) were NaN.
    """
    compared = ["rows_seen", "classes"] if name == "late_classes" else list(answers)
    return {key: without_baseline(answers[key]) for key in compared}


def without_baseline(answers: Any) -> Any:
    """Return answers without the metrics of the baseline, which the former version did not have."""
    if isinstance(answers, list):
        return [without_baseline(each) for each in answers]
    if not isinstance(answers, dict):
        return answers
    return {key: without_baseline(each) for key, each in answers.items() if not key.startswith("baseline_")}


def assert_same(found: Any, known: Any, *, exact: bool = SAME_KERNELS) -> None:
    """Compare answers: bit for bit where the linear algebra is that of the machine that wrote them."""
    if exact:
        assert json.dumps(found) == json.dumps(known)
    elif isinstance(known, dict):
        assert found.keys() == known.keys()
        for key in known:
            assert_same(found[key], known[key], exact=exact)
    elif isinstance(known, list):
        assert len(found) == len(known)
        for one, other in zip(found, known, strict=True):
            assert_same(one, other, exact=exact)
    elif isinstance(known, float):
        assert found == pytest.approx(known, rel=1e-9, abs=1e-12, nan_ok=True)
    else:
        assert found == known


@each_case
def test_a_bundle_of_format_2_predicts_as_before(name: str) -> None:
    """Predictions, probabilities, metrics and counters are those that the former version computed."""
    case = Case(name)
    header, bundle = case.bundle("before")
    assert (header.rows_seen, bundle.changed) == (bundle.rows_seen, case.known["changed"])
    assert_same(comparable(name, case.answers(bundle)), comparable(name, case.known["before"]))


@each_case
def test_a_bundle_of_format_2_learns_on_as_before(name: str) -> None:
    """After the same further rows the bundle is bit for bit the one that the former version stored."""
    case = Case(name)
    bundle, expected = case.bundle("before")[1], case.bundle("after")[1]
    case.learn(bundle)
    found, known = comparable(name, case.answers(bundle)), comparable(name, case.known["after"])
    # The former version added the errors of the rows of a request in another order.
    assert_same(found.pop("metrics", {}), known.pop("metrics", {}), exact=False)
    assert_same(found, known)
    if SAME_KERNELS:
        for each in (bundle, expected):
            each.prequential = []
            # The former version kept the loss of every call.
            if hasattr(each.estimator, "loss_curve_"):
                each.estimator.loss_curve_ = each.estimator.loss_curve_[-1:]
        assert state(bundle) == state(expected)


@each_case
def test_a_bundle_of_format_2_is_stored_in_format_3(name: str) -> None:
    """Sealed again it names no class of keepfit, and goes on bit for bit as the one that was read from format 2."""
    case = Case(name)
    header, bundle = case.bundle("before")
    assert names_in(case.bundle_payload())
    data = seal(bundle, KEYRING, header)
    assert not names_in(KEYRING.open(data, BUNDLE)[1])
    again = unseal(data, KEYRING, case.recipe, case.known["hash"])[1]
    assert type(again) is type(bundle)
    assert state(again) == state(bundle)
    for each in (again, bundle):
        case.learn(each)
    assert state(again) == state(bundle)


def test_every_part_of_format_2_occurs() -> None:
    """Together the files hold each class that format 2 stored."""
    found = set().union(*(names_in(Case(name).bundle_payload()) for name in LISTED["cases"]))
    assert found == set(map(".".join, CLASSES))
