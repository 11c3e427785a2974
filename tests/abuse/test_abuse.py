"""All attacks for a while; and the harness itself: its order, its bounds and its page."""

from collections import Counter
from pathlib import Path

import pytest

from tests.abuse import report
from tests.abuse.attacks import ATTACKS, SLOW_MODELS
from tests.abuse.client import Call
from tests.abuse.run import AT_A_TIME, Outcome, Window, draw, run_abuse
from tests.conftest import PATIENT

# Time of one window.
WINDOW_S = 4.0


def test_all_attacks_run_equally_often() -> None:
    """In the windows of a run each attack occurs as often as the others, give or take one, and slow models alone."""
    for seed in range(20):
        windows = draw(seed, 240.0, 10.0)
        counts = Counter(name for window in windows for name in window.attacks)
        assert counts.keys() == ATTACKS.keys()
        assert max(counts.values()) - min(counts.values()) <= 2
        for window in windows:
            assert len(set(window.attacks)) == 3
            assert len(set(window.attacks) & set(SLOW_MODELS)) <= 1


def test_what_passes_a_bound_is_reported() -> None:
    """Errors, memory, growth, times and what is left are each reported; a run within the bounds reports nothing."""
    good = Window(("malformed",), gateway_bytes=1, redis_growth_bytes=1, calls=[Call(0.0, 0.1)])
    assert report.bounds_passed(Outcome(1, [good], back_s=1.0)) == []
    assert report.times_passed(Outcome(1, [good], back_s=1.0)) == []
    bad = Window(
        ("malformed",),
        gateway_bytes=2**40,
        redis_growth_bytes=2**40,
        replaced=("gateway",),
        calls=[Call(0.0, 0.1), Call(0.0, 9.0, "503 busy")],
    )
    passed = report.bounds_passed(Outcome(1, [bad], left="/readyz: no workers"))
    assert [text.partition(": ")[2].split(" ")[0] for text in passed] == ["503", "gateway", "the", "Redis", "/readyz:"]
    assert len(report.times_passed(Outcome(1, [bad], back_s=9.0))) == 2


def test_the_page_describes_every_attack() -> None:
    """The table of attacks in the document has the attacks that run, in their order."""
    lines = report.DOCUMENT.read_text().partition("## Figures")[0].splitlines()
    described = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert described == [name.replace("_", " ") for name in ATTACKS]


@pytest.mark.timeout(300)
def test_other_clients_are_served_while_all_attacks_run(tmp_path: Path) -> None:
    """Each attack runs beside two others: no call of a well-behaved client fails, and what may grow is bounded.

    `make abuse` measures times as well, with the limits of time that users have: here the machine may be busy.
    """
    seconds = WINDOW_S * len(ATTACKS) / AT_A_TIME
    outcome = run_abuse(tmp_path, seed=6, seconds=seconds, length_s=WINDOW_S, limits=PATIENT)
    attacked = {name for window in outcome.windows for name in window.attacks}
    assert attacked == ATTACKS.keys()
    assert all(sum(window.counts[name].values()) for window in outcome.windows for name in window.attacks)
    assert report.bounds_passed(outcome) == []
