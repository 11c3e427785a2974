"""The example of the original system: votes on sneakers, over HTTP only."""

from typing import Any

import aiohttp

from tests.conftest import SHOES_RECIPE


async def test_votes_are_learned_and_predicted(http: aiohttp.ClientSession, metadata: dict[str, Any]) -> None:
    """Votes are learned and a pair predicted; an unseen make is predicted, learned and predicted again."""
    async with http.post("/v1/models", json={"metadata": metadata, "recipe": SHOES_RECIPE}) as response:
        assert response.status == 201
        model = await response.json()
    assert model["version"] == 0
    votes = [("nike", 2001, 4), ("adidas", 2003, 5), ("nike", 2010, 3)]
    for make, year, size in votes:
        body = {"metadata": metadata, "X": [{"make": make, "year": year}], "y": [size]}
        async with http.post("/v1/partial_fit", json=body, headers={"Prefer": "wait=10"}) as response:
            learned = await response.json()
            assert response.status == 200, learned
    assert learned["rows_seen"] == 3
    path = f"/v1/models/{model['hash']}"

    async def predict(make: str) -> Any:
        async with http.post(f"{path}/predict", json={"X": [{"make": make, "year": 2005}]}) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    known, unseen = await predict("nike"), await predict("puma")
    assert len(known["predictions"]) == 1
    assert known["version"] == unseen["version"] == learned["version"]
    body = {"X": [{"make": "puma", "year": 2005}], "y": [1]}
    async with http.post(f"{path}/partial_fit", json=body, headers={"Prefer": "wait=10"}) as response:
        assert response.status == 200
    now_known, still_unseen = await predict("puma"), await predict("reebok")
    assert now_known["version"] > unseen["version"]
    assert now_known["predictions"] != unseen["predictions"]
    assert now_known["predictions"] != still_unseen["predictions"]
