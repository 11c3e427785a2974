"""Bundle format 3: what is pickled names no class of keepfit, whatever the bundle holds."""

import pickletools
from typing import Any

import pytest

from keepfit.errors import EnvelopeError
from keepfit.model import pickling
from keepfit.model.bundle import Bundle
from keepfit.model.object_bundle import new_bundle
from keepfit.model.serialization import FORMAT, seal, unseal
from keepfit.objects import dump
from keepfit.recipe import uploads
from keepfit.recipe.catalogue import CATALOGUE
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape
from keepfit.security.envelope import BUNDLE, Header, Keyring, runtime
from tests import catalogue
from tests.conftest import SIGNING_KEYS

KEYRING = Keyring.from_text(SIGNING_KEYS)


def names_in(payload: bytes) -> set[str]:
    """Return the classes and functions of keepfit that a pickle names."""
    found: set[str] = set()
    pushed: list[str] = []
    memo: list[str] = []
    for operation, argument, _ in pickletools.genops(payload):
        if operation.name == "MEMOIZE":
            memo.append(pushed[-1])
        elif operation.name in ("BINGET", "LONG_BINGET"):
            pushed.append(memo[argument])
        elif operation.name == "STACK_GLOBAL":
            pushed.append(".".join(pushed[-2:]))
            found.add(pushed[-1])
        else:
            pushed.append(argument if isinstance(argument, str) else "")
    assert "GLOBAL" not in {operation.name for operation, _, _ in pickletools.genops(payload)}
    return {name for name in found if name.startswith("keepfit")}


def sealed(bundle: Bundle) -> bytes:
    """Envelope of a bundle."""
    return seal(bundle, KEYRING, Header(BUNDLE, "ab" * 32, 1, 1, 1, bundle.rows_seen, "", bundle.runtime))


def test_the_search_for_names_finds_them() -> None:
    """A class of keepfit is found in a pickle, by its first mention and by a later one of the same module."""
    classes = [Bundle, dict, Keyring, Header, [Header], Bundle]
    assert names_in(pickling.dump(classes)) == {
        "keepfit.model.bundle.Bundle",
        "keepfit.security.envelope.Keyring",
        "keepfit.security.envelope.Header",
    }


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_no_bundle_names_a_class_of_keepfit(name: str) -> None:
    """Whatever its estimator, a bundle's pickle holds no class or function of keepfit, before and after learning."""
    bundle = Bundle.new(catalogue.recipe(name))
    assert not names_in(KEYRING.open(sealed(bundle), BUNDLE)[1])
    for seed in range(2):
        bundle.partial_fit(catalogue.batch(name, 12, seed).learned(bundle.recipe))
        assert not names_in(KEYRING.open(sealed(bundle), BUNDLE)[1])


def test_an_object_that_names_classes_of_its_user_names_none_of_keepfit() -> None:
    """The bundle of an uploaded object holds the user's classes and none of keepfit."""
    keys = "u1:" + "ab" * 32
    uploading = uploads.upload_keyring(keys)
    recipe = parse({"object": dump(UserMean(), keys, kind="regressor")}, uploading)
    bundle = new_bundle(recipe, uploading)
    bundle.partial_fit(shape(recipe, [[1.0]], [2.0], learning=True))
    data = sealed(bundle)
    assert not names_in(KEYRING.open(data, BUNDLE)[1])
    again = unseal(data, KEYRING, recipe, "ab" * 32)[1]
    assert type(again) is type(bundle)
    assert again.estimator.mean == 2.0


class UserMean:
    """Predicts the last target."""

    mean = 0.0

    def partial_fit(self, X: Any, y: Any) -> None:
        """Learn."""
        self.mean = float(y[-1])

    def predict(self, X: Any) -> list[float]:
        """Predict."""
        return [self.mean] * len(X)


@pytest.mark.parametrize(("first", "number"), [({}, 1), (1, 1), (FORMAT + 1, FORMAT + 1)])
def test_an_unknown_format_is_refused(first: Any, number: int) -> None:
    """A bundle of another format is refused with its number and those that can be read; format 1 had no number."""
    header = Header(BUNDLE, "ab" * 32, 1, 1, 1, 1, "", runtime())
    data = KEYRING.seal(header, pickling.dump((first, None, [])))
    with pytest.raises(EnvelopeError, match=f"has format {number}; this version of keepfit reads formats 2 and 3"):
        unseal(data, KEYRING, parse({"estimator": "SGDRegressor"}), header.hash)


def test_codes_by_a_later_rule_are_refused() -> None:
    """A bundle whose labels have codes by a rule that this version does not know is not read by another one."""
    recipe = parse({"estimator": "SGDRegressor", "features": {"make": "category"}})
    bundle = Bundle.new(recipe)
    bundle.columns.rule += 1
    with pytest.raises(EnvelopeError, match="of a later version of keepfit: its labels have codes by rule 4"):
        unseal(sealed(bundle), KEYRING, recipe, "ab" * 32)
