"""Write made-up votes on how sneakers fit: bodies of POST …/partial_fit, and the same votes as votes.csv.

A vote is from 1 (too small) to 5 (too large). It depends on the make, less on the year, and on the person.
The same seed gives the same files.
"""

import json
import random
from pathlib import Path
from typing import Any

# The average vote on a pair of 2005; LATER is added in ten years, PERSON is the standard deviation of a vote.
MAKES = {
    "adidas": 2.1,
    "asics": 3.0,
    "brooks": 3.3,
    "converse": 4.4,
    "mizuno": 2.6,
    "new balance": 2.9,
    "nike": 3.8,
    "puma": 2.3,
    "reebok": 3.5,
    "saucony": 3.1,
    "salomon": 1.8,
    "vans": 4.1,
}
LATER = 0.3
YEARS = (1995, 2015)
PERSON = 0.5
VOTES = 1000
SEED = 1


def votes(generator: random.Random) -> dict[str, list[Any]]:
    """Return rows and votes."""
    pairs: list[Any] = [[generator.choice(list(MAKES)), generator.randint(*YEARS)] for _ in range(VOTES)]
    fits = [MAKES[make] + LATER * (year - 2005) / 10 for make, year in pairs]
    return {"X": pairs, "y": [min(5, max(1, round(generator.gauss(fit, PERSON)))) for fit in fits]}


def main() -> None:
    """Write votes-1.json, votes-2.json and votes.csv beside this file."""
    generator = random.Random(SEED)
    lines = ["make,year,fit"]
    for number in (1, 2):
        body = votes(generator)
        rows = ",\n".join(json.dumps(row) for row in body["X"])
        text = f'{{"X": [\n{rows}\n],\n"y": {json.dumps(body["y"])}}}\n'
        Path(__file__).with_name(f"votes-{number}.json").write_text(text)
        lines += [f"{make},{year},{fit}" for (make, year), fit in zip(body["X"], body["y"], strict=True)]
    Path(__file__).with_name("votes.csv").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
