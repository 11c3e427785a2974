"""Send what Telegraf would send, without Telegraf: `python replay.py 600` for 600 minutes of two servers.

Each server has a load that follows the hours of the day, a job that runs every fifth minute, and noise of 2 points (its
mean absolute value is 1.6: no forecast has a smaller error). The bodies are those of Telegraf's output `http` with
`telegraf.conf`: its JSON format, in batches, with gzip.
"""

import gzip
import json
import math
import os
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

START_S = 1_700_000_040
HOSTS = {"web-1": 30.0, "web-2": 12.0}
METRICS_PER_BATCH = 120
PAUSE_S = 1.0


def metrics(minutes: int) -> Iterator[dict[str, Any]]:
    """Yield the same metrics in every run, in Telegraf's form."""
    chance = random.Random(7)
    for minute in range(minutes):
        timestamp = START_S + 60 * minute
        for host, usual in HOSTS.items():
            day = 10 * math.sin(2 * math.pi * timestamp / 86_400)
            active = usual + day + 30 * (minute % 5 == 0) + chance.gauss(0, 2)
            active = round(min(100.0, max(0.0, active)), 3)
            yield {
                "fields": {"usage_active": active, "usage_idle": 100 - active},
                "name": "cpu",
                "tags": {"cpu": "cpu-total", "host": host},
                "timestamp": timestamp,
            }


def accepted(batch: urllib.request.Request) -> bool:
    """Send a batch; return False if it is to be sent again, as Telegraf does after an interval."""
    try:
        with urllib.request.urlopen(batch, timeout=60):
            return True
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return False


def main() -> None:
    """Send as many minutes as the argument says."""
    url = os.environ.get("FORECASTER_URL", "http://127.0.0.1:8090") + "/telegraf"
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip", "User-Agent": "Telegraf"}
    waiting = list(metrics(int(sys.argv[1])))
    for start in range(0, len(waiting), METRICS_PER_BATCH):
        body = gzip.compress(json.dumps({"metrics": waiting[start : start + METRICS_PER_BATCH]}).encode())
        while not accepted(urllib.request.Request(url, body, headers)):
            time.sleep(PAUSE_S)
    print(f"{len(waiting)} metrics sent")


if __name__ == "__main__":
    main()
