"""Calls a live gateway through a client that openapi-python-client generated; writes what it got as JSON."""

import asyncio
import io
import json
import sys
from http import HTTPStatus
from typing import TypeVar

from models_client import Client
from models_client.api.dead_letters import discard_dead, list_dead, retry_dead
from models_client.api.history import list_history
from models_client.api.learning import partial_fit, partial_fit_by_metadata
from models_client.api.models import create_model, delete_model, get_model, list_models, patch_model
from models_client.api.operation import livez, openapi, readyz, show_metrics
from models_client.api.predicting import predict, predict_by_metadata, score, score_by_metadata
from models_client.api.snapshots import list_snapshots, make_snapshot, restore_model
from models_client.models import (
    AcceptedAnswer,
    ColumnType,
    CreateModel,
    DeadAnswer,
    DiscardDead,
    DiscardedAnswer,
    Encoding,
    Features,
    HistoryAnswer,
    LearnedAnswer,
    Live,
    Metadata,
    MetadataFilter,
    Metrics,
    MissingNumber,
    ModelAnswer,
    ModelList,
    NumberOptions,
    OpenApiDocument,
    Params,
    PartialFit,
    PartialFitByMetadata,
    PatchModel,
    Predict,
    PredictAnswer,
    PredictByMetadata,
    Problem,
    Ready,
    Recipe,
    RestoredAnswer,
    RestoreModel,
    RetriedAnswer,
    RetryDead,
    RowByName,
    Score,
    ScoreAnswer,
    ScoreByMetadata,
    SnapshotAnswer,
    SnapshotList,
    WindowMetrics,
)
from models_client.types import File

T = TypeVar("T")
# Without this name, a list of numbers would not be a list of values: lists are invariant.
Row = list[bool | float | int | str | None]


def of(kind: type[T], answer: object) -> T:
    """Return an answer, which must be of this type."""
    if not isinstance(answer, kind):
        raise TypeError(f"{answer!r} is not a {kind.__name__}")
    return answer


