"""A deployment for tests in which single processes die: Redis, database, storage, and leases that expire soon."""

from collections.abc import AsyncIterator, Iterator

import pytest

from keepfit.settings import Settings
from tests import servers
from tests.conftest import SIGNING_KEYS
from tests.factories import Workshop, workshop

LEASE_TTL_S = 0.3
UPLOAD_KEYS = "u1:" + "ab" * 32


@pytest.fixture(scope="module")
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mongo_server: str
) -> Iterator[Settings]:
    """Run one deployment for the tests of a module, with a row log if its `ROW_LOG` is True; yield its settings."""
    name = request.module.__name__.rpartition(".")[2]
    folder = tmp_path_factory.mktemp(name)
    with servers.valkey(folder / "redis") as url:
        yield Settings(
            store_url=url,
            mongo_url=f"{mongo_server}/{name}",
            snapshot_url=(folder / "snapshots").as_uri(),
            row_log_url=(folder / "rows").as_uri() if getattr(request.module, "ROW_LOG", False) else "",
            signing_keys=SIGNING_KEYS,
            upload_keys=UPLOAD_KEYS,
            lease_ttl_s=LEASE_TTL_S,
            port=0,
        )


@pytest.fixture
async def shop(deployment: Settings) -> AsyncIterator[Workshop]:
    """Open a workshop on the deployment."""
    async with workshop(deployment) as opened:
        if opened.resources.row_log is not None:
            opened.resources.row_log.probe()
        yield opened
