"""docs/operations/performance.md: tables of the results, inserted into the prose of ``performance.template.md``.

Owns the columns of each table. Never measures. Invariants: a series with errors appears as its errors and in no ratio;
all prose is in the template, so that a new measurement changes numbers only.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from benchmarks.measured import TITLES, measured
from benchmarks.results import Results, Series
from benchmarks.systems import SYSTEMS

TEMPLATE = Path(__file__).with_name("performance.template.md")
PEERS = tuple(system.name for system in SYSTEMS if system.name not in ("keepfit", "echo"))
CONNECTIONS = (1, 32, 128)
MODELS = {"models_1": "one model", "models_100": "100 models, uniform", "models_zipf": "{models:,} models, Zipf 1.1"}
NONE = "-"


def write(results: Results, root: Path) -> None:
    """Write the page and its plot under `root`."""
    from benchmarks.plot import draw  # noqa: PLC0415 - matplotlib is not in the environment that tests run in

    (root / "docs/operations/performance.md").write_text(render(results))
    draw(results, root / "docs/operations/performance.svg")


def render(results: Results) -> str:
    """Return the page: the template with all tables."""
    conditions = results.conditions
    return Template(TEMPLATE.read_text()).substitute(
        conditions,
        notice="\n**One short round: these numbers are indicative only.**\n" if conditions["rounds"] == 1 else "",
        again=f"- **Measured separately**, later: {', '.join(conditions['again'])}.\n"
        if conditions.get("again")
        else "",
        cpu_model=conditions["cpu"],
        predict=predict_table(results),
        repeated=repeated_table(results),
        learn=learn_table(results),
        half=half_table(results),
        ratios=ratio_table(results),
        many=models_table(results),
        workers=workers_table(results),
        memory=memory_table(results),
        snapshots=snapshots_table(results),
        profile=profile_table(results),
        systems=systems_table(results),
        left_out=left_out(results),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures.

    >>> print(table(["", "req/s"], [["echo", "1"]]))
    |  | req/s |
    |---|---:|
    | echo | 1 |
    """
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    first, rule, *rest = (list(line) for line in lines)
    written = [f"| {' | '.join(line)} |" for line in [first, *rest]]
    return "\n".join([written[0], f"|{'|'.join(rule)}|", *written[1:]])


def rate(series: Series) -> str:
    """Return the throughput, or the errors if there were any."""
    return f"{series.rate:,.0f}" if series.usable else failure(series)


def failure(series: Series) -> str:
    """Return why there is no number; a dash if nothing was tried."""
    return NONE if not series.samples and not series.failure else f"failed: {series.describe_failure()}"


def milliseconds(series: Series, name: str) -> str:
    """Return the latency `name` (p50_ms or p99_ms); a dash if there is none."""
    return f"{getattr(series, name):.2f}" if series.usable else NONE


def percent(share: float) -> str:
    """Return a share as a percentage.

    >>> percent(0.123)
    '12 %'
    """
    return f"{share * 100:.0f} %"


def times(ratio: float | None) -> str:
    """Return a ratio with two significant digits.

    >>> times(0.1234), times(12.34), times(None)
    ('0.12x', '12x', '-')
    """
    if ratio is None:
        return NONE
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x" if ratio >= 0.995 else f"{ratio:.2f}x"


def predict_table(results: Results) -> str:
    """Return the table of predictions of fresh rows: throughput and latency by number of connections."""
    head = ["", "p50 ms at 1", *(f"{what} at {n}" for n in CONNECTIONS for what in ("req/s", "p99 ms")), "spread at 32"]
    rows = []
    for name in measured(results, "predict_32"):
        series = {n: results.of(f"predict_{n}", name) for n in CONNECTIONS}
        cells = [cell for n in CONNECTIONS for cell in (rate(series[n]), milliseconds(series[n], "p99_ms"))]
        spread = percent(series[32].spread) if series[32].usable else NONE
        rows.append([TITLES[name], milliseconds(series[1], "p50_ms"), *cells, spread])
    return table(head, rows)


def repeated_table(results: Results) -> str:
    """Return the table of predictions of one repeated row, which shows the prediction cache."""
    head = ["", "p50 ms at 1", "req/s at 1", "req/s at 32", "p99 ms at 32"]
    rows = []
    for name in measured(results, "repeated_32"):
        one, many = results.of("repeated_1", name), results.of("repeated_32", name)
        latencies = milliseconds(one, "p50_ms"), milliseconds(many, "p99_ms")
        rows.append([TITLES[name], latencies[0], rate(one), rate(many), latencies[1]])
    return table(head, rows)


def learn_table(results: Results) -> str:
    """Return the table of learning; for keepfit, accepted rows and learned rows per second."""
    rows = []
    for name in measured(results, "learn"):
        accepted = results.of("learn", name)
        learned = results.of("learned", name) if name == "keepfit" else accepted
        spread = percent(accepted.spread) if accepted.usable else NONE
        rows.append([TITLES[name], rate(accepted), rate(learned), milliseconds(accepted, "p99_ms"), spread])
    return table(["", "accepted/s", "learned/s", "p99 ms", "spread"], rows)


def half_table(results: Results) -> str:
    """Return the table of latencies at half of each system's own maximum throughput."""
    rows = []
    for name in measured(results, "half"):
        series = results.of("half", name)
        rows.append([TITLES[name], rate(series), *(milliseconds(series, latency) for latency in ("p50_ms", "p99_ms"))])
    return table(["", "req/s", "p50 ms", "p99 ms"], rows)


