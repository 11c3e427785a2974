"""What several processes count becomes one page, whichever of them is scraped."""

from collections.abc import Iterator

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from keepfit.observability.process_counts import Parts, ProcessCounts
from keepfit_gateway.merged_metrics import ProcessMetrics


def families(count: float, gauge: float, started: float, label: str = "a") -> Iterator[Metric]:
    """Yield a counter, a gauge, one with another rule, and a counter with a label."""
    yield CounterMetricFamily("keepfit_hits", "", count)
    yield GaugeMetricFamily("keepfit_connections", "", gauge)
    yield GaugeMetricFamily("process_start_time_seconds", "", started)
    labelled = CounterMetricFamily("keepfit_answers", "", labels=["source"])
    labelled.add_metric([label], count)
    yield labelled


def values(metrics: Iterator[Metric]) -> dict[tuple[str, ...], float]:
    """Return the values of all samples."""
    return {(sample.name, *sample.labels.values()): sample.value for family in metrics for sample in family.samples}


def test_each_process_shows_the_values_of_all() -> None:
    """Counters and gauges are added up, also those with labels that only one process has; times are not."""
    parts = [ProcessCounts(), ProcessCounts()]
    one, two = (ProcessMetrics(Parts.of(parts, number)) for number in range(2))
    one.publish(families(3, 5, 100.0))
    two.publish(families(4, 7, 90.0, "b"))
    expected = {
        ("keepfit_hits_total",): 7, ("keepfit_connections",): 12, ("process_start_time_seconds",): 90,
        ("keepfit_answers_total", "a"): 3, ("keepfit_answers_total", "b"): 4,
    }  # fmt: skip
    assert values(one.merged(families(3, 5, 100.0))) == expected
    assert values(two.merged(families(4, 7, 90.0, "b"))) == expected


def test_a_counter_does_not_decrease_when_its_process_dies() -> None:
    """A successor counts on; while there is none, the counters hold and the gauges do not."""
    parts = [ProcessCounts(), ProcessCounts()]
    one, two = (ProcessMetrics(Parts.of(parts, number)) for number in range(2))
    one.publish(families(3, 5, 100.0))
    two.publish(families(4, 7, 90.0))
    parts[1].runs = False
    after = values(one.merged(families(3, 5, 100.0)))
    assert (after["keepfit_hits_total",], after["keepfit_connections",]) == (7, 5)
    assert after["process_start_time_seconds",] == 100
    successor = ProcessMetrics(Parts.of(parts, 1))
    successor.publish(families(1, 2, 110.0))
    for found in (one.merged(families(3, 5, 100.0)), successor.merged(families(1, 2, 110.0))):
        merged = values(found)
        assert (merged["keepfit_hits_total",], merged["keepfit_connections",]) == (8, 7)
        assert (merged["keepfit_answers_total", "a"], merged["process_start_time_seconds",]) == (8, 100)


def test_one_process_changes_nothing() -> None:
    """The families of a gateway with one process are shown as they are."""
    found = list(families(3, 5, 100.0))
    assert list(ProcessMetrics(Parts(ProcessCounts())).merged(iter(found))) == found


def test_what_all_processes_count_is_not_added_up() -> None:
    """Dead letters, which the commit feed announces to each process, count once."""
    parts = [ProcessCounts(), ProcessCounts()]
    one, two = (ProcessMetrics(Parts.of(parts, number)) for number in range(2))
    two.publish([CounterMetricFamily("keepfit_requests_put_aside", "", 4)])
    merged = values(one.merged(iter([CounterMetricFamily("keepfit_requests_put_aside", "", 3)])))
    assert merged == {("keepfit_requests_put_aside_total",): 4}


@pytest.mark.parametrize("width", [1, 16])
def test_a_reader_sees_rows_as_they_are_written(width: int) -> None:
    """Rows that are made later are seen too; the same key is the same row, for a successor as well."""
    part, number = ProcessCounts(), 100
    for i in range(number):
        part.row(("requests", str(i)), width)[width - 1] = i
        assert len(part.rows()) == i + 1
    assert [numbers[width - 1] for numbers in part.rows().values()] == list(range(number))
    part.row(("requests", "7"), width)[0] += 1
    assert len(part.rows()) == number


def test_rows_beyond_the_memory_are_counted_by_their_process() -> None:
    """A part that is full stores no further row, and what it has stays."""
    part = ProcessCounts()
    rows = 10_000
    for i in range(rows):
        part.row((str(i),), 16)[0] += i
    kept = part.rows()
    assert len(kept) == rows
    assert [kept[str(i),][0] for i in range(rows)] == list(range(rows))
