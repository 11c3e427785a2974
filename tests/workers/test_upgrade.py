"""Rolling upgrades: a worker of this version executes jobs that a gateway of 0.1 enqueued."""

import os
import sys
import time
from pathlib import Path

from keepfit.backends import redis_clients, redis_keys, redis_scripts
from keepfit.jobs import rq_jobs, run_queue
from keepfit.jobs.rq_jobs import FORMER_NAMES
from keepfit.settings import Settings
from tests import servers
from tests.conftest import SIGNING_KEYS
from tests.factories import workshop


async def test_a_worker_executes_jobs_with_the_names_of_0_1(settings: Settings, tmp_path: Path) -> None:
    """Rows are learned, and the predict queue is drained, by leases whose jobs have the former names."""
    queue = redis_clients.queue_sync(settings)
    variables = {
        "KEEPFIT_STORE_URL": settings.store_url.get_secret_value(),
        "KEEPFIT_MONGO_URL": settings.mongo_url.get_secret_value(),
        "KEEPFIT_SNAPSHOT_URL": settings.snapshot_url,
        "KEEPFIT_SIGNING_KEYS": SIGNING_KEYS,
        "KEEPFIT_WORKERS": "1",
    }
    async with workshop(settings) as shop:
        model_hash = await shop.make()
        await shop.accept(model_hash)
        # The worker drops a request that it cannot decode, which is enough to see that it drains the queue.
        entries: list[str | bytes] = [model_hash, run_queue.make_entry(model_hash, 60, b"?")]
        deadline = (time.time() + 3600) * 1000
        leases = {}
        for kind, entry in zip((run_queue.LEARN, run_queue.PREDICT), entries, strict=True):
            (former_name,) = (former for former, name in FORMER_NAMES.items() if name == kind.function)
            lease = run_queue.new_lease()
            redis_scripts.run(queue, run_queue.push(kind, "none", settings.lease_ttl_s, [entry]))
            leases[redis_keys.former_leases(kind.name)] = {lease: deadline}
            rq_jobs.enqueue(queue, former_name, lease)
        # A gateway of 0.1 registers a lease for its run queue.
        queue.delete(redis_keys.LEASES)
        for register, lease in leases.items():
            queue.zadd(register, lease)
        log = tmp_path / "worker.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KEEPFIT_")}
        command_line = [sys.executable, "-m", "keepfit", "worker"]
        with servers.running(command_line, log, lambda: True, {**environment, **variables}):
            state, waiting = redis_keys.state(model_hash), redis_keys.queued_models("predict")
            servers.wait_until(lambda: shop.redis.hget(state, "learned") == b"1", "learning the row")
            servers.wait_until(lambda: not queue.exists(waiting), "draining the predict queue")
            servers.wait_until(lambda: not queue.exists(*leases), "the end of the leases")
        assert "job_refused" not in log.read_text()
    queue.close()
