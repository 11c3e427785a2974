"""Published figures of River: those in the docstrings of the installed package.

Each docstring is run as it stands. Where it calls ``progressive_val_score`` (River's test-then-train loop), the
model is copied before the call; the call itself gives the plain figure. The text below the call is the published one.
"""

import contextlib
import copy
import doctest
import importlib
import io
import math
import pkgutil
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import river
import river.evaluate

# Data that River downloads; these docstrings are left out.
DOWNLOADED = ("CreditCard", "Elec2", "SMSSpam", "CriteoAds", "MovieLens100K", "Restaurants", "Taxis")
# Docstrings whose rows are texts instead of columns.
TEXTS = ("river.preprocessing.GapEncoder",)
CALL = "progressive_val_score("
# A report of progress, which comes before the figure.
PROGRESS = "["
# A metric, its value, and what follows it: a percent sign, or dots where digits were left out.
FIGURE = re.compile(r"(?:.*\s)?(\w+(?:\(\w+\))?): ([\d.]+?)(%|\.\.\.)?")

Row = tuple[dict[Any, Any], Any]
Examples = list[doctest.Example]


@dataclass(frozen=True, slots=True)
class Published:
    """A figure as the docstring of `source` shows it, which is its figure `number`.

    `digits` is the text without its `suffix`: ``%`` of a share, ``...`` where digits are left out.
    """

    source: str
    number: int
    metric: str
    digits: str
    suffix: str

    @property
    def text(self) -> str:
        """The text in the docstring."""
        return f"{self.digits}{self.suffix}"

    def shown(self, value: float) -> str:
        """Return the digits of `value` as the docstring would show it."""
        decimals = len(self.digits.partition(".")[2])
        if self.suffix == "%":
            value *= 100
        if self.suffix == "...":
            value = math.floor(value * 10**decimals) / 10**decimals
        return f"{value:.{decimals}f}"


@dataclass(frozen=True, slots=True)
class RiverFigure:
    """One call of ``progressive_val_score``: its untrained model, its rows, and both figures.

    `plain` is the value of River's metric after the loop.
    """

    published: Published
    plain: float
    model: Any
    rows: tuple[Row, ...]


def published() -> list[Published]:
    """Return every figure of the docstrings whose data ships with River or scikit-learn, or is generated.

    No docstring is run.
    """
    return [figure for _, name, doc in _docstrings() for figures in read(name, doc) for figure in figures]


def figures(sources: Collection[str] | None = None) -> list[RiverFigure]:
    """Run the docstrings of `sources`, by default all; return their figures in the order of :func:`published`."""
    wanted = (found for found in _docstrings() if sources is None or found[1] in sources)
    return [figure for module, name, doc in wanted for figure in _run(module, name, doc)]


def read(name: str, examples: Examples) -> list[list[Published]]:
    """Return the figures of each example of the docstring of `name`.

    Raises
    ------
    LookupError
        If the text below a call is not a figure.
    """
    found: list[list[Published]] = []
    for example in examples:
        lines = example.want.splitlines() if CALL in example.source else []
        lines = [line for line in lines if line and not line.startswith(PROGRESS)]
        matches = [FIGURE.fullmatch(line) for line in lines]
        if CALL in example.source and not (matches and all(matches)):
            raise LookupError(f"the docstring of {name} shows no figure below {example.source!r}: {example.want!r}")
        before = sum(map(len, found))
        found.append([Published(name, before + i, m[1], m[2], m[3] or "") for i, m in enumerate(matches) if m])
    return found


def _docstrings() -> Iterator[tuple[Any, str, Examples]]:
    """Yield module, name and examples of each class whose docstring has a figure."""
    for module in _modules():
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__ and CALL in (cls.__doc__ or ""):
                text, name = str(cls.__doc__), f"{_public(cls)}.{cls.__name__}"
                if name not in TEXTS and not any(data in text for data in DOWNLOADED):
                    yield module, name, doctest.DocTestParser().get_examples(text)


def _modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(river.__path__, "river."):
        if ".test" not in found.name:
            with contextlib.suppress(ImportError):  # modules that need packages which are not installed
                yield importlib.import_module(found.name)


def _public(cls: type) -> str:
    """Return the shortest module from which a class is imported, such as ``river.linear_model``."""
    parts = cls.__module__.split(".")
    return next(
        name
        for depth in range(1, len(parts) + 1)
        if hasattr(importlib.import_module(name := ".".join(parts[:depth])), cls.__name__)
    )


def _run(module: Any, name: str, examples: Examples) -> list[RiverFigure]:
    """Run the examples of one docstring; return its figures."""
    evaluate = river.evaluate.progressive_val_score
    calls: list[tuple[float, Any, tuple[Row, ...]]] = []

    def record(dataset: Any, model: Any, metric: Any, **_: Any) -> Any:
        rows = tuple((dict(x), y) for x, y in dataset)
        before = copy.deepcopy(model)
        result = evaluate(rows, model, metric)
        calls.append((result.get(), before, rows))
        return result

    found: list[RiverFigure] = []
    namespace = dict(vars(module))
    with mock.patch.object(river.evaluate, "progressive_val_score", record):
        for example, shown in zip(examples, read(name, examples), strict=True):
            calls.clear()
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(example.source, name, "single"), namespace)
            found.extend(RiverFigure(figure, *call) for figure, call in zip(shown, calls, strict=True))
    return found
