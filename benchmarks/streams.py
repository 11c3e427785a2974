"""`python -m benchmarks.streams`: late classes in real data streams, keepfit's models against plain loops.

Five rows at a time are predicted, then learned. keepfit's model has no classes named; the loop uses the same estimator
and scaler of scikit-learn, with all classes named at its first call. The streams ship with scikit-learn and River.
Writes docs/concepts/late-classes.svg and prints the table of docs/concepts/late-classes.md.
"""

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from keepfit.model import estimators
from keepfit.model.bundle import Bundle
from keepfit.recipe.recipe import parse
from keepfit.rows.shaping import shape

Array = npt.NDArray[Any]

ROOT = Path(__file__).parents[1]
WINDOW = 100
SEEDS = range(3)
# From single rows, scikit-learn's GaussianNB learns no variance to predict with.
BATCH = 5
# The first rows are digits other than seven, then all digits follow.
LATE, LATE_FROM = 7, 600


@dataclass(frozen=True, slots=True)
class Case:
    """A stream and the estimator that learns it."""

    stream: str
    name: str
    params: dict[str, Any]
    scaler: str = "StandardScaler"
    title: str = ""


LOGISTIC = {"loss": "log_loss"}
SMALL = {"hidden_layer_sizes": [32], "learning_rate_init": 0.01}
CASES = (
    Case("digits", "SGDClassifier", {}),
    Case("digits", "SGDClassifier", LOGISTIC, title="SGDClassifier, log_loss"),
    Case("digits", "PassiveAggressiveClassifier", {}),
    Case("digits", "Perceptron", {}),
    Case("digits", "GaussianNB", {"var_smoothing": 0.1}, "MinMaxScaler"),
    Case("digits", "MultinomialNB", {}, "MinMaxScaler"),
    Case("digits", "ComplementNB", {}, "MinMaxScaler"),
    Case("digits", "BernoulliNB", {"binarize": 0.5}, "MinMaxScaler"),
    Case("digits", "MLPClassifier", SMALL, "MinMaxScaler"),
    Case("ImageSegments", "SGDClassifier", LOGISTIC, title="SGDClassifier, log_loss"),
    Case("ImageSegments", "PassiveAggressiveClassifier", {}),
    Case("ImageSegments", "MLPClassifier", SMALL),
    Case("Phishing", "SGDClassifier", LOGISTIC, title="SGDClassifier, log_loss"),
    Case("Phishing", "GaussianNB", {"var_smoothing": 0.1}),
)
DRAWN = (0, 5, 8, 10)


def digits(seed: int) -> tuple[Array, list[Any]]:
    """Return scikit-learn's digits in a random order, with no seven among the first 600 rows."""
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    others = order[y[order] != LATE][:LATE_FROM]
    order = np.concatenate([others, order[~np.isin(order, others)]])
    return X[order], y[order].tolist()


def river_stream(name: str, seed: int) -> tuple[Array, list[Any]]:
    """Return a data set of River's package, in its own order for seed 0, else in a random one."""
    from river import datasets  # noqa: PLC0415 - slow to import, and needed for some streams only

    rows = list(getattr(datasets, name)())
    if seed:
        rows = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
    return np.array([list(x.values()) for x, _ in rows], dtype=float), [y for _, y in rows]


def stream(name: str, seed: int) -> tuple[Array, list[Any]]:
    """Return rows and labels of a stream."""
    return digits(seed) if name == "digits" else river_stream(name, seed)


def batches(X: Array, y: Sequence[Any]) -> Iterator[tuple[Array, list[Any]]]:
    """Yield a stream as requests."""
    for start in range(0, len(y), BATCH):
        yield X[start : start + BATCH], list(y[start : start + BATCH])


