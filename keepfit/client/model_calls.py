"""The calls of one model, for both clients: each is written once, as a flow.

Owns what a call of a model takes and answers. Never does I/O. Invariant: the model is addressed by its hash, which is
computed here, so that naming a model asks nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keepfit.client import curve_plot
from keepfit.client.calling import calls, lists, sending
from keepfit.client.calling.calls import Calls
from keepfit.client.calling.flows import call
from keepfit.client.calling.sending import Learning, Question
from keepfit.client.progress import Progress, reporting
from keepfit.client.rows import bodies
from keepfit.client.rows.bodies import JSON, Encoded
from keepfit.client.rows.predictions import Predictions
from keepfit.client.rows.tables import Records, Rows, table_of
from keepfit.client.rows.targets import Data, data_of
from keepfit.client.rows.values import encode
from keepfit.client.transport.address import PLAIN
from keepfit.client.transport.address import target as target_of
from keepfit.client.transport.exchange import Ask, Flow, Request

# Rows of a prediction that may be joined with others.
JOINED_ROWS_MAX = 64
Answer = dict[str, Any]


class ModelCalls:
    """The calls of the model `hash`. `metadata` is None for one that was named by its hash.

    All of them raise the errors of :mod:`keepfit.errors`, as the gateway reports them: NotFoundError if there is no
    such model, InvalidError with the row and column of each wrong value, UnavailableError if no gateway answers.
    """

    def __init__(self, shared: Calls, model_hash: str, metadata: Mapping[str, Any] | None) -> None:
        self.hash = model_hash
        self.metadata = None if metadata is None else dict(metadata)
        self._calls = shared
        self._path = f"/v1/models/{model_hash}"
        self._predict_path = f"{self._path}/predict"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hash if self.metadata is None else self.metadata!r})"

    @call
    def describe(self) -> Flow[Answer]:
        """Return the model's document: recipe, version, rows_seen, metrics, inbox, newest snapshot."""
        _, document = yield from self._calls.json("GET", self._path)
        answer: Answer = document
        return answer

    @call
    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        *,
        target: str | Sequence[str] | None = None,
        sample_weight: Any = None,
        wait: float | bool = False,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
        progress: Progress = None,
    ) -> Flow[Answer]:
        """Learn rows, each exactly once.

        Parameters
        ----------
        X : rows: a data frame of pandas or polars, a table of pyarrow, an array or a sparse matrix, shape (rows,
            columns), a list of lists or of dicts, one row as a dict, or a dict of columns
        y : target, one for each row
        target : name of the column of `X` that holds the target, or a list of names for several outputs
        sample_weight : a number for each row, or the name of a column
        wait : seconds to wait until the rows are learned, at most 60; True: until they are, at most ten minutes;
            False: until they are accepted, after which they are learned whatever happens
        idempotency_key : the call's name: with it, the same rows are learned once however often the call is made
        timeout_s : time for the call, instead of the client's; more for large rows
        progress : True for a bar, or a function of rows sent and rows in all; by default a bar for a long call in a
            terminal

        Returns
        -------
        dict
            ``accepted``, the number of rows, and ``sequence``; with `wait` also ``version`` and ``rows_seen``. More
            rows than a request may have (500 MB) are sent in several, in order; it is the answer to the last.

        Raises
        ------
        InvalidError
            With the row and column of each invalid value; nothing of the request is learned.
        LearningError
            With `wait`, if the rows were accepted and could not be learned.
        """
        data = data_of(X, y, target, sample_weight)
        with progress_of(progress, "learning", data) as report:
            how = Learning(f"{self._path}/partial_fit", wait, idempotency_key or calls.new_key(), timeout_s, report)
            return (yield from sending.learn(self._calls, data, how))

    @call
    def predict(
        self,
        X: Any,
        *,
        proba: bool = False,
        id: str | int | Sequence[str | int] | None = None,
        version: int | None = None,
        at: float | str | None = None,
        timeout_s: float | None = None,
        progress: Progress = None,
    ) -> Flow[Predictions]:
        """Predict rows.

        Parameters
        ----------
        X : rows, as of :meth:`partial_fit`
        proba : whether to answer probabilities, or anomaly scores, as well
        id : name of the row, or a list with one for each: the rows are kept until :meth:`label` gives their targets
        version, at : predict with the snapshot of a version, or with the newest one of a time (seconds since 1970, or
            text), instead of the live model
        timeout_s, progress : as of :meth:`partial_fit`

        Returns
        -------
        Predictions
            A sequence, and an array for numpy, with ``version``, ``probabilities``, ``classes`` and ``scores``. Calls
            of an AsyncClient for a few rows at a time share requests.
        """
        table = table_of(X)
        path = self._predict_path
        if id is None and version is None and at is None and _is_small(table):
            options = b',"proba":true' if proba else b""
            rows = encode(table.records(0, table.rows))
            answer = yield Ask(path, options, rows, table.rows, timeout_s or self._calls.timeout_s)
            return Predictions(answer)
        more: dict[str, Any] = {} if id is None else {"id": id}
        query = {"proba": True if proba else None, "version": version, "at": at}
        data = Data(table)
        with progress_of(progress, "predicting", data) as report:
            question = Question(path, query, more, timeout_s, report)
            rows_max = sending.PREDICTED_ROWS_MAX if id is None else None
            answers = yield from sending.ask(self._calls, data, question, rows_max)
        return Predictions.join(answers)

    @call
    def score(
        self,
        X: Any,
        y: Any = None,
        *,
        target: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
        progress: Progress = None,
    ) -> Flow[Answer]:
        """Score the model on rows and their target, which it does not learn.

        Returns
        -------
        dict
            ``max_error``, ``mean_absolute_error``, ``r2`` of a regressor; ``accuracy``, ``f1``, ``log_loss`` of a
            classifier; ``version``. A metric that is not defined for these rows is None.
        """
        data = data_of(X, y, target)
        with progress_of(progress, "scoring", data) as report:
            question = Question(f"{self._path}/score", timeout_s=timeout_s, report=report)
            (answer,) = yield from sending.ask(self._calls, data, question)
        return answer

    @call
    def partial_fit_json(self, body: bytes, *, wait: float | bool = False, idempotency_key: str) -> Flow[Answer]:
        """Learn the rows of one request that is JSON already; `wait` and the answer are as of :meth:`partial_fit`."""
        how = Learning(f"{self._path}/partial_fit", wait)
        return (yield from sending.learn_encoded(self._calls, how, Encoded(JSON, body), idempotency_key, len(body)))

    @call
    def predict_json(self, body: bytes) -> Flow[Answer]:
        """Predict the rows of one request that is JSON already; return the answer."""
        answer: Answer = yield from self._calls.predict(
            Request("POST", self._predict_path, body, PLAIN), self._calls.deadline(size_bytes=len(body))
        )
        return answer

    @call
    def train_score_predict(
        self,
        X: Any,
        y: Any = None,
        X_pred: Any = None,
        *,
        target: str | Sequence[str] | None = None,
        sample_weight: Any = None,
        test_size: float | None = None,
        proba: bool = False,
        wait: float | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Flow[Answer]:
        """Learn the first rows, score the last, learn those too, and predict `X_pred`, in one step.

        `test_size` is the share or the number of rows that are scored (a quarter). Rows are as of :meth:`partial_fit`,
        at most 4 MiB as JSON.

        Returns
        -------
        dict
            ``score``, ``predictions``, ``version``, ``rows_seen``, ``warnings``; without an answer in `wait` seconds
            (10) that of :meth:`partial_fit`.
        """
        asked = table_of(X_pred)
        more: Answer = {"X_pred": asked.records(0, asked.rows)}
        more |= {} if test_size is None else {"test_size": test_size}
        more |= {"proba": True} if proba else {}
        data = data_of(X, y, target, sample_weight)
        body = b"".join(bodies.JsonBody(data, 0, data.rows, more, None))
        request = Request("POST", f"{self._path}/train_score_predict", body)
        request.fields = calls.fields_of(Encoded(JSON, body), _named(idempotency_key, wait))
        deadline = self._calls.deadline(timeout_s, len(body)) + (wait or 10)
        response = yield from self._calls.send(request, deadline)
        answer: Answer = self._calls.decode(response)
        return answer

    @call
    def label(
        self,
        labels: Mapping[Any, Any] | Iterable[Mapping[str, Any]],
        *,
        wait: float | bool = False,
        idempotency_key: str | None = None,
    ) -> Flow[Answer]:
        """Learn rows that were predicted with an `id`, now that their targets are known.

        `labels` are targets by id, ``{"pair-7": 0.5}``, or a list of ``{"id": …, "y": …, "sample_weight": …}``, at most
        512. The answer has ``accepted`` and ``errors``: one for each label whose row is not open.
        """
        if isinstance(labels, Mapping):
            labels = [{"id": name, "y": y} for name, y in labels.items()]
        body = encode({"labels": list(labels)})
        how = Learning(f"{self._path}/labels", wait)
        return (
            yield from sending.learn_encoded(
                self._calls, how, Encoded(JSON, body), idempotency_key or calls.new_key(), len(body)
            )
        )

    @call
    def patch(
        self, params: Mapping[str, Any], *, wait: float | None = None, idempotency_key: str | None = None
    ) -> Flow[Answer]:
        """Change parameters of the live estimator, in order with its rows; return the model's document.

        If the change is not made within `wait` seconds (5; at most 60), the answer has its ``sequence`` and no
        ``recipe``.
        """
        fields = _named(idempotency_key, wait)
        timeout_s = self._calls.timeout_s + (wait or 0)
        body = {"params": dict(params)}
        _, answer = yield from self._calls.json("PATCH", self._path, body, fields, timeout_s=timeout_s)
        changed: Answer = answer
        return changed

    @call
    def pull(
        self,
        /,
        url: str,
        *,
        target: str | None = None,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Flow[Answer]:
        """Make a job in which keepfit reads and learns a large source itself; return its ``job`` and ``state``.

        `options` are further fields of the call: ``format``, ``sample_weight``, ``label_type``, ``rows_per_call``,
        ``skip_max``. ``client.job(answer["job"])`` says how far it is.
        """
        body = {"url": url, "target": target, "columns": columns, **options}
        body = {name: value for name, value in body.items() if value is not None}
        _, answer = yield from self._calls.json("POST", f"{self._path}/pull", body, _named(idempotency_key))
        made: Answer = answer
        return made

    @call
    def snapshot(self) -> Flow[Answer]:
        """Save the model as it is now; return the history document."""
        _, answer = yield from self._calls.json("POST", f"{self._path}/snapshot")
        document: Answer = answer
        return document

    @call
    def snapshots(self, *, limit: int | None = None) -> Flow[list[Answer]]:
        """Return the snapshots of the model, newest first; all of them without `limit`."""
        return (yield from lists.pages(self._calls, f"{self._path}/snapshots", "snapshots", limit))

    @call
    def restore(self, *, version: int | None = None, at: float | str | None = None) -> Flow[Answer]:
        """Restore what Redis has lost; with a version or a time, go back to that snapshot and forget what came later.

        It is not repeated if its answer is lost: a second time it would forget what was learned in between.
        """
        body = {name: value for name, value in (("version", version), ("at", at)) if value is not None}
        _, answer = yield from self._calls.json("POST", f"{self._path}/restore", body, is_repeatable=not body)
        restored: Answer = answer
        return restored

    @call
    def curve(self, *, since_rows: int | None = None) -> Flow[Answer]:
        """Return the learning curve: ``points`` with ``rows_seen``, ``time`` and metrics of rows predicted first.

        With `since_rows` only the points after more than this number of rows.
        """
        _, answer = yield from self._calls.json("GET", target_of(f"{self._path}/curve", since_rows=since_rows))
        found: Answer = answer
        return found

    @call
    def traffic(self) -> Flow[Answer]:
        """Return the model's last minute over all gateways: rows in and out, predictions by source, latency."""
        _, answer = yield from self._calls.json("GET", f"{self._path}/traffic")
        found: Answer = answer
        return found

    @call
    def plot_curve(self, metric: str | None = None, *, ax: Any = None) -> Flow[Any]:
        """Draw the learning curve with matplotlib; return the axes.

        `metric` is one of the curve's (the mean absolute error or the accuracy), `ax` the axes to draw into.
        """
        answer = yield from ModelCalls.curve.flow(self)
        return curve_plot.draw(answer, repr(self), metric, ax)

    @call
    def history(self, /, **query: Any) -> Flow[list[Answer]]:
        """Return documents of the model's history, or points with ``every``; parameters as of ``client.history``."""
        return (yield from lists.history_of(self._calls, {"hash": self.hash, **query}))

    @call
    def dead_letters(self, *, limit: int | None = None) -> Flow[list[Answer]]:
        """Return the requests that could not be learned, oldest first, each with its reason."""
        return (yield from lists.pages(self._calls, f"{self._path}/dead", "dead", limit))

    @call
    def retry(self, ids: Sequence[str] | None = None) -> Flow[Answer]:
        """Move dead letters back to the inbox: those with `ids` (up to 128), or the oldest 128."""
        body = {} if ids is None else {"ids": list(ids)}
        _, answer = yield from self._calls.json("POST", f"{self._path}/dead/retry", body, is_repeatable=False)
        retried: Answer = answer
        return retried

    @call
    def discard(self, ids: Sequence[str]) -> Flow[Answer]:
        """Delete dead letters (1 to 128) for good."""
        _, answer = yield from self._calls.json("POST", f"{self._path}/dead/discard", {"ids": list(ids)})
        discarded: Answer = answer
        return discarded

    @call
    def download(self, *, format: str = "skops", part: str | None = None) -> Flow[bytes]:
        """Return the model as a file with a fitted object of scikit-learn or River.

        `format` is ``skops`` or ``pickle`` (signed, for :func:`keepfit.objects.load_trained`); `part` may be
        ``estimator``.
        """
        request = Request("GET", target_of(f"{self._path}/estimator", format=format, part=part))
        response = yield from self._calls.send(request, self._calls.deadline(calls.FILE_S_MAX))
        return bytes(response.content())

    @call
    def delete(self) -> Flow[None]:
        """Delete the model; its snapshots stay.

        It is not repeated if its answer is lost: meanwhile the model may have been created again.
        """
        yield from self._calls.json("DELETE", self._path, is_repeatable=False)


def _named(key: str | None, wait: float | None = None) -> dict[str, str]:
    """Return the header fields of a call with a key, a new one unless it is given, that may wait some seconds."""
    prefer = {} if wait is None else {"Prefer": sending.prefer_of(wait)}
    return {"Idempotency-Key": key or calls.new_key(), **prefer}


def _is_small(table: Rows) -> bool:
    if not 0 < table.rows <= JOINED_ROWS_MAX:
        return False
    return type(table) is Records or table.rows * table.row_bytes < bodies.CELLS_MIN * 8


def progress_of(asked: Progress, what: str, data: Data) -> Any:
    """Return a context manager that gives the report of a call."""
    return reporting(asked, what, data.rows, data.rows * data.table.row_bytes)
