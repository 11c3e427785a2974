"""docs/operations/performance.md: the tables that results make, put into the prose of ``performance.template.md``.

Owns what stands in which column. Never measures. Invariants: a series with errors appears as its errors and in no
ratio; the prose is in the template alone, so that measuring again changes numbers and nothing else.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from benchmarks.results import Results, Series
from benchmarks.systems import SYSTEMS

TEMPLATE = Path(__file__).with_name("performance.template.md")
TITLES = {system.name: system.title for system in SYSTEMS}
PEERS = tuple(system.name for system in SYSTEMS if system.name not in ("keepfit", "echo"))
CONNECTIONS = (1, 32, 128)
MODELS = {"models_1": "one model", "models_100": "100 models, uniform", "models_zipf": "{models:,} models, Zipf 1.1"}
NONE = "-"


def write(results: Results, root: Path) -> None:
    """Write the document and its plot under `root`."""
    from benchmarks.plot import draw  # noqa: PLC0415 - matplotlib is not in the environment that tests run in

    (root / "docs/operations/performance.md").write_text(render(results))
    draw(results, root / "docs/operations/performance.svg")


def render(results: Results) -> str:
    """Fill in the template."""
    told = results.conditions
    return Template(TEMPLATE.read_text()).substitute(
        told,
        notice="\n**One short round: these numbers are indicative only.**\n" if told["rounds"] == 1 else "",
        again=f"- **Measured again** by itself, later: {', '.join(told['again'])}.\n" if told.get("again") else "",
        cpu_model=told["cpu"],
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
    """Write a Markdown table; the first column is text, the others are figures.

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
    """Throughput, or what went wrong instead."""
    return f"{series.rate:,.0f}" if series.usable else trouble(series)


def trouble(series: Series) -> str:
    """Write why there is no number; a dash where nothing was tried."""
    return NONE if not series.samples and not series.failure else f"failed: {series.trouble()}"


def milliseconds(series: Series, name: str) -> str:
    """Write the latency `name` (p50_ms or p99_ms), a dash where there is none."""
    return f"{getattr(series, name):.2f}" if series.usable else NONE


def percent(share: float) -> str:
    """Write a share.

    >>> percent(0.123)
    '12 %'
    """
    return f"{share * 100:.0f} %"


def times(ratio: float | None) -> str:
    """Write a ratio with two digits that count.

    >>> times(0.1234), times(12.34), times(None)
    ('0.12x', '12x', '-')
    """
    if ratio is None:
        return NONE
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x" if ratio >= 0.995 else f"{ratio:.2f}x"


def measured(results: Results, scenario: str) -> list[str]:
    """Systems that a scenario was tried with, in the order of the tables."""
    return [name for name in TITLES if name in results.series.get(scenario, {})]


def predict_table(results: Results) -> str:
    """Fresh rows: throughput and latency by connections."""
    head = ["", "p50 ms at 1", *(f"{what} at {n}" for n in CONNECTIONS for what in ("req/s", "p99 ms")), "spread at 32"]
    rows = []
    for name in measured(results, "predict_32"):
        by = {n: results.of(f"predict_{n}", name) for n in CONNECTIONS}
        cells = [cell for n in CONNECTIONS for cell in (rate(by[n]), milliseconds(by[n], "p99_ms"))]
        spread = percent(by[32].spread) if by[32].usable else NONE
        rows.append([TITLES[name], milliseconds(by[1], "p50_ms"), *cells, spread])
    return table(head, rows)


def repeated_table(results: Results) -> str:
    """One row again and again: what the prediction cache gives."""
    head = ["", "p50 ms at 1", "req/s at 1", "req/s at 32", "p99 ms at 32"]
    rows = []
    for name in measured(results, "repeated_32"):
        one, many = results.of("repeated_1", name), results.of("repeated_32", name)
        latencies = milliseconds(one, "p50_ms"), milliseconds(many, "p99_ms")
        rows.append([TITLES[name], latencies[0], rate(one), rate(many), latencies[1]])
    return table(head, rows)


def learn_table(results: Results) -> str:
    """Rows to learn; for keepfit both how fast they were accepted and how fast learned."""
    rows = []
    for name in measured(results, "learn"):
        accepted = results.of("learn", name)
        learned = results.of("learned", name) if name == "keepfit" else accepted
        spread = percent(accepted.spread) if accepted.usable else NONE
        rows.append([TITLES[name], rate(accepted), rate(learned), milliseconds(accepted, "p99_ms"), spread])
    return table(["", "accepted/s", "learned/s", "p99 ms", "spread"], rows)


def half_table(results: Results) -> str:
    """Latency at half of each system's own peak."""
    rows = []
    for name in measured(results, "half"):
        series = results.of("half", name)
        rows.append([TITLES[name], rate(series), *(milliseconds(series, latency) for latency in ("p50_ms", "p99_ms"))])
    return table(["", "req/s", "p50 ms", "p99 ms"], rows)