def keepfit_hits(case: Case, X: Array, y: Sequence[Any]) -> Iterator[bool]:
    """Yield whether each row was predicted correctly by a model that learns late classes."""
    bundle = Bundle.new(parse({"estimator": case.name, "params": case.params, "scaler": case.scaler}))
    for part, labels in batches(X, y):
        rows = shape(bundle.recipe, part.tolist(), labels, learning=True)
        if bundle.rows_seen:
            yield from map(operator.eq, bundle.predict(rows), labels)
        bundle.partial_fit(rows)


def loop_hits(case: Case, X: Array, y: Sequence[Any]) -> Iterator[bool]:
    """Yield whether each row was predicted correctly by a scikit-learn loop that names all classes at its start."""
    estimator = estimators.build(case.name, case.params)
    scaler = {"StandardScaler": StandardScaler, "MinMaxScaler": MinMaxScaler}[case.scaler]()
    classes = np.unique(y)
    for number, (part, labels) in enumerate(batches(X, y)):
        if number:
            yield from estimator.predict(scaler.transform(part)) == labels
        scaler.partial_fit(part)
        estimator.partial_fit(scaler.transform(part), labels, **({} if number else {"classes": classes}))


def hits_by_seed(predict_stream: Callable[[Case, Array, Sequence[Any]], Iterator[bool]], case: Case) -> Array:
    """Return the hits of each seed, shape (seeds, rows after the first request)."""
    with warnings.catch_warnings():
        # scikit-learn warns of priors of classes without rows, and of batches smaller than a network's batch size.
        warnings.simplefilter("ignore")
        return np.array([list(predict_stream(case, *stream(case.stream, seed))) for seed in SEEDS], dtype=float)


def main() -> None:
    """Run all streams, print the table and draw the plot."""
    console = Console(width=200, highlight=False, markup=False)
    console.print("| stream | estimator | keepfit | loop | keepfit, late | loop, late |\n|---|---|---:|---:|---:|---:|")
    curves = []
    for case in CASES:
        ours, loop = hits_by_seed(keepfit_hits, case), hits_by_seed(loop_hits, case)
        late = _late_class_accuracy(case, ours), _late_class_accuracy(case, loop)
        cells = [_format_mean(ours.mean(axis=1)), _format_mean(loop.mean(axis=1)), *map(_format_mean, late)]
        console.print(f"| {case.stream} | {case.title or case.name} | {' | '.join(cells)} |")
        curves.append((case, ours, loop))
    draw([curves[index] for index in DRAWN], ROOT / "docs/concepts/late-classes.svg")


def _late_class_accuracy(case: Case, hits: Array) -> Array | None:
    """Return the accuracy on rows of the late class, by seed; None for streams without one."""
    if case.stream != "digits":
        return None
    return np.array(
        [row[np.array(digits(seed)[1][BATCH:]) == LATE].mean() for seed, row in zip(SEEDS, hits, strict=True)]
    )


def _format_mean(values: Array | None) -> str:
    return "" if values is None else f"{values.mean():.3f} ± {values.std():.3f}"


def draw(curves: Sequence[tuple[Case, Array, Array]], path: Path) -> None:
    """Draw the accuracy over the last 100 rows, as the mean of all seeds; the same hits give the same file."""
    mpl.rcParams["svg.hashsalt"] = "keepfit"
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axes, (case, ours, loop) in zip(figure.subplots(2, 2).flat, curves, strict=True):
        for hits, color, label, style in ((loop, "#8a97a6", "loop", "-"), (ours, "#d1495b", "keepfit", "--")):
            smooth = np.apply_along_axis(np.convolve, 1, hits, np.ones(WINDOW) / WINDOW, "valid").mean(axis=0)
            axes.plot(np.arange(len(smooth)) + BATCH + WINDOW, smooth, color=color, label=label, linestyle=style)
        if case.stream == "digits":
            axes.axvline(LATE_FROM, color="black", linewidth=0.6, linestyle=":")
        axes.set_title(f"{case.stream}, {case.title or case.name}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle("accuracy over the last 100 rows; dotted line: from here on, rows may be sevens")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
