"""The traffic of models: what gateways count, and that the answer of one has the sum over all of them."""

import asyncio
import uuid
from typing import Any

import pytest
import redis.asyncio

from keepfit.backends import redis_clients
from keepfit.jobs import gateway_records, traffic
from keepfit.jobs.gateway_records import GatewayRecord
from keepfit.jobs.traffic import KEPT, ROWS_IN, SCORED, WORKER, added_up, describe, position_of, rows_out
from keepfit_gateway import traffic as counting
from keepfit_gateway.traffic import TrafficCounts
from tests.conftest import Stack
from tests.gateway.api_client import REGRESSOR, Api, eventually, serving

X = [[1.0, 2.0], [-1.0, 0.5], [0.5, -1.0]]
Y = [1.0, 2.0, 3.0]
PERIOD_S = 0.2


@pytest.fixture
async def queue(stack: Stack) -> Any:
    """Connect to the queue's Redis of the shared stack."""
    client = redis_clients.queue_async(stack.settings())
    yield client
    await client.aclose()


@pytest.fixture
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have gateways that start in this process report often, and keep as much as in a minute."""
    monkeypatch.setattr(traffic, "SLOTS", int(traffic.WINDOW_S / PERIOD_S))
    monkeypatch.setattr(traffic, "PERIOD_S", PERIOD_S)


async def gateway(queue: Any) -> TrafficCounts:
    """Return the counts of another gateway that is alive."""
    record = GatewayRecord(
        name=f"test.1.{uuid.uuid4().hex}", host="test", pid=1, started=1.0, requests_per_s=0.0, connections=0,
        event_streams=0,
    )  # fmt: skip
    await gateway_records.write(queue, record)
    return TrafficCounts(queue, record.name)


@pytest.mark.usefixtures("short_periods")
async def test_one_gateway_answers_the_sum_over_all(stack: Stack, queue: Any, metadata: dict[str, Any]) -> None:
    """Rows in and out and predictions by source of one gateway are seen at another, added to those of a third."""
    async with (
        serving(stack.settings().model_copy(update={"port": 0})) as one,
        serving(stack.settings().model_copy(update={"port": 0})) as other,
    ):
        path = await one.make(metadata, REGRESSOR)
        await one.learn(path, X, Y)
        await one.learn(path, X, Y)
        # Asked of a worker, then found among the kept answers, at once by another spelling too.
        for _ in range(3):
            await one.predict(path, X)

        async def found() -> dict[str, Any]:
            answer: dict[str, Any] = (await other.get(f"{path}/traffic")).of(200)
            return answer

        async def counted() -> bool:
            answer = await found()
            return bool(sum(answer["predictions"].values()) == 3 and answer["rows_in_per_s"] > 0)

        await eventually(counted, "3 predictions")
        answer = await found()
        assert (answer["window_s"], answer["hash"]) == (60.0, path.rpartition("/")[2])
        assert answer["rows_in_per_s"] == pytest.approx(6 / 60)
        assert answer["rows_out_per_s"] == pytest.approx(9 / 60)
        assert answer["predictions"]["worker"] >= 1
        assert answer["predictions"]["kept"] >= 1
        assert 0 < answer["latency_p50_s"] <= answer["latency_p99_s"]

        third = await gateway(queue)
        third.predicted(answer["hash"], SCORED, 12, 0.25)
        await third.publish()
        more = await found()
        assert more["predictions"] == {**answer["predictions"], "scored": answer["predictions"]["scored"] + 1}
        assert more["rows_out_per_s"] == pytest.approx(21 / 60)
        assert more["latency_p99_s"] >= 0.25
        total = (await other.get("/v1/system")).of(200)["traffic"]
        assert total["rows_out_per_s"] >= more["rows_out_per_s"]
        listed = (await other.get(f"/v1/models?sort=rate&session={metadata['session']}")).of(200)["models"]
        assert [model["rows_out_per_s"] for model in listed] == [pytest.approx(21 / 60)]
        # What was counted is not counted again, and leaves when its slot is written again.
        third._slot = 0
        await third.publish()
        assert (await found())["rows_out_per_s"] == pytest.approx(9 / 60)


async def test_a_model_without_traffic_and_one_that_does_not_exist(api: Api, metadata: dict[str, Any]) -> None:
    """Without traffic all counts are 0; an unknown model is 404."""
    path = await api.make(metadata, REGRESSOR)
    answer = (await api.get(f"{path}/traffic")).of(200)
    assert {key: answer[key] for key in ("rows_in_per_s", "rows_out_per_s", "latency_p50_s", "latency_p99_s")} == {
        "rows_in_per_s": 0.0, "rows_out_per_s": 0.0, "latency_p50_s": 0.0, "latency_p99_s": 0.0,
    }  # fmt: skip
    assert set(answer["predictions"].values()) == {0}
    (await api.get(f"/v1/models/{'0' * 64}/traffic")).problem(404)


async def test_memory_is_bounded(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models beyond the bounds are in the sum alone: of those that are counted, the busiest are reported."""
    monkeypatch.setattr(counting, "MODELS_MAX", 30)
    monkeypatch.setattr(traffic, "MODELS_MAX", 10)
    counts = await gateway(queue)
    names = [f"{number:064x}" for number in range(50)]
    for number, name in enumerate(names):
        counts.accepted(name, 1)
        counts.predicted(name, WORKER, number + 1, 0.001)
    assert len(counts._models) == 30
    before = await traffic.read(queue, [traffic.ALL])
    await counts.publish()
    assert counts._models == {}
    found = await traffic.read(queue, names)
    assert [name for name in names if rows_out(found[name])] == names[20:30]
    total = (await traffic.read(queue, [traffic.ALL]))[traffic.ALL]
    # Other gateways may have replaced what they had.
    assert rows_out(total) >= sum(range(1, 51))
    assert len(before[traffic.ALL]) == traffic.WIDTH


