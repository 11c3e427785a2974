"""Published figures of River and scikit-learn are what keepfit's answers and running metrics give."""

import doctest
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version

import pytest

from tests.conftest import Stack
from tests.published import hosted, page, river_figures, sklearn_figures
from tests.published.page import Line
from tests.published.river_figures import RiverFigure

# Connections that teach models at the same time.
CONNECTIONS = 3
# Models of megabytes, which are written once per commit: only `python -m tests.published` computes their figures.
LARGE = ("ARF", "SRP")
# More rows take minutes, each being a request.
ROWS_MAX = 600


def candidates() -> list[Line]:
    """Return River's lines of the page without those of large models and of many rows."""
    return [
        line
        for line in page.read("river")
        if line.rows <= ROWS_MAX and not line.source.rpartition(".")[2].startswith(LARGE)
    ]


def chosen() -> list[Line]:
    """Return the lines of the page whose figures are computed here: of each metric the one with the fewest rows.

    Of several with as few rows it is the first. `python -m tests.published` computes all figures.
    """
    found: dict[str, Line] = {}
    for line in sorted(candidates(), key=lambda line: line.rows):
        found.setdefault(line.figure, line)
    return [line for line in page.read("river") if line in found.values()]


@cache
def figures() -> list[RiverFigure]:
    """Return the figures of the chosen lines, with the plain ones that River's own loop gives."""
    lines = [(line.source, line.figure, line.published) for line in chosen()]
    computed = river_figures.figures({source for source, _, _ in lines})
    return [f for f in computed if (f.published.source, f.published.metric, f.published.text) in lines]


def test_the_page_has_every_figure_of_the_docstrings() -> None:
    """The page lists all figures of the installed packages and no other, and in no line do the three differ."""
    lines = page.read("river")
    published = river_figures.published()
    assert [(line.source, line.figure, line.published) for line in lines] == [
        (figure.source, figure.metric, figure.text) for figure in published
    ]
    answers = page.read("scikit-learn")
    assert [(line.source, line.figure, line.published) for line in answers] == [
        (f.source, f"`{f.statement}`", " ".join(f"{value:g}" for value in f.published))
        for f in sklearn_figures.figures()
    ]
    assert [line for line in [*lines, *answers] if line.differs] == []
    assert page.read_versions() == {"river": version("river"), "scikit-learn": version("scikit-learn")}


@pytest.mark.parametrize("below", ["", "0.93\n", "MAE is 0.93\n", "MAE: 0.93\nDone\n", "[500] MAE: 0.93\n"])
def test_a_figure_that_is_not_understood_is_an_error(below: str) -> None:
    """A call whose text below is missing or has another form raises LookupError, so no figure is left out silently."""
    examples = doctest.DocTestParser().get_examples(f">>> progressive_val_score(dataset, model, metric)\n{below}")
    with pytest.raises(LookupError, match="the docstring of Model shows no figure"):
        river_figures.read("Model", examples)


def test_the_chosen_figures_are_of_several_metrics() -> None:
    """Of one target, of several targets, and of probabilities a figure is computed."""
    assert {line.figure for line in chosen()} >= {"MAE", "MicroAverage(MAE)", "LogLoss"}


def test_the_published_figures_are_true() -> None:
    """River's own loop, and scikit-learn's own code, give the figures that their docstrings show."""
    assert len(figures()) == len(chosen())
    assert [f.published for f in figures() if f.published.shown(f.plain) != f.published.digits] == []
    assert [f.source for f in sklearn_figures.figures() if f.plain != pytest.approx(f.published)] == []


@pytest.mark.timeout(400)
def test_running_metrics_give_the_figures_of_river(stack: Stack) -> None:
    """A River model that learns its rows one by one over HTTP has the figure that River's documentation shows."""
    upload_keys = stack.environment()["KEEPFIT_UPLOAD_KEYS"]

    def host(figure: RiverFigure) -> float:
        with hosted.Service(stack.url) as service:
            return hosted.host(service, figure, upload_keys)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = list(pool.map(host, figures()))
    assert {f.published: value for f, value in zip(figures(), found, strict=True)} == pytest.approx(
        {f.published: f.plain for f in figures()}
    )


@pytest.mark.parametrize("figure", sklearn_figures.figures(), ids=lambda figure: figure.id)
def test_predictions_are_the_answers_of_scikit_learn(stack: Stack, figure: sklearn_figures.SklearnFigure) -> None:
    """A recipe that learns the rows of a docstring predicts what scikit-learn's documentation shows."""
    with hosted.Service(stack.url) as service:
        assert hosted.answer(service, figure) == pytest.approx(figure.plain)