def main(url: str, session: str, table: bytes) -> dict[str, object]:
    """Call every operation; return what the answers had."""
    client = Client(url, raise_on_unexpected_status=True)
    metadata = Metadata("shoes")
    metadata["language"] = "python"
    metadata["session"] = session
    features = Features()
    features["make"] = ColumnType.CATEGORY
    features["year"] = NumberOptions("number", missing=MissingNumber.MEAN)
    params = Params()
    params["alpha"] = 0.001
    recipe = Recipe(estimator="SGDRegressor", params=params, features=features, encoding=Encoding.ONEHOT)
    created = create_model.sync_detailed(client=client, body=CreateModel(metadata, recipe))
    model = of(ModelAnswer, created.parsed)
    again = of(ModelAnswer, create_model.sync(client=client, body=CreateModel(metadata, model.recipe)))

    rows: list[Row | RowByName] = [RowByName.from_dict({"make": "nike", "year": 2001})]
    rows += [["adidas", 2010], ["puma", None]]
    body = PartialFit(rows, y=[4, 2, 3], sample_weight=[1, 2, 1])
    learned = of(
        LearnedAnswer,
        partial_fit.sync(model.hash_, client=client, body=body, prefer="wait=30", idempotency_key=session),
    )
    accepted = of(
        AcceptedAnswer,
        partial_fit_by_metadata.sync(client=client, body=PartialFitByMetadata(rows, metadata, y=[4, 2, 3])),
    )
    changes = Params()
    changes["alpha"] = 0.01
    patched = of(ModelAnswer, patch_model.sync(model.hash_, client=client, body=PatchModel(changes), prefer="wait=30"))

    asked: list[Row | RowByName] = [["nike", 2005]]
    answer = predict.sync_detailed(model.hash_, client=client, body=Predict(asked), timeout=30)
    predicted = of(PredictAnswer, answer.parsed)
    cached = predict.sync_detailed(
        model.hash_, client=client, body=Predict(asked), if_none_match=answer.headers["ETag"]
    )
    by_metadata = of(PredictAnswer, predict_by_metadata.sync(client=client, body=PredictByMetadata(asked, metadata)))
    later = of(
        PredictAnswer, asyncio.run(predict.asyncio(model.hash_, client=client, body=Predict(asked), proba=False))
    )
    scored = of(ScoreAnswer, score.sync(model.hash_, client=client, body=Score(rows, y=[4, 2, 3])))
    scored_too = of(
        ScoreAnswer, score_by_metadata.sync(client=client, body=ScoreByMetadata(rows, metadata, y=[4, 2, 3]))
    )

    invalid = PartialFit([["nike", "old"]], y=[4])
    problem = of(Problem, partial_fit.sync(model.hash_, client=client, body=invalid))
    errors = problem.errors if isinstance(problem.errors, list) else []
    missing = get_model.sync_detailed("0" * 64, client=client)

    where = MetadataFilter()
    where["session"] = session
    where["language"] = "python"
    listed = of(ModelList, list_models.sync(client=client, metadata=where, limit=5))
    snapshot = of(SnapshotAnswer, make_snapshot.sync(model.hash_, client=client))
    snapshots = of(SnapshotList, list_snapshots.sync(model.hash_, client=client))
    history = of(HistoryAnswer, list_history.sync(client=client, type_="shoes", metadata=where, after=0.0))
    points = of(
        HistoryAnswer, list_history.sync(client=client, metadata=where, every="1w", stat="max", field="rows_seen")
    )
    described = of(ModelAnswer, get_model.sync(model.hash_, client=client))
    window = of(WindowMetrics, of(Metrics, described.metrics).window)
    dead = of(DeadAnswer, list_dead.sync(model.hash_, client=client))
    retried = of(RetriedAnswer, retry_dead.sync(model.hash_, client=client, body=RetryDead()))
    discarded = of(DiscardedAnswer, discard_dead.sync(model.hash_, client=client, body=DiscardDead(["1-1"])))
    restored = of(
        RestoredAnswer, restore_model.sync(model.hash_, client=client, body=RestoreModel(version=snapshot.version))
    )
    document = of(OpenApiDocument, openapi.sync(client=client))

    # A table goes to a model without categories.
    metadata["language"] = "npy"
    numbers = of(
        ModelAnswer,
        create_model.sync(client=client, body=CreateModel(metadata, Recipe(estimator="SGDRegressor"))),
    )
    of_table = of(
        LearnedAnswer,
        partial_fit.sync(numbers.hash_, client=client, body=File(io.BytesIO(table)), prefer="wait=30"),
    )
    deleted = [delete_model.sync_detailed(one.hash_, client=client).status_code for one in (model, numbers)]
    return {
        "hash": model.hash_,
        "created": [created.status_code, again.hash_ == model.hash_],
        "encoding": model.recipe.encoding,
        "learned": learned.rows_seen,
        "accepted": accepted.accepted,
        "alpha": of(Params, patched.recipe.params)["alpha"],
        "predictions": [one.predictions == predicted.predictions for one in (by_metadata, later)],
        "not_modified": cached.status_code is HTTPStatus.NOT_MODIFIED,
        "scores": scored.mean_absolute_error == scored_too.mean_absolute_error,
        "running": window.rows,
        "problem": {"type": problem.type_, "errors": [one.to_dict() for one in errors]},
        "missing": [missing.status_code, of(Problem, missing.parsed).type_],
        "listed": [one.hash_ for one in listed.models],
        "snapshots": [one.version == snapshot.version for one in snapshots.snapshots],
        "documents": [one["hash"] for one in of(list, history.documents)],
        "points": [one.value for one in of(list, points.points)],
        "dead": [len(dead.dead), retried.accepted, discarded.discarded],
        "restored": restored.version == snapshot.version,
        "document": document["openapi"],
        "probes": [of(Live, livez.sync(client=client)).status, of(Ready, readyz.sync(client=client)).status],
        "metrics": "keepfit_" in of(str, show_metrics.sync(client=client)),
        "of_table": of_table.rows_seen,
        "deleted": deleted,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], sys.argv[2], sys.stdin.buffer.read())))
