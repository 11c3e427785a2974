"""What workers have done, counted in memory that outlives their processes.

Owns the names, texts, labels and buckets of the metrics. Never exposes them: :mod:`keepfit_workers.metrics_page` does.
Invariants: no label holds text that a client made up: an estimator is named as in the catalogue, and an uploaded object
is `object`; a worker that is killed loses no count; counting takes no lock and makes no system call.
"""

from bisect import bisect_left
from typing import NamedTuple

from keepfit.observability.process_counts import Numbers, ProcessCounts
from keepfit.recipe.recipe import Recipe

# Seconds, from a call of a linear model to the maximum time of a call; rows and bytes in steps of ten and three.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)
ROWS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 1_000_000)
BYTES = (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1e6, 3e6, 1e7, 3e7, 1e8, 3e8)
OBJECT = "object"


class Counter(NamedTuple):
    """A counter; its name lacks the suffix ``_total``."""

    name: str
    text: str
    labels: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers one sample has."""
        return 1


class Histogram(NamedTuple):
    """A histogram with the upper bounds of its buckets, in increasing order."""

    name: str
    text: str
    bounds: tuple[float, ...]
    labels: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers one sample has: one for each bucket, the last of which has no bound, and the sum."""
        return len(self.bounds) + 2


_ESTIMATOR = ("estimator",)
LEARNED = Counter("keepfit_worker_rows_learned", "Rows that were learned and committed.", _ESTIMATOR)
COMMITS = Counter(
    "keepfit_worker_commits",
    "Commits: `learned`, `put_aside` (a request became a dead letter), or `refused` (the model had changed).",
    ("estimator", "outcome"),
)
LEARN = Histogram("keepfit_worker_learn_seconds", "Time to learn the rows of one commit.", SECONDS, _ESTIMATOR)
COMMIT = Histogram("keepfit_worker_commit_seconds", "Time to pickle, sign and store a bundle.", SECONDS, _ESTIMATOR)
BATCH = Histogram("keepfit_worker_commit_rows", "Rows of one commit.", ROWS, _ESTIMATOR)
BUNDLE = Histogram("keepfit_worker_bundle_bytes", "Size of a stored bundle.", BYTES, _ESTIMATOR)
ANSWER = Histogram(
    "keepfit_worker_answer_seconds", "Time for the questions of one claim about one model.", SECONDS, _ESTIMATOR
)
QUESTIONS = Counter("keepfit_worker_questions", "Questions that were computed in time.", _ESTIMATOR)
LEASE = Histogram("keepfit_worker_lease_seconds", "Duration of a lease.", SECONDS)
OUT_OF_MEMORY = Counter("keepfit_worker_out_of_memory", "Calls for which a worker's memory did not suffice.")
DEATHS = Counter(
    "keepfit_worker_deaths",
    "Workers that ended unasked: `died`, or `killed` because a call took longer than its time.",
    ("reason",),
)
ALL: tuple[Counter | Histogram, ...] = (
    LEARNED, COMMITS, LEARN, COMMIT, BATCH, BUNDLE, ANSWER, QUESTIONS, LEASE, OUT_OF_MEMORY, DEATHS,
)  # fmt: skip
# The key of a gauge, which counts while the process runs.
MODELS_HELD = "keepfit_worker_models_held"


class WorkerMetrics:
    """The counts of one process, in `counts`; those of a process before it go on."""

    def __init__(self, counts: ProcessCounts | None = None) -> None:
        self._counts = counts or ProcessCounts()
        # By metric and labels; the keys in the shared memory are longer.
        self._rows: dict[tuple[str, ...], Numbers] = {}
        self._models_held = self._counts.row((MODELS_HELD,))

    def add(self, counter: Counter, *labels: str, count: int = 1) -> None:
        """Add to a counter."""
        self._row(counter, labels)[0] += count

    def observe(self, histogram: Histogram, value: float, *labels: str) -> None:
        """Count a value in its bucket."""
        row = self._row(histogram, labels)
        row[bisect_left(histogram.bounds, value)] += 1
        row[-1] += value

    def note_commit(self, estimator: str, rows: int, size_bytes: int, seconds: float, *, is_dead: bool) -> None:
        """Count a commit of `rows` new rows; with `is_dead` it made a request a dead letter."""
        self.add(COMMITS, estimator, "put_aside" if is_dead else "learned")
        self.add(LEARNED, estimator, count=rows)
        self.observe(COMMIT, seconds, estimator)
        self.observe(BATCH, rows, estimator)
        self.observe(BUNDLE, size_bytes, estimator)

    def note_models_held(self, count: int) -> None:
        """Record the number of bundles in memory."""
        self._models_held[0] = count

    def _row(self, metric: Counter | Histogram, labels: tuple[str, ...]) -> Numbers:
        key = (metric.name, *labels)
        found = self._rows.get(key)
        if found is None:
            found = self._rows[key] = self._counts.row(key, metric.width)
        return found


def estimator_of(recipe: Recipe) -> str:
    """Return the label of a recipe: its estimator, the last step of its pipeline, or that it is an uploaded object."""
    if recipe.object is not None:
        return OBJECT
    return recipe.estimator or recipe.named_steps[-1][0]
