"""Learning curves as drawings of matplotlib, which is optional.

Owns what a drawing of a curve shows. Never asks a gateway. Invariant: a point without a value is a gap in the line.
"""

from collections.abc import Mapping
from typing import Any

from keepfit.errors import InvalidError

# The metric that is drawn unless another one is named: the first that the model has.
PREFERRED = ("mean_absolute_error", "accuracy")
BASELINE = "baseline_"
NAN = float("nan")


def draw(curve: Mapping[str, Any], title: str, metric: str | None = None, axes: Any = None) -> Any:
    """Draw a metric of a curve over the rows that were learned, over all rows and over the last ones; return the axes.

    Raises
    ------
    InvalidError
        If the curve has no points or no such metric, or matplotlib is not installed.
    """
    points = curve["points"]
    if not points:
        raise InvalidError("The curve has no points yet: the model must learn rows first.")
    metrics = [name for name in points[-1] if isinstance(points[-1][name], float | int) or points[-1][name] is None]
    names = [name for name in metrics if name not in ("rows_seen", "time") and not name.startswith(BASELINE)]
    chosen = metric or next((name for name in PREFERRED if name in names), names[0] if names else None)
    if chosen is None or chosen not in names:
        raise InvalidError(f"The curve has no metric {chosen!r}; it has {', '.join(names) or 'none'}.")
    axes = _new_axes() if axes is None else axes
    rows = [point["rows_seen"] for point in points]
    for name, where, label in (
        (chosen, None, "all rows"),
        (chosen, "window", "last rows"),
        (BASELINE + chosen, None, "baseline, all rows"),
    ):
        values = [_value(point if where is None else point.get(where) or {}, name) for point in points]
        if any(value == value for value in values):  # noqa: PLR0124 - NaN is the only value that differs from itself
            axes.plot(rows, values, label=label, linestyle="--" if name != chosen else "-")
    axes.set_xlabel("rows learned")
    axes.set_ylabel(chosen.replace("_", " "))
    axes.set_title(title)
    axes.legend()
    return axes


def _value(point: Mapping[str, Any], name: str) -> float:
    value = point.get(name)
    return NAN if value is None else float(value)


def _new_axes() -> Any:
    try:
        from matplotlib import pyplot  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        raise InvalidError("plot_curve needs matplotlib: pip install matplotlib, or give it axes as ax.") from None
    return pyplot.subplots()[1]
