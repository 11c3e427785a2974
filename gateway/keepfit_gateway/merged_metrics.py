"""Metrics of the processes of one gateway, merged into one page.

Owns how the values of several processes become one: counters and histograms are added up, those of dead processes
included, and gauges of the processes that run; :data:`MERGED_BY` has the exceptions. Each process publishes its values
once a second, and the one that is scraped adds those of the others to its own. Never knows what a metric means.
Invariants: no counter decreases when a process is replaced; one process alone changes nothing.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from keepfit.observability.process_counts import Key, Parts, ProcessCounts

PUBLISH_S = 1.0
Merge = Callable[[list[float]], float]
MERGED_BY: dict[str, Merge] = {
    # Each process counts what the commit feed announces to all.
    "keepfit_requests_put_aside": max,
    "process_max_fds": max,
    "process_start_time_seconds": min,
}
# First text of the keys of rows; then come the type of the metric, its name, the name of the sample, and the labels.
PUBLISHED, GAUGE = "published", "gauge"


class ProcessMetrics:
    """What one process publishes for the others, and what they have published."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # What the processes before this one have counted, which it counts on with.
        self._before: dict[Key, float] = {}
        for key, numbers in parts.own.rows().items():
            if key[0] == PUBLISHED and key[1] != GAUGE:
                self._before[key] = numbers[0]

    @property
    def is_alone(self) -> bool:
        """Whether the gateway has no other process."""
        return not self._parts.others

    def publish(self, families: Iterable[Metric]) -> None:
        """Store the values of `families`, those of this process, where the others read them."""
        for family in families:
            for sample in family.samples:
                key = _key(family, sample)
                self._parts.own.row(key)[0] = self._counted(key, sample)
        self._parts.own.runs = True

    def merged(self, families: Iterable[Metric]) -> Iterator[Metric]:
        """Yield `families`, those of this process, with the values of all processes."""
        if self.is_alone:
            yield from families
            return
        published = [_published(part) for part in self._parts.others]
        for family in families:
            values = {_key(family, sample): [self._counted(_key(family, sample), sample)] for sample in family.samples}
            for each in published:
                for key, value in each.items():
                    if key[1:3] == (family.type, family.name):
                        values.setdefault(key, []).append(value)
            merge = MERGED_BY.get(family.name, sum)
            merged = Metric(family.name, family.documentation, family.type)
            for key, found in values.items():
                labels = dict(zip(key[4::2], key[5::2], strict=True))
                merged.samples.append(Sample(key[3], labels, merge(found)))
            yield merged

    def _counted(self, key: Key, sample: Sample) -> float:
        return sample.value + self._before.get(key, 0.0)


def _key(family: Metric, sample: Sample) -> Key:
    labels = (text for pair in sample.labels.items() for text in pair)
    return (PUBLISHED, family.type, family.name, sample.name, *labels)


def _published(part: ProcessCounts) -> dict[Key, float]:
    """Return the values that the processes of a part have published; no gauges if none runs."""
    runs = part.runs
    return {key: row[0] for key, row in part.rows().items() if key[0] == PUBLISHED and (runs or key[1] != GAUGE)}
