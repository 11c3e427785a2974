"""Medians, ratios and the document, from figures that stand here."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.load import Sample
from benchmarks.profile import KERNEL, LAYERS, divided, layer_of
from benchmarks.results import Results, Series
from benchmarks.systems import SYSTEMS

ROOT = Path(__file__).parents[2]

CONDITIONS: dict[str, Any] = {
    "date": "2026-01-02", "command": "make bench", "cores": 2, "cpu": "A processor", "memory_gb": 24,
    "system": "Linux", "python": "3.11", "wrk": "wrk 4", "rounds": 3, "seconds": 4.0, "models": 10_000,
    "versions": {system.name: f"{system.name} 1.0" for system in SYSTEMS},
}  # fmt: skip


def sample(rate: float, p50_ms: float = 1.0, p99_ms: float = 2.0, **errors: int) -> Sample:
    """Make a sample."""
    return Sample(rate, p50_ms, p99_ms, errors)


@pytest.fixture
def results() -> Results:
    """Three rounds in which keepfit does 400, FastAPI 100, MLServer 50 and the echo 1,000 requests a second."""
    made = Results(conditions=dict(CONDITIONS))
    for off in (-10, 0, 30):
        for scenario in ("predict_1", "predict_32", "predict_128", "repeated_1", "repeated_32"):
            made.add(scenario, "keepfit", sample(400 + off, 0.5, 5.0))
            made.add(scenario, "fastapi", sample(100 + off, 1.0, 20.0))
            made.add(scenario, "mlserver", sample(50, 2.0, 40.0))
            made.add(scenario, "echo", sample(1000 + off, 0.25, 1.0))
        made.add("learn", "keepfit", sample(600))
        made.add("learned", "keepfit", sample(590))
        made.add("learn", "fastapi", sample(60))
        for scenario, rate in (("models_1", 400.0), ("models_100", 300.0), ("models_zipf", 200.0)):
            made.add(scenario, "keepfit", sample(rate))
            made.add(f"{scenario}_half", "keepfit", sample(rate / 2, p99_ms=3.25))
        made.add("workers_1", "keepfit", sample(180))
        made.add("workers_2", "keepfit", sample(342))
        made.add("half", "keepfit", sample(200, p99_ms=4.5))
    made.figures["memory_before_mb"] = {"Redis": 1.0, "gateway": 100.0, "worker": 150.0}
    made.figures["memory_mb"] = {"Redis": 90.4, "gateway": 140.0, "worker": 260.0}
    made.figures["profile"] = {"gateway": {"keepfit": 60.0, KERNEL: 15.0}, "Redis": {KERNEL: 5.0}}
    return made


def row(text: str, title: str, number: int = 0) -> list[str]:
    """Cells of the table row that begins with `title`, the `number`-th one in the document."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in lines[number].strip("|").split("|")]


def test_the_median_is_of_the_rounds_and_the_spread_from_slowest_to_fastest() -> None:
    """Rounds of 90, 100 and 140: a median of 100, a spread of a half."""
    series = Series([sample(140, 3.0, 9.0), sample(90, 1.0, 7.0), sample(100, 2.0, 8.0)])
    assert (series.rate, series.p50_ms, series.p99_ms, series.spread) == (100, 2.0, 8.0, 0.5)


def test_one_failed_request_makes_the_series_no_number(results: Results) -> None:
    """The table says what went wrong, and ratios leave the system out."""
    results.add("predict_32", "fastapi", sample(9999, timeout=3))
    text = report.render(results)
    assert "failed: 3 x timeout" in row(text, "FastAPI, in process")
    assert "9,999" not in text
    ratios = row(text, "predict, fresh rows, 32 connections")
    assert ratios[1:4] == ["8.0x", "0.12x", "MLServer"]


def test_ratios_are_to_the_best_peer_and_to_the_echo(results: Results) -> None:
    """Throughput and latency are compared with the fastest peer's own."""
    text = report.render(results)
    assert row(text, "predict, fresh rows, 32 connections")[1:] == [
        "4.0x", "0.25x", "FastAPI, in process", "0.40x", "2.0x",
    ]  # fmt: skip
    assert row(text, "partial_fit, accepted, 32 connections")[1] == "10x"
    assert results.ratio("predict_32", "keepfit", "fastapi") == 4.0
    assert results.ratio("predict_32", "keepfit", "river") is None
    assert results.best("predict_32", ["river"]) is None


def test_the_document_has_every_figure(results: Results) -> None:
    """Tables of predict, learn, many models, workers, memory and profile hold what was measured."""
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


def test_a_short_run_says_so(results: Results) -> None:
    """One round is not passed off as a measurement."""
    results.conditions["rounds"] = 1
    assert "indicative only" in report.render(results)


def test_a_peer_that_does_not_start_is_left_out_with_its_reason(results: Results) -> None:
    """It has no row among the figures and a line that says why."""
    results.fail("start", "bentoml", "bentoml ended at its start: no such module")
    text = report.render(results)
    assert "- BentoML is left out: bentoml ended at its start: no such module" in text
    assert len([line for line in text.splitlines() if line.startswith("| BentoML |")]) == 1


def test_nothing_measured_makes_a_document_without_numbers() -> None:
    """A run in which everything failed still says under which conditions."""
    text = report.render(Results(conditions=dict(CONDITIONS)))
    assert "2026-01-02" in text
    assert row(text, "predict, fresh rows, 32 connections")[1] == "-"


def test_results_survive_a_file(results: Results, tmp_path: Path) -> None:
    """What is written and read again gives the same document."""
    results.fail("start", "river", "not installed")
    results.save(tmp_path / "kept" / "latest.json")
    again = Results.load(tmp_path / "kept" / "latest.json")
    assert report.render(again) == report.render(results)
    assert json.loads((tmp_path / "kept" / "latest.json").read_text())["conditions"]["cores"] == 2


def test_the_document_in_docs_comes_from_the_template(results: Results) -> None:
    """Its headings are the template's: nobody edited what the next run would write over."""

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
    """The system's libraries count for who called them, and what is nobody's for the rest."""
    assert layer_of(frames).startswith(layer)


def test_user_time_is_divided_and_the_kernels_is_not() -> None:
    """The layers' microseconds and the kernel's are all that a part used."""
    raw = "main (/app/keepfit_gateway/app.py:1) 3\nmain (/app/keepfit_gateway/app.py:1);call (/x/redis/client.py:1) 1\n"
    parts = divided(40.0, 10.0, raw)
    assert sum(parts.values()) == 50.0
    assert parts[LAYERS[1][0]] == 10.0
    assert divided(40.0, 10.0, "") == {"interpreter and the rest": 40.0, KERNEL: 10.0}


def test_a_part_that_was_measured_again_takes_the_place_of_its_figures_and_says_so(results: Results) -> None:
    """What is measured anew replaces the samples of its scenario, leaves the others, and the page names it."""
    part = Results(conditions={**CONDITIONS, "date": "2026-02-03"})
    part.add("workers_2", "keepfit", sample(360))
    part.figures["memory_mb"] = {"Redis": 80.0, "gateway": 120.0, "worker": 200.0}
    assert "Measured again" not in report.render(results)
    results.replace(part)
    text = report.render(results)
    assert "**Measured again** by itself, later: workers_2 (2026-02-03)." in text
    assert results.of("workers_2", "keepfit").rate == 360
    assert results.of("workers_1", "keepfit").rate == 180
    assert row(text, "gateway", 0)[2] == "120"