def ratio_table(results: Results) -> str:
    """keepfit against the best of its peers in each scenario, and against the echo."""
    rows = []
    for scenario, title in {
        **{f"predict_{n}": f"predict, fresh rows, {n} connection{'s' if n > 1 else ''}" for n in CONNECTIONS},
        "repeated_1": "predict, one row repeated, 1 connection",
        "repeated_32": "predict, one row repeated, 32 connections",
        "learn": "partial_fit, accepted, 32 connections",
    }.items():
        # The peers keep no predictions, so a repeated row costs them what a fresh one does.
        theirs = scenario.replace("repeated", "predict")
        best = results.best(theirs, PEERS)
        echo = scenario if scenario != "learn" else "predict_32"
        mine = results.of(scenario, "keepfit")
        rows.append(
            [
                title,
                times(_over(mine, results.of(theirs, best), "rate")) if best else NONE,
                times(_over(mine, results.of(theirs, best), "p99_ms")) if best else NONE,
                TITLES.get(best or "", NONE),
                times(_over(mine, results.of(echo, "echo"), "rate")),
                times(_over(mine, results.of(echo, "echo"), "p50_ms")),
            ]
        )
    return table(["", "req/s, of best peer's", "p99, of its", "best peer", "req/s, of echo's", "p50, of echo's"], rows)


def _over(one: Series, other: Series, name: str) -> float | None:
    """Ratio of a figure of two series; None without two numbers."""
    if not (one.usable and other.usable) or not getattr(other, name):
        return None
    return float(getattr(one, name) / getattr(other, name))


def models_table(results: Results) -> str:
    """One model, a hundred, thousands: throughput, share of one model's, latency at half of it."""
    rows = []
    for scenario, title in MODELS.items():
        full, half = results.of(scenario, "keepfit"), results.of(f"{scenario}_half", "keepfit")
        share = _over(full, results.of("models_1", "keepfit"), "rate")
        p99s = milliseconds(full, "p99_ms"), milliseconds(half, "p99_ms")
        named = title.format(models=results.conditions["models"])
        rows.append([named, rate(full), percent(share) if share is not None else NONE, *p99s])
    return table(["", "req/s", "of one model's", "p99 ms", "p99 ms at half of it"], rows)


def workers_table(results: Results) -> str:
    """A slow model with one worker and with two."""
    rows = []
    for workers in (1, 2):
        series = results.of(f"workers_{workers}", "keepfit")
        ratio = times(_over(series, results.of("workers_1", "keepfit"), "rate"))
        rows.append([str(workers), rate(series), ratio, milliseconds(series, "p99_ms")])
    return table(["workers", "req/s", "of one worker's", "p99 ms"], rows)


def memory_table(results: Results) -> str:
    """Megabytes of each part without models and with all of them."""
    before, after = results.figures.get("memory_before_mb", {}), results.figures.get("memory_mb", {})
    rows = [[name, f"{before[name]:,.0f}", f"{after[name]:,.0f}"] for name in after]
    return table(["MB", "no models", f"{results.conditions['models']:,} models"], rows)


def snapshots_table(results: Results) -> str:
    """A pass over models that have all changed: seconds for a thousand, by where they are saved to."""
    rows = []
    for place, title in {"folder": "folder", "s3": "S3 (seaweedfs)"}.items():
        series = results.of("snapshots", place)
        seconds = f"{1000 / series.rate:.1f}" if series.usable else trouble(series)
        rows.append([title, seconds, rate(series) if series.usable else NONE])
    return table(["1,000 small models that have changed", "s", "models/s"], rows)


def profile_table(results: Results) -> str:
    """Microseconds of processor time for a request, by layer and part."""
    parts: dict[str, dict[str, float]] = results.figures.get("profile", {})
    if not parts:
        return f"Not measured: {results.of('start', 'profile').trouble()}."
    totals: dict[str, float] = {}
    for layers in parts.values():
        for layer, micros in layers.items():
            totals[layer] = totals.get(layer, 0.0) + micros
    rows = [
        [layer, *(f"{layers[layer]:,.0f}" if layer in layers else NONE for layers in parts.values()), f"{total:,.0f}"]
        for layer, total in sorted(totals.items(), key=lambda item: -item[1])
    ]
    sums = [f"{sum(layers.values()):,.0f}" for layers in parts.values()]
    rows.append(["**all**", *sums, f"{sum(totals.values()):,.0f}"])
    return table(["µs a request", *parts, "all"], rows)


def systems_table(results: Results) -> str:
    """How each system was set up, and its versions."""
    versions = results.conditions["versions"]
    rows = [f"| {system.title} | {system.setup} | {versions[system.name]} |" for system in SYSTEMS]
    return "\n".join(["| | set-up | versions |", "|---|---|---|", *rows])


def left_out(results: Results) -> str:
    """Name the systems that did not run, with the reason; '' if all did."""
    reasons = {name: results.of("start", name).failure for name in TITLES}
    lines = [f"- {TITLES[name]} is left out: {reason}" for name, reason in reasons.items() if reason]
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def summary(results: Results) -> str:
    """Write all series and figures as plain lines."""
    lines = [
        f"{scenario:18} {name:10} {rate(series):>10}/s  p50 {milliseconds(series, 'p50_ms'):>8}  "
        f"p99 {milliseconds(series, 'p99_ms'):>8} ms"
        for scenario, systems in results.series.items()
        for name, series in systems.items()
        if series.samples or series.failure
    ]
    return "\n".join([*lines, *(f"{name}: {figure}" for name, figure in results.figures.items())])
