"""Files of rows through a gateway: what is sent, what is written, and what an error says was learned."""

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from keepfit.client.clients import Model
from keepfit.client.files.learn_file import learn_file
from keepfit.client.files.predict_file import predict_file
from keepfit.client.files.row_files import RowFile
from keepfit.client.files.row_values import columns_of
from keepfit.client.files.row_writer import RowWriter
from keepfit.errors import Fault, InvalidError, KeepfitError, LearningError, TooLargeError, UnavailableError
from keepfit.recipe import recipe

LABELS = {"estimator": "SGDClassifier", "features": {"x": "number"}}
HASH = "0" * 64


class FakeModel:
    """A model that answers from a list, or raises, and records the rows that it gets."""

    hash = HASH

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.bodies: list[Any] = []

    def _answer(self, body: bytes, **_: Any) -> dict[str, Any]:
        self.bodies.append(msgspec.json.decode(body))
        answer: dict[str, Any] | KeepfitError = self.answers.pop(0)
        if isinstance(answer, KeepfitError):
            raise answer
        return answer

    partial_fit_json = predict_json = _answer


def model(document: dict[str, Any] = LABELS) -> dict[str, Any]:
    """Return a model's description."""
    return {"recipe": msgspec.to_builtins(recipe.parse(document))}


def predicted(path: Path, out: Path, *answers: Any, **options: Any) -> FakeModel:
    """Predict a file into another one."""
    asked = FakeModel(*answers)
    with RowFile(str(path)) as source, RowWriter(str(out), "jsonl" if out.suffix == ".jsonl" else "csv") as writer:
        columns = columns_of(model())
        predict_file(cast("Model", asked), source, columns, writer, **options)
    return asked


def learned(path: Path, *answers: Any, **options: Any) -> FakeModel:
    """Learn a file."""
    asked = FakeModel(*answers)
    with RowFile(str(path)) as source:
        columns = columns_of(model(), ["y"])
        learn_file(cast("Model", asked), source, columns, rows_seen=0, **options)
    return asked


def test_probabilities_of_later_rows_have_their_columns(tmp_path: Path) -> None:
    """Where the first rows are bad, or a class appears later, the columns of probabilities are in the header."""
    (tmp_path / "a.csv").write_text("x\nbad\n1\n2\n")
    answers = (
        {"predictions": ["u"], "probabilities": [[1.0]], "classes": ["u"]},
        {"predictions": ["v"], "probabilities": [[0.2, 0.8]], "classes": ["u", "v"]},
    )
    predicted(tmp_path / "a.csv", tmp_path / "o.csv", *answers, proba=True, skip_bad=True, rows_max=1)
    assert (tmp_path / "o.csv").read_text() == (
        "x,prediction,prediction_u,prediction_v\nbad,,,\n1,u,1.0,\n2,v,0.2,0.8\n"
    )  # fmt: skip


def test_columns_of_later_rows_of_json_are_written(tmp_path: Path) -> None:
    """A key that only a later row has is a column of the result."""
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": 2, "id": 7}\n')
    predicted(tmp_path / "a.jsonl", tmp_path / "o.csv", {"predictions": ["u", "v"]})
    assert (tmp_path / "o.csv").read_text() == "x,id,prediction\n1,,u\n2,7,v\n"


def test_a_file_with_a_header_only_gives_a_header(tmp_path: Path) -> None:
    """Without rows nothing is sent; the header is checked, and written with the column of the predictions."""
    (tmp_path / "a.csv").write_text("x,id\n")
    asked = predicted(tmp_path / "a.csv", tmp_path / "o.csv")
    assert asked.bodies == []
    assert (tmp_path / "o.csv").read_text() == "x,id,prediction\n"
    (tmp_path / "b.csv").write_text("z\n")
    with pytest.raises(InvalidError, match="column 'x' is missing"):
        predicted(tmp_path / "b.csv", tmp_path / "o.csv")
    with pytest.raises(InvalidError, match="column 'y' is missing"):
        learned(tmp_path / "a.csv")


