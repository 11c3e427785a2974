"""examples/fastapi: the service under uvicorn, with quotes whose sales come later."""

import re
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keepfit.local.servers import accepts, free_port
from tests.conftest import Stack
from tests.examples.started import Example, call, run, started
from tests.examples.unreliable import Fault, unreliable
from tests.servers import wait_until

BIKE = {"maker": "gazelle", "kind": "city", "age_years": 3, "km": 2500}


@contextmanager
def service(keepfit_url: str, city: str, folder: Path) -> Iterator[tuple[str, Example]]:
    """Run the service for a city, and so a model; yield its address and the process."""
    port = free_port()
    log = folder / f"service-{port}.log"
    command = f"uvicorn service:app --port {{{port}}} --log-level warning"
    with started("fastapi", command, log, {"KEEPFIT_URL": keepfit_url, "CITY": city}) as example:
        wait_until(lambda: accepts(port) or example.process.poll() is not None, f"start of the service (see {log})")
        assert example.process.poll() is None, example.output()
        yield f"http://127.0.0.1:{port}", example


@pytest.fixture
def city() -> str:
    """Return a city that no other test uses."""
    return uuid.uuid4().hex


def sales(url: str) -> int:
    """Return the number of sales that are learned."""
    return int(call(f"{url}/quality")["sales"])


def test_quotes_become_right(stack: Stack, city: str, tmp_path: Path) -> None:
    """Each sale is learned, and the last quotes are far better than the first."""
    with service(stack.url, city, tmp_path) as (url, _):
        shown = run("fastapi", "python sell.py {300}", {"SERVICE_URL": url})
        first, _, last = map(int, re.findall(r"sales \d+ to \d+: quotes wrong by (\d+) euros", shown))
        assert last < first / 2
        wait_until(lambda: sales(url) == 300, "learning of each sale")
        quality = call(f"{url}/quality")
        assert quality["error"] < quality["error_of_mean"] / 3


def test_a_sale_may_come_after_the_service_was_killed(stack: Stack, city: str, tmp_path: Path) -> None:
    """A quote is sold through another process of the service; known prices are not learned again."""
    with service(stack.url, city, tmp_path) as (url, example):
        quote = call(f"{url}/quotes", BIKE)
        example.kill()
    with service(stack.url, city, tmp_path) as (url, example):
        assert sales(url) == 0
        call(f"{url}/sales", {"quote_id": quote["id"], "price": 480})
        wait_until(lambda: sales(url) == 1, "learning of the sale")
        call(f"{url}/sales", {"quote_id": quote["id"], "price": 480})
        call(f"{url}/sales", {"quote_id": "never", "price": 480})
        example.printed(f"the sale of {quote['id']} is not learned: labelled")
        example.printed("the sale of never is not learned: unknown")
        assert sales(url) == 1


def test_wrong_bikes_and_an_unavailable_keepfit(stack: Stack, city: str, tmp_path: Path) -> None:
    """A wrong bike is refused by the service; without keepfit quotes are 503, and sales are sent again."""
    # The first learning call is that of the known prices.
    faults = list[Fault]([None, "away", None, "busy", "lost"])
    with unreliable(stack.url, faults) as keepfit, service(keepfit, city, tmp_path) as (url, _):
        for wrong, status in (({**BIKE, "kind": "tank"}, 422), ({**BIKE, "km": -1}, 422), (BIKE, 503)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                call(f"{url}/quotes", wrong)
            refused.value.close()
            assert refused.value.code == status
        quote = call(f"{url}/quotes", BIKE)
        call(f"{url}/sales", {"quote_id": quote["id"], "price": 480})
        wait_until(lambda: sales(url) == 1, "learning of the sale")
        assert faults == []
