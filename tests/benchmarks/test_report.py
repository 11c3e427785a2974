"""Medians, ratios and the page, computed from fixed figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.load import Sample
from benchmarks.profile import KERNEL, LAYERS, divide_by_layer, layer_of
from benchmarks.results import Results, Series
from benchmarks.systems import SYSTEMS

ROOT = Path(__file__).parents[2]

CONDITIONS: dict[str, Any] = {
    "date": "2026-01-02", "command": "make bench", "cores": 2, "cpu": "A processor", "memory_gb": 24,
    "system": "Linux", "python": "3.11", "wrk": "wrk 4", "rounds": 3, "seconds": 4.0, "models": 10_000,
    "versions": {system.name: f"{system.name} 1.0" for system in SYSTEMS},
}  # fmt: skip


def sample(rate: float, p50_ms: float = 1.0, p99_ms: float = 2.0, **errors: int) -> Sample:
    """Return a sample."""
    return Sample(rate, p50_ms, p99_ms, errors)


@pytest.fixture
def results() -> Results:
    """Return three rounds in which keepfit, FastAPI, MLServer and the echo have 400, 100, 50 and 1,000 requests/s."""
    results = Results(conditions=dict(CONDITIONS))
    for offset in (-10, 0, 30):
        for scenario in ("predict_1", "predict_32", "predict_128", "repeated_1", "repeated_32"):
            results.add(scenario, "keepfit", sample(400 + offset, 0.5, 5.0))
            results.add(scenario, "fastapi", sample(100 + offset, 1.0, 20.0))
            results.add(scenario, "mlserver", sample(50, 2.0, 40.0))
            results.add(scenario, "echo", sample(1000 + offset, 0.25, 1.0))
        results.add("learn", "keepfit", sample(600))
        results.add("learned", "keepfit", sample(590))
        results.add("learn", "fastapi", sample(60))
        for scenario, rate in (("models_1", 400.0), ("models_100", 300.0), ("models_zipf", 200.0)):
            results.add(scenario, "keepfit", sample(rate))
            results.add(f"{scenario}_half", "keepfit", sample(rate / 2, p99_ms=3.25))
        results.add("workers_1", "keepfit", sample(180))
        results.add("workers_2", "keepfit", sample(342))
        results.add("half", "keepfit", sample(200, p99_ms=4.5))
    results.figures["memory_before_mb"] = {"Redis": 1.0, "gateway": 100.0, "worker": 150.0}
    results.figures["memory_mb"] = {"Redis": 90.4, "gateway": 140.0, "worker": 260.0}
    results.figures["profile"] = {"gateway": {"keepfit": 60.0, KERNEL: 15.0}, "Redis": {KERNEL: 5.0}}
    return results


def row(text: str, title: str, number: int = 0) -> list[str]:
    """Return the cells of the `number`-th table row that begins with `title`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in lines[number].strip("|").split("|")]


def test_median_and_spread_of_the_rounds() -> None:
    """Rounds of 90, 100 and 140 have a median of 100 and a spread of 0.5."""
    series = Series([sample(140, 3.0, 9.0), sample(90, 1.0, 7.0), sample(100, 2.0, 8.0)])
    assert (series.rate, series.p50_ms, series.p99_ms, series.spread) == (100, 2.0, 8.0, 0.5)


def test_one_failed_request_fails_the_series(results: Results) -> None:
    """The table shows the errors, and ratios ignore the system."""
    results.add("predict_32", "fastapi", sample(9999, timeout=3))
    text = report.render(results)
    assert "failed: 3 x timeout" in row(text, "FastAPI, in process")
    assert "9,999" not in text
    ratios = row(text, "predict, fresh rows, 32 connections")
    assert ratios[1:4] == ["8.0x", "0.12x", "MLServer"]


def test_ratios_compare_with_the_best_peer_and_the_echo(results: Results) -> None:
    """Throughput and latency are compared with those of the fastest peer."""
    text = report.render(results)
    assert row(text, "predict, fresh rows, 32 connections")[1:] == [
        "4.0x", "0.25x", "FastAPI, in process", "0.40x", "2.0x",
    ]  # fmt: skip
    assert row(text, "partial_fit, accepted, 32 connections")[1] == "10x"
    assert results.ratio("predict_32", "keepfit", "fastapi") == 4.0
    assert results.ratio("predict_32", "keepfit", "river") is None
    assert results.best("predict_32", ["river"]) is None