def test_labels_of_csv_are_text(tmp_path: Path) -> None:
    """Without classes in the recipe a label is sent as it is written."""
    (tmp_path / "a.csv").write_text("x,y\n1,01067\n2,7\n")
    asked = learned(tmp_path / "a.csv", {"version": 1, "rows_seen": 2})
    assert asked.bodies == [{"X": [[1.0], [2.0]], "y": ["01067", "7"]}]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([InvalidError("No", [Fault("no", 0)])], "line 2: no. This run has learned nothing before that."),
        ([LearningError("Put aside.")], "Put aside. This run has learned nothing before that."),
        (
            [UnavailableError("Gone.")],
            "Gone. This run has learned nothing before that; rows of the request may be accepted; send the file again",
        ),
        (
            [{"version": 1, "rows_seen": 1}, UnavailableError("Gone.")],
            "Gone. 1 rows before that are learned; rows of the request may be accepted; send the file again to",
        ),
        (
            [{"version": 1, "rows_seen": 1}, InvalidError("No", [Fault("no", 0)])],
            "line 3: no. 1 rows before that are learned, and nothing after them; send the file again to continue.",
        ),
    ],
)
def test_an_error_says_what_is_learned(tmp_path: Path, answers: list[Any], says: str) -> None:
    """What this run has learned, and whether the request at fault may be learned, is in the message."""
    (tmp_path / "a.csv").write_text("x,y\n1,a\n2,b\n")
    with pytest.raises(KeepfitError) as raised:
        learned(tmp_path / "a.csv", *answers, rows_max=1)
    assert says in str(raised.value)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (1, 3, 2)])
def test_no_column_has_values_of_two_kinds(tmp_path: Path, order: tuple[int, ...], suffix: str) -> None:
    """A column that only one row has, and the class of another row of the same name, are an error in every order."""
    lines = {1: '{"x": 1}', 2: '{"x": 2, "prediction_v": 5}', 3: '{"x": 3}'}
    (tmp_path / "a.jsonl").write_text("\n".join(lines[number] for number in order))
    old = {"predictions": ["u"], "probabilities": [[1.0]], "classes": ["u"]}
    new = {"predictions": ["v"], "probabilities": [[0.2, 0.8]], "classes": ["u", "v"]}
    answers = [new if number == 3 else old for number in order]
    with pytest.raises(InvalidError, match="has a column 'prediction_v' already; name another one with --column"):
        predicted(tmp_path / "a.jsonl", tmp_path / f"o.{suffix}", *answers, proba=True, rows_max=1)
    assert not (tmp_path / f"o.{suffix}").exists()
    options = {"proba": True, "rows_max": 1, "only": True}
    predicted(tmp_path / "a.jsonl", tmp_path / "only.csv", *answers, **options)
    assert (tmp_path / "only.csv").read_text().startswith("prediction,prediction_u,prediction_v\n")


def test_requests_whose_answers_are_too_large_are_divided(tmp_path: Path) -> None:
    """After a 413 the rows are sent in halves until an answer fits, and later ones in requests of that size."""
    (tmp_path / "a.csv").write_text("x\n0\n1\n2\nbad\n4\n5\n6\n7\n8\n")
    too_large = TooLargeError("The answer is too large.")
    sizes = [2, 1, 2, 2, 1]
    asked = predicted(
        tmp_path / "a.csv", tmp_path / "o.csv", too_large, too_large,
        *({"predictions": [f"p{number}"] * size} for number, size in enumerate(sizes)),
        rows_max=8, skip_bad=True,
    )  # fmt: skip
    sent = [[row[0] for row in body["X"]] for body in asked.bodies]
    assert sent == [[0, 1, 2, 4, 5, 6, 7], [0, 1, 2], [0, 1], [2], [4, 5], [6, 7], [8]]
    assert (tmp_path / "o.csv").read_text() == ("x,prediction\n0,p0\n1,p0\n2,p1\nbad,\n4,p2\n5,p2\n6,p3\n7,p3\n8,p4\n")
    (tmp_path / "b.csv").write_text("x\n0\n")
    with pytest.raises(TooLargeError):
        predicted(tmp_path / "b.csv", tmp_path / "o.csv", too_large)
