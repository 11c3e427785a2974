"""The machines detect every mutant of the scripts, and so would detect such a mistake."""

from datetime import date
from pathlib import Path

import pytest

from keepfit.backends import redis_scripts
from tests.scripts import mutants
from tests.scripts.bench import Bench
from tests.scripts.mutants import MUTANTS, Mutant
from tests.scripts.runner import drive, find_failure
from tests.scripts.store_machine import StoreMachine

PAGE = Path(__file__).parents[2] / "docs/contributing/scripts.md"


def test_every_mutant_differs(scripts_bench: Bench) -> None:
    """The replaced text occurs once in its script, the mutant compiles, and no two mutants are equal."""
    for mutant in MUTANTS:
        assert redis_scripts.TEXTS[mutant.script].count(mutant.old) == 1, mutant.id
        assert mutant.text() != redis_scripts.TEXTS[mutant.script], mutant.id
        scripts_bench.client.script_load(mutant.text())
    assert len({mutant.text() for mutant in MUTANTS}) == len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)


def test_every_script_has_mutants() -> None:
    """Every script has mutants, the shares of all days cover all, and each share has some of the main scripts."""
    assert {mutant.script for mutant in MUTANTS} == set(redis_scripts.TEXTS)
    shares = [mutants.share(day) for day in range(mutants.SHARES)]
    assert sorted(mutant.id for share in shares for mutant in share) == sorted(mutant.id for mutant in MUTANTS)
    for share in shares:
        assert {"accept", "commit", "claim_inbox", "claim", "abandon"} <= {mutant.script for mutant in share}


def test_every_mutant_is_on_the_page() -> None:
    """docs/contributing/scripts.md lists every mutant."""
    rows = PAGE.read_text().splitlines()
    missing = [m.id for m in MUTANTS if not any(row.startswith(f"| {m.script} | {m.name} |") for row in rows)]
    assert missing == [], "make mutants writes the page"


def test_a_mutant_replaces_its_script_until_the_block_ends(scripts_bench: Bench) -> None:
    """The machine fails with the mutant and passes after it: it detects the mutant itself."""
    (mutant,) = (m for m in MUTANTS if m.id == "commit: the version rises by 2")
    before = dict(redis_scripts.SHA1)
    assert find_failure(mutant, scripts_bench) is not None
    assert before == redis_scripts.SHA1
    drive(StoreMachine, scripts_bench, 5)


@pytest.mark.parametrize("mutant", mutants.share(date.today().toordinal()), ids=lambda mutant: mutant.id)
def test_a_mutant_is_detected(scripts_bench: Bench, mutant: Mutant) -> None:
    """A machine detects the mistake in the script."""
    assert find_failure(mutant, scripts_bench) is not None