def test_the_page_has_every_figure(results: Results) -> None:
    """The tables of predict, learn, many models, workers, memory and profile have all measured figures."""
    text = report.render(results)
    assert row(text, "keepfit")[1:5] == ["0.50", "400", "5.00", "400"]
    assert ["600", "590"] in [row(text, "keepfit", number)[1:3] for number in range(4)]
    assert row(text, "100 models, uniform")[1:] == ["300", "75 %", "2.00", "3.25"]
    assert row(text, "10,000 models, Zipf 1.1")[1:3] == ["200", "50 %"]
    assert row(text, "2")[1:3] == ["342", "1.9x"]
    assert row(text, "Redis")[1:] == ["1", "90"]
    assert row(text, "**all**")[1:] == ["75", "5", "80"]
    assert "A processor" in text
    assert "indicative only" not in text


def test_a_single_round_is_marked_as_indicative(results: Results) -> None:
    """The page of a single round says that its numbers are indicative only."""
    results.conditions["rounds"] = 1
    assert "indicative only" in report.render(results)


def test_a_peer_that_does_not_start_is_left_out_with_the_reason(results: Results) -> None:
    """A system that did not start has no figures, and a line with the reason."""
    results.fail("start", "bentoml", "bentoml exited at its start: no such module")
    text = report.render(results)
    assert "- BentoML is left out: bentoml exited at its start: no such module" in text
    assert len([line for line in text.splitlines() if line.startswith("| BentoML |")]) == 1


def test_no_results_give_a_page_without_numbers() -> None:
    """A run without results gives a page with its conditions."""
    text = report.render(Results(conditions=dict(CONDITIONS)))
    assert "2026-01-02" in text
    assert row(text, "predict, fresh rows, 32 connections")[1] == "-"


def test_results_are_saved_and_loaded(results: Results, tmp_path: Path) -> None:
    """Saved and loaded results give the same page."""
    results.fail("start", "river", "not installed")
    results.save(tmp_path / "results" / "latest.json")
    loaded = Results.load(tmp_path / "results" / "latest.json")
    assert report.render(loaded) == report.render(results)
    assert json.loads((tmp_path / "results" / "latest.json").read_text())["conditions"]["cores"] == 2


def test_the_page_in_docs_comes_from_the_template(results: Results) -> None:
    """The page has the headings of the template: edits of the page would be overwritten by the next run."""

    def headings(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("#")]

    assert headings((ROOT / "docs/operations/performance.md").read_text()) == headings(report.render(results))


# The profile.


@pytest.mark.parametrize(
    ("frames", "layer"),
    [
        (
            ["run (/lib/asyncio/runners.py:1)", "call (/x/redis/asyncio/client.py:2)", "send (libc.so.6)"],
            "Redis client",
        ),
        (["step (/project/uvloop/loop.c:1)", "write (libc.so.6)"], "event loop"),
        (
            [
                "get (/app/gateway/keepfit_gateway/handlers/models.py:1)",
                "on_header (/project/aiohttp/_http_parser.c:9)",
            ],
            "HTTP",
        ),
        (["predict (/app/keepfit/model/bundle.py:1)", "dot (/x/numpy/_core/multiarray.py:3)"], "scikit-learn"),
        (["predict (/app/workers/keepfit_workers/predicting.py:1)", "encode (/x/msgspec/_core.so)"], "JSON"),
        (["main (/app/other.py:1)"], "interpreter"),
    ],
)
def test_a_sample_counts_for_the_innermost_layer(frames: list[str], layer: str) -> None:
    """System libraries count for their caller, and frames without a layer for the rest."""
    assert layer_of(frames).startswith(layer)


def test_user_time_is_divided_by_layer_and_kernel_time_is_not() -> None:
    """The microseconds of layers and kernel sum up to those of the process."""
    raw = "main (/app/keepfit_gateway/app.py:1) 3\nmain (/app/keepfit_gateway/app.py:1);call (/x/redis/client.py:1) 1\n"
    layers = divide_by_layer(40.0, 10.0, raw)
    assert sum(layers.values()) == 50.0
    assert layers[LAYERS[1][0]] == 10.0
    assert divide_by_layer(40.0, 10.0, "") == {"interpreter and the rest": 40.0, KERNEL: 10.0}


def test_new_results_of_a_group_replace_its_figures(results: Results) -> None:
    """New results replace the samples of their scenarios and no others, and the page lists these scenarios."""
    newer = Results(conditions={**CONDITIONS, "date": "2026-02-03"})
    newer.add("workers_2", "keepfit", sample(360))
    newer.figures["memory_mb"] = {"Redis": 80.0, "gateway": 120.0, "worker": 200.0}
    assert "Measured separately" not in report.render(results)
    results.replace(newer)
    text = report.render(results)
    assert "**Measured separately**, later: workers_2 (2026-02-03)." in text
    assert results.of("workers_2", "keepfit").rate == 360
    assert results.of("workers_1", "keepfit").rate == 180
    assert row(text, "gateway", 0)[2] == "120"
