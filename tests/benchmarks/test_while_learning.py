"""The tables of predictions beside learning, computed from fixed figures, and the bodies of the learning calls."""

import json

from benchmarks import stack, while_learning
from benchmarks.load import Call, Sample
from benchmarks.while_learning import BESIDES, CASES, ECHO, Beside, Lone


def sample(rate: float) -> Sample:
    """Return a sample."""
    return Sample(rate, 1.0, 2.0, {})


def row(text: str, title: str, number: int = 0) -> list[str]:
    """Return the cells of the `number`-th table row that begins with `title`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in lines[number].strip("|").split("|")]


def test_a_ratio_is_of_one_round() -> None:
    """Rounds at different speeds of the machine have the same ratio; the table has the median of the rounds."""
    samples = {
        (case.title, learning.title): [sample(rate / (2 if learning.rate else 1)) for rate in (100, 1000, 2000)]
        for case in CASES
        for learning in BESIDES
    }
    samples[ECHO, BESIDES[0].title] = [sample(rate * 4) for rate in (100, 1000, 2000)]
    lone = {2: Lone(1.0, 1.2, 1.5, 80.0)}
    text = while_learning.report(samples, {CASES[0].title: (2.5, 1.25)}, lone)
    assert row(text, ECHO)[:3] == [ECHO, "4,000 (2.0)", "-"]
    assert row(text, CASES[0].title)[1:3] == ["1,000 (2.0)", "500 (2.0)"]
    assert row(text, CASES[0].title, 1)[1:3] == ["0.25x", "0.50x"]
    assert row(text, CASES[0].title, 2)[1:] == ["2.50", "1.25"]
    assert row(text, "2")[1:] == ["1.00", "1.20", "1.50", "1.20x", "1.50x", "80"]


def test_learning_calls_have_the_rows_of_their_title() -> None:
    """The body of a call of ten rows is JSON with ten rows and ten targets."""
    call = Beside(200, 10).call(Call("/learn", stack.LEARN))
    body = json.loads(call.template.replace("%.6f", "0.5"))
    assert (len(body["X"]), len(body["y"])) == (10, 10)
    assert Beside(200, 10).title == "200 calls/s of 10 rows"
    assert Beside(5).call(Call("/learn", stack.LEARN)) == Call("/learn", stack.LEARN)
