"""Add deliveries to the stream: `python produce.py 3000`.

The minutes of a delivery are made of effects that the model does not see: the time of the kitchen, 4 minutes for each
km, 9 more in rush hours, and noise of 2 minutes (its mean absolute value is 1.6: no model has a smaller error).
"""

import os
import random
import sys
from collections.abc import Iterator

import redis

from deliveries import RUSH_HOURS

KITCHEN_MINUTES = {"napoli": 12, "saigon": 18, "tandoor": 26, "burger": 8, "sushi": 21}


def deliveries(count: int) -> Iterator[dict[str, str]]:
    """Yield the same `count` deliveries in every run."""
    chance = random.Random(7)
    for _ in range(count):
        kitchen = chance.choice(list(KITCHEN_MINUTES))
        km, hour = chance.uniform(0.5, 8), chance.randrange(11, 23)
        minutes = KITCHEN_MINUTES[kitchen] + 4 * km + 9 * (hour in RUSH_HOURS) + chance.gauss(0, 2)
        yield {"kitchen": kitchen, "km": f"{km:.2f}", "hour": str(hour), "minutes": f"{minutes:.1f}"}


def main() -> None:
    """Add as many deliveries as the argument says."""
    stream = os.environ.get("STREAM", "deliveries")
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
    with redis.Redis.from_url(url) as client, client.pipeline(transaction=False) as pipeline:
        for fields in deliveries(int(sys.argv[1])):
            pipeline.xadd(stream, dict(fields))
        print(f"{len(pipeline.execute())} deliveries added to {stream}")


if __name__ == "__main__":
    main()