async def test_counts_of_another_release_are_left_out(queue: Any) -> None:
    """A field of another form is in no sum, and a slot lives no longer than the window and a period."""
    counts = await gateway(queue)
    await traffic.write(queue, counts._name, 0, {"ab" * 32: b"\x93\x01\x02\x03", "cd" * 32: b"?"})
    assert await traffic.read(queue, ["ab" * 32, "cd" * 32]) == {
        "ab" * 32: [0] * traffic.WIDTH, "cd" * 32: [0] * traffic.WIDTH,
    }  # fmt: skip
    counts.accepted("ab" * 32, 4)
    await counts.publish()
    assert (await traffic.read(queue, ["ab" * 32]))["ab" * 32][ROWS_IN] == 4
    left_ms = await queue.pttl(f"kf:traffic:{counts._name}:0")
    assert 0 < left_ms <= 1000 * (traffic.WINDOW_S + traffic.PERIOD_S)


async def test_an_unavailable_redis_ends_no_counting(stack: Stack) -> None:
    """Without the queue's Redis what was counted is lost, and counting goes on."""
    lost = redis.asyncio.Redis(host="127.0.0.1", port=1)
    counts = TrafficCounts(lost, "none")
    task = asyncio.create_task(counts.publish_forever())
    counts.accepted("ab", 1)
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await lost.aclose()


def test_latencies_are_found_within_a_factor() -> None:
    """Quantiles of latencies from microseconds to minutes are within a factor of 1.5 of the true ones."""
    each = [2e-5 * 1.01**number for number in range(1500)]
    counts = [0] * traffic.WIDTH
    for seconds in each:
        counts[position_of(KEPT, seconds)] += 1
    said = describe(added_up([counts, [0] * traffic.WIDTH]))
    for name, share in (("latency_p50_s", 0.5), ("latency_p99_s", 0.99)):
        true = each[int(share * len(each))]
        assert true / 1.5 < said[name] < true * 1.5
