"""Pull jobs over HTTP: what is made, shown and refused. No process runs the jobs of the shared stack."""

from typing import Any

import pytest

from tests.gateway.api_client import REGRESSOR, Api

SOURCE = {"url": "s3://data/daily/shoes.csv"}


async def test_a_job_is_made_shown_and_cancelled(api: Api, metadata: dict[str, Any]) -> None:
    """The same key gives the same job; lists select by model and state, page by page."""
    path = await api.make(metadata, REGRESSOR)
    made = await api.post(f"{path}/pull", SOURCE, headers={"Idempotency-Key": "a"})
    job = made.of(202)["job"]
    assert made.headers["Location"] == f"/v1/jobs/{job}"
    again = await api.post(f"{path}/pull", SOURCE, headers={"Idempotency-Key": "a"})
    assert again.of(202) == made.json()
    other = await api.post(f"{path}/pull", {**SOURCE, "skip_max": 1}, headers={"Idempotency-Key": "a"})
    assert "another body" in other.problem(422)["detail"]
    second = (await api.post("/v1/pull", {"metadata": metadata, **SOURCE, "columns": {"a": "b"}})).of(202)["job"]
    query = f"/v1/jobs?hash={path.rpartition('/')[2]}"
    page = (await api.get(f"{query}&limit=1")).of(200)
    assert [one["job"] for one in page["jobs"]] == [second]
    rest = (await api.get(f"{query}&limit=1&after={page['next']}")).of(200)
    assert ([one["job"] for one in rest["jobs"]], rest["next"]) == ([job], None)
    shown = (await api.get(f"/v1/jobs/{second}")).of(200)
    assert (shown["state"], shown["columns"], shown["metadata"]) == ("queued", {"a": "b"}, metadata)
    assert (await api.call("DELETE", f"/v1/jobs/{job}")).of(202)["state"] == "cancelled"
    assert [one["job"] for one in (await api.get(f"{query}&state=cancelled")).of(200)["jobs"]] == [job]
    await api.call("DELETE", f"/v1/jobs/{second}")


@pytest.mark.parametrize(
    ("url", "status", "detail"),
    [
        ("s3://other/a.csv", 403, "KEEPFIT_PULL_PREFIXES"),
        ("s3://data/daily-2/a.csv", 403, "KEEPFIT_PULL_PREFIXES"),
        ("s3://data/daily/../a.csv", 400, "the path has"),
        ("s3://data/daily%2Fa.csv", 400, "encoded"),
        ("https://user:secret@data/a.csv", 400, "credentials"),
        ("s3://data/daily/a", 400, "no known format"),
        ("data/a.csv", 400, "the scheme"),
    ],
)
async def test_addresses_that_are_refused(
    api: Api, metadata: dict[str, Any], url: str, status: int, detail: str
) -> None:
    """A job is made only for an address that a prefix allows."""
    path = await api.make(metadata, REGRESSOR)
    assert detail in (await api.post(f"{path}/pull", {"url": url})).problem(status)["detail"]


@pytest.mark.parametrize(
    ("fields", "status", "detail"),
    [
        ({"sample_weight": 5}, 400, "sample_weight"),
        ({"rows_per_call": 0}, 400, "rows_per_call"),
        ({"skip_max": 10**9}, 400, "skip_max"),
        ({"columns": []}, 400, "columns"),
        ({"format": "xml"}, 400, "format"),
        ({"unknown": 1}, 400, "unknown"),
        ({"columns": ["size"]}, 422, "no column 'size'"),
        ({"columns": {"year": "x"}}, 422, "lacks the recipe's column 'make'"),
    ],
)
async def test_pulls_that_do_not_fit_the_model(
    api: Api, metadata: dict[str, Any], fields: dict[str, Any], status: int, detail: str
) -> None:
    """What can be known without the source is refused at once."""
    path = await api.make(metadata, {**REGRESSOR, "features": {"make": "category", "year": "number"}})
    assert detail in (await api.post(f"{path}/pull", {**SOURCE, **fields})).problem(status)["detail"]


async def test_estimators_without_a_target(api: Api, metadata: dict[str, Any]) -> None:
    """A target for an estimator that takes none is refused, and so is a table for one with several."""
    path = await api.make(metadata, {"estimator": "MiniBatchKMeans"})
    assert "takes no y" in (await api.post(f"{path}/pull", {**SOURCE, "target": "y"})).problem(422)["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/jobs/abc", 400),
        (f"/v1/jobs/{'0' * 32}", 404),
        ("/v1/jobs?state=lost", 400),
        ("/v1/jobs?hash=abc", 400),
        ("/v1/jobs?after=abc", 400),
        ("/v1/jobs?limit=0", 400),
        ("/v1/jobs?brand=nike", 400),
    ],
)
async def test_jobs_that_cannot_be_shown(api: Api, path: str, status: int) -> None:
    """What is no job, and what selects none, is an error."""
    (await api.get(path)).problem(status)
