"""Rolling restarts: no request fails, and each row is learned once and in order."""

from pathlib import Path

from tests.recovery.deployment import deployed
from tests.recovery.rolling import SETTINGS, roll, second_supervisor


async def test_gateways_and_workers_are_restarted_under_load(tmp_path: Path) -> None:
    """Each of two gateways and two supervisors is restarted: requests that keep their connection succeed."""
    with deployed(tmp_path, **SETTINGS) as deployment:
        other = second_supervisor(deployment)
        other.start()
        try:
            services = [*deployment.gateways, deployment.workers, other]
            clients = await roll(deployment, services, rounds=1)
        finally:
            other.close()
    assert all(client.predicted >= 2 * len(services) for client in clients)
