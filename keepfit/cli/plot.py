"""Plots of lines on a terminal, drawn with plotille.

Owns how lines, axes and the legend look. Never reads anything, and imports plotille only to draw: it is in an extra.
Invariant: lines can be distinguished without colours.
"""

import itertools
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from keepfit import extras
from keepfit.errors import SettingsError
from keepfit.observability.printable import printable

LINES, MARGIN, DAY_S = 20, 26, 86_400.0
# Ticks of a time axis show day and time, by its length; 8 characters at most.
TICKS = ((DAY_S, "%H:%M:%S"), (4 * DAY_S, "%d %H:%M"), (300 * DAY_S, "%m-%d"))
MARKERS = "abcdefghijklmnopqrstuvwxyz"

Line = Sequence[tuple[float, float]]
Tick = Callable[[float], str]


def draw(lines: Mapping[str, Line], x_label: str, tick: Tick, *, needed_by: str) -> str:
    """Return a plot of the lines, each with at least one point (x, y), by their names; with several also a legend.

    `tick` returns the text of a value of x. `needed_by` names the option or command in the error.

    Raises
    ------
    SettingsError
        If plotille is not installed.
    """
    try:
        import plotille  # noqa: PLC0415 - optional, and only this function needs it
    except ModuleNotFoundError:
        raise SettingsError(f"{needed_by} needs plotille: {extras.install('history')}.") from None
    figure = plotille.Figure()
    figure.width, figure.height = max(20, shutil.get_terminal_size().columns - MARGIN), LINES
    figure.color_mode, figure.with_colors = "names", sys.stdout.isatty()
    first, last = limits(lines)
    # A single point needs a width as well, or there is no scale.
    figure.set_x_limits(first, max(last, first + 1))
    figure.x_label, figure.y_label = x_label, "value"
    figure.x_ticks_fkt = lambda value, _: tick(float(value))
    figure.y_ticks_fkt = lambda value, _: f"{value:.4g}"
    for (name, line), marker in zip(lines.items(), itertools.cycle(MARKERS), strict=False):
        figure.plot(*zip(*line, strict=True), label=printable(name), marker=marker if len(lines) > 1 else None)
    drawing: str = figure.show(legend=len(lines) > 1)
    return drawing


def limits(lines: Mapping[str, Line]) -> tuple[float, float]:
    """Return the least and the greatest x of the lines."""
    xs = [x for line in lines.values() for x, _ in line]
    return min(xs), max(xs)


def time_tick(length_s: float) -> Tick:
    """Return the ticks of a time axis of this length, in seconds since 1970.

    >>> time_tick(3600.0)(1796057347.5), time_tick(10 * DAY_S)(1796057347.5)
    ('16:49:07', '11-30')
    """
    form = next((form for seconds, form in TICKS if length_s <= seconds), "%Y-%m")
    return lambda value: datetime.fromtimestamp(value, UTC).strftime(form)


def count_tick(value: float) -> str:
    """Return the text of a number of rows, 8 characters at most.

    >>> count_tick(950.0), count_tick(12_500.0), count_tick(2_000_000.0)
    ('950', '12.5k', '2M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
