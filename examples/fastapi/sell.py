"""Sell bikes through the service: `python sell.py 600`.

The price that a buyer pays is made of effects that the model does not see: of the maker, of the kind, 45 euros less for
each year and 8 for each 1,000 km, and a mood of 40 euros (its mean absolute value is 32: no quote is better than that).
"""

import json
import os
import random
import sys
import urllib.request
from typing import Any

URL = os.environ.get("SERVICE_URL", "http://127.0.0.1:8080")
MAKERS = {"gazelle": 150, "bianchi": 420, "urban arrow": 610, "puky": -60, "batavus": 90, "trek": 280}
KINDS = {"city": 600, "road": 900, "cargo": 1900, "child": 450}
SHOWN_EVERY = 100


def post(path: str, body: dict[str, Any]) -> Any:
    """Post to the service; return the answer."""
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def main() -> None:
    """Ask for a quote for each bike, then sell it; print how wrong the quotes were."""
    chance, wrong = random.Random(7), []
    for number in range(1, int(sys.argv[1]) + 1):
        maker, kind = chance.choice(list(MAKERS)), chance.choice(list(KINDS))
        bike: dict[str, Any] = {
            "maker": maker,
            "kind": kind,
            "age_years": chance.randint(0, 8),
            "km": chance.randint(0, 12_000),
        }
        value = MAKERS[maker] + KINDS[kind] - 45 * bike["age_years"] - 0.008 * bike["km"]
        price = max(20.0, value + chance.gauss(0, 40))
        quote = post("/quotes", bike)
        post("/sales", {"quote_id": quote["id"], "price": price})
        wrong.append(abs(quote["price"] - price))
        if number % SHOWN_EVERY == 0:
            error = sum(wrong[-SHOWN_EVERY:]) / SHOWN_EVERY
            print(f"sales {number - SHOWN_EVERY + 1} to {number}: quotes wrong by {error:.0f} euros", flush=True)


if __name__ == "__main__":
    main()
