"""What a drawing of a learning curve shows."""

import json
import math
import sys
from typing import Any

import pytest

from keepfit import Client
from keepfit.errors import InvalidError
from tests.keepfit.client.scripted_server import ok, scripted

POINTS = [
    {"rows_seen": rows, "time": 1.0, "mean_absolute_error": error, "baseline_mean_absolute_error": 2.0, "r2": None,
     "window": {"mean_absolute_error": error}}
    for rows, error in ((1, None), (10, 0.5), (20, 0.25))
]  # fmt: skip


class Axes:
    """Axes of matplotlib that note what is drawn."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[list[int], list[float]]] = {}
        self.texts: list[str] = []

    def plot(self, rows: list[int], values: list[float], label: str, linestyle: str) -> None:
        """Note a line."""
        assert linestyle in ("-", "--")
        self.lines[label] = (rows, values)

    def set_xlabel(self, text: str) -> None:
        """Note a text."""
        self.texts.append(text)

    set_ylabel = set_title = set_xlabel

    def legend(self) -> None:
        """Note the legend."""
        self.texts.append("legend")


def plot(curve: dict[str, Any], **options: Any) -> Any:
    """Draw the curve that a gateway answers."""
    with scripted([ok(json.dumps(curve))]) as server, Client(server.url) as client:
        drawn = client.model({"type": "shoes"}).plot_curve(**options)
        assert server.received[0].line.endswith("/curve HTTP/1.1")
        return drawn


def test_a_curve_is_drawn_with_its_baseline() -> None:
    """The error over all rows, over the last rows, and that of the baseline; a point without a value is a gap."""
    axes = plot({"points": POINTS}, ax=Axes())
    assert set(axes.lines) == {"all rows", "last rows", "baseline, all rows"}
    rows, values = axes.lines["all rows"]
    assert (rows, values[1:]) == ([1, 10, 20], [0.5, 0.25])
    assert math.isnan(values[0])
    assert axes.texts == ["rows learned", "mean absolute error", "Model({'type': 'shoes'})", "legend"]


@pytest.mark.parametrize(("curve", "metric"), [({"points": []}, None), ({"points": POINTS}, "accuracy")])
def test_what_cannot_be_drawn(curve: dict[str, Any], metric: str | None) -> None:
    """A curve without points or without the metric is refused, with the metrics that it has."""
    with pytest.raises(InvalidError, match=r"no points|mean_absolute_error"):
        plot(curve, metric=metric, ax=Axes())


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidError, match="pip install matplotlib"):
        plot({"points": POINTS})
