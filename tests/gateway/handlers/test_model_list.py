"""GET /v1/models in other orders than that of the hash, and with a search."""

from typing import Any

import pytest

from tests.gateway.api_client import REGRESSOR, Api, eventually


async def test_models_are_sorted_and_searched(api: Api, metadata: dict[str, Any]) -> None:
    """Pages follow each other in the order of the rows, and the search finds words of the metadata."""
    session = metadata["session"]
    paths = {}
    for name, rows in (("Few", 1), ("Many", 3)):
        paths[name] = await api.make({**metadata, "name": name}, REGRESSOR)
        await api.learn(paths[name], [[1.0, 2.0]] * rows, [1.0] * rows)

    async def names(**query: str) -> list[str]:
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            page = (await api.get("/v1/models", limit="1", after=after, **query)).of(200)
            assert all({"rows_per_s", "error_share"} <= model.keys() for model in page["models"])
            found += [model["metadata"]["name"] for model in page["models"]]
            after = page["next"]
        return found

    async def listed() -> bool:
        return await names(sort="rows", session=session) == ["Many", "Few"]

    await eventually(listed, "the models in the order of their rows")
    assert await names(search=f"{session} many") == ["Many"]
    assert await names(search=session, sort="inbox", name="Few") == ["Few"]
    assert set(await names(search=session)) == {"Many", "Few"}
    assert await names(search=f"{session} none") == []
    # Metadata with the name of a parameter are found, too.
    assert (await api.get("/v1/models", **{"metadata[sort]": session})).of(200)["models"] == []


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"sort": "size"}, "sort must be one of hash, rate, error, inbox, rows"),
        ({"sort": ""}, "sort must be one of"),
        ({"search": "a" * 257}, "search has 257 characters"),
        ({"sort": "rate", "after": "0" * 64}, "after must be the value of next"),
        ({"sort": "rate", "after": f"nan:{'0' * 64}"}, "after must be the value of next"),
        ({"after": f"-1.0:{'0' * 64}"}, "after must be the value of next"),
        ({"search": "a", "after": f"-1.0:{'0' * 64}"}, "after must be the value of next"),
    ],
)
async def test_malformed_orders_are_refused(api: Api, query: dict[str, str], named: str) -> None:
    """The answer says which parameter is wrong."""
    assert named in (await api.get("/v1/models", **query)).problem(400)["detail"]
