"""A call of train_score_predict in a bundle: two calls of partial_fit, and an answer that changes nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfit.errors import LearningError
from keepfit.model import train_score_predict
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows import shaping
from keepfit.rows.rows import Rows
from keepfit.rows.train_score_predict import ToPredict, TrainScorePredict, decode
from tests.faults.check import differences

RECIPE = parse({"estimator": "SGDRegressor", "scaler": "StandardScaler"})
X, Y = [[1.0, 2.0], [2.0, 1.0], [0.5, 0.5]], [1.0, 2.0, 3.0]


def call_of(n_pred: int = 2, *, proba: bool = False, test_rows: int = 1) -> TrainScorePredict:
    """Return a call with three rows."""
    rows = shaping.shape(RECIPE, X, Y, learning=True)
    asked = shaping.shape(RECIPE, X[:1] * n_pred, learning=False)
    return TrainScorePredict.of(rows, test_rows, ToPredict(proba, asked))


def learned(call: TrainScorePredict) -> tuple[Bundle, dict[str, Any]]:
    """Return a bundle that has learned a call, and the answer."""
    bundle = Bundle.new(RECIPE)
    return bundle, json.loads(train_score_predict.learn(bundle, call, bundle.partial_fit))


def by_hand(call: TrainScorePredict) -> Bundle:
    """Return a bundle that has learned the two parts of a call."""
    bundle = Bundle.new(RECIPE)
    for part in filter(None, call.parts()):
        bundle.partial_fit(part)
    return bundle


@pytest.mark.parametrize("test_rows", [1, 2, 3])
def test_the_answer_changes_nothing(test_rows: int) -> None:
    """The bundle equals one that has learned the parts without any question, to the bit."""
    bundle, answer = learned(call_of(test_rows=test_rows))
    assert differences(bundle, by_hand(call_of(test_rows=test_rows))) == []
    assert (answer["train_rows"], answer["test_rows"]) == (3 - test_rows, test_rows)


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), KeyError("no"), LearningError("no")])
def test_a_failure_to_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whatever scoring and predicting raise, the rows are learned and the answer says what is missing."""

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Bundle, "score", fail)
    monkeypatch.setattr(Bundle, "predict", fail)
    bundle, answer = learned(call_of())
    assert (bundle.rows_seen, answer["score"], answer["predictions"]) == (3, None, None)
    assert [text.partition(":")[0] for text in answer["warnings"]] == ["score", "predictions"]


def test_missing_probabilities_leave_the_predictions() -> None:
    """An estimator without probabilities still predicts."""
    _, answer = learned(call_of(proba=True))
    assert len(answer["predictions"]) == 2
    assert "probabilities" not in answer
    assert answer["warnings"][0].startswith("probabilities: ")


def test_a_failure_to_learn_is_raised() -> None:
    """What the estimator raises makes the whole request fail."""
    bundle = Bundle.new(RECIPE)

    def fail(_: Rows) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        train_score_predict.learn(bundle, call_of(), fail)


def test_an_answer_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions that are too large to be stored are left out, and a warning says so."""
    monkeypatch.setattr(train_score_predict, "ANSWER_BYTES_MAX", 400)
    assert learned(call_of())[1]["warnings"] == []
    bundle, answer = learned(call_of(100))
    assert (bundle.rows_seen, answer["predictions"], answer["warnings"]) == (3, None, [train_score_predict.TOO_LARGE])
    assert answer["score"]["max_error"] >= 0


def test_what_json_does_not_have_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction that cannot be sent is a warning."""
    monkeypatch.setattr(Bundle, "predict", lambda *_: ["\ud800"])
    _, answer = learned(call_of())
    assert answer["predictions"] is None
    assert len(answer["warnings"]) == 1


@given(
    n=st.integers(1, 4),
    labels=st.lists(st.text(max_size=3), min_size=4, max_size=4),
    proba=st.booleans(),
    has_weights=st.booleans(),
    data=st.data(),
)
def test_a_call_is_encoded_whole_and_in_pieces(
    n: int, labels: list[str], proba: bool, has_weights: bool, data: st.DataObject
) -> None:
    """Encoded and decoded, in one or in pieces, a call is the same; readers of plain rows read the rows to learn."""
    weights = bytes(8 * n) if has_weights else None
    normal = Rows.decode(Rows(n, bytes(range(8 * n)), [list(labels[:n])], list(labels[:n]), weights).encode())
    call = TrainScorePredict.of(normal, data.draw(st.integers(1, n)), ToPredict(proba, normal))
    encoded = call.encode()
    assert b"".join(map(bytes, call.pieces())) == encoded
    assert call.size_bytes == len(encoded)
    assert decode(encoded) == call
    assert Rows.decode(encoded) == normal
    assert decode(normal.encode()) == normal
    train, test = call.parts()
    assert (train.n if train else 0) + test.n == n
    assert call.fits(len(encoded)) or len(encoded) < 64 + 16 * n
    assert not call.fits(len(encoded) - 1)