def ratio_table(results: Results) -> str:
    """Return the table of ratios of keepfit to the best peer and to the echo, by scenario."""
    rows = []
    for scenario, title in {
        **{f"predict_{n}": f"predict, fresh rows, {n} connection{'s' if n > 1 else ''}" for n in CONNECTIONS},
        "repeated_1": "predict, one row repeated, 1 connection",
        "repeated_32": "predict, one row repeated, 32 connections",
        "learn": "partial_fit, accepted, 32 connections",
    }.items():
        # The peers cache no predictions, so a repeated row costs them as much as a fresh one.
        peer_scenario = scenario.replace("repeated", "predict")
        best = results.best(peer_scenario, PEERS)
        echo_scenario = scenario if scenario != "learn" else "predict_32"
        keepfit = results.of(scenario, "keepfit")
        rows.append(
            [
                title,
                times(_ratio(keepfit, results.of(peer_scenario, best), "rate")) if best else NONE,
                times(_ratio(keepfit, results.of(peer_scenario, best), "p99_ms")) if best else NONE,
                TITLES.get(best or "", NONE),
                times(_ratio(keepfit, results.of(echo_scenario, "echo"), "rate")),
                times(_ratio(keepfit, results.of(echo_scenario, "echo"), "p50_ms")),
            ]
        )
    return table(["", "req/s / best peer", "p99 / best peer", "best peer", "req/s / echo", "p50 / echo"], rows)


def _ratio(one: Series, other: Series, name: str) -> float | None:
    """Return the ratio of a figure of two series; None without two numbers."""
    if not (one.usable and other.usable) or not getattr(other, name):
        return None
    return float(getattr(one, name) / getattr(other, name))


def models_table(results: Results) -> str:
    """Return the table of one, a hundred and thousands of models: throughput, its share of one model's, latencies."""
    rows = []
    for scenario, title in MODELS.items():
        full, half = results.of(scenario, "keepfit"), results.of(f"{scenario}_half", "keepfit")
        share = _ratio(full, results.of("models_1", "keepfit"), "rate")
        p99s = milliseconds(full, "p99_ms"), milliseconds(half, "p99_ms")
        name = title.format(models=results.conditions["models"])
        rows.append([name, rate(full), percent(share) if share is not None else NONE, *p99s])
    return table(["", "req/s", "/ one model", "p99 ms", "p99 ms at half the rate"], rows)


def workers_table(results: Results) -> str:
    """Return the table of a slow model with one worker and with two."""
    rows = []
    for workers in (1, 2):
        series = results.of(f"workers_{workers}", "keepfit")
        ratio = times(_ratio(series, results.of("workers_1", "keepfit"), "rate"))
        rows.append([str(workers), rate(series), ratio, milliseconds(series, "p99_ms")])
    return table(["workers", "req/s", "/ one worker", "p99 ms"], rows)


def memory_table(results: Results) -> str:
    """Return the table of megabytes per process without models and with all of them."""
    before, after = results.figures.get("memory_before_mb", {}), results.figures.get("memory_mb", {})
    rows = [[name, f"{before[name]:,.0f}", f"{after[name]:,.0f}"] for name in after]
    return table(["MB", "no models", f"{results.conditions['models']:,} models"], rows)


def snapshots_table(results: Results) -> str:
    """Return the table of snapshot passes over changed models: seconds per thousand, by storage."""
    rows = []
    for storage, title in {"folder": "folder", "s3": "S3 (seaweedfs)"}.items():
        series = results.of("snapshots", storage)
        seconds = f"{1000 / series.rate:.1f}" if series.usable else failure(series)
        rows.append([title, seconds, rate(series) if series.usable else NONE])
    return table(["1,000 small changed models", "s", "models/s"], rows)


def profile_table(results: Results) -> str:
    """Return the table of microseconds of processor time per request, by layer and process."""
    processes: dict[str, dict[str, float]] = results.figures.get("profile", {})
    if not processes:
        return f"Not measured: {results.of('start', 'profile').describe_failure()}."
    totals: dict[str, float] = {}
    for layers in processes.values():
        for layer, micros in layers.items():
            totals[layer] = totals.get(layer, 0.0) + micros
    rows = [
        [
            layer,
            *(f"{layers[layer]:,.0f}" if layer in layers else NONE for layers in processes.values()),
            f"{total:,.0f}",
        ]
        for layer, total in sorted(totals.items(), key=lambda item: -item[1])
    ]
    sums = [f"{sum(layers.values()):,.0f}" for layers in processes.values()]
    rows.append(["**all**", *sums, f"{sum(totals.values()):,.0f}"])
    return table(["µs per request", *processes, "all"], rows)


def systems_table(results: Results) -> str:
    """Return the table of systems: set-up and versions."""
    versions = results.conditions["versions"]
    rows = [f"| {system.title} | {system.setup} | {versions[system.name]} |" for system in SYSTEMS]
    return "\n".join(["| | set-up | versions |", "|---|---|---|", *rows])


def left_out(results: Results) -> str:
    """Return the list of systems that did not run, with the reason; '' if all did."""
    reasons = {name: results.of("start", name).failure for name in TITLES}
    lines = [f"- {TITLES[name]} is left out: {reason}" for name, reason in reasons.items() if reason]
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def summary(results: Results) -> str:
    """Return all series and figures as plain lines."""
    lines = [
        f"{scenario:18} {name:10} {rate(series):>10}/s  p50 {milliseconds(series, 'p50_ms'):>8}  "
        f"p99 {milliseconds(series, 'p99_ms'):>8} ms"
        for scenario, systems in results.series.items()
        for name, series in systems.items()
        if series.samples or series.failure
    ]
    return "\n".join([*lines, *(f"{name}: {figure}" for name, figure in results.figures.items())])
