"""Mutants of the scripts: each must be noticed, or the machines would not notice such a mistake either."""

from datetime import date
from pathlib import Path

import pytest

from keepfit.backends import redis_scripts
from tests.scripts import mutants
from tests.scripts.bench import Bench
from tests.scripts.driving import drive, hunt
from tests.scripts.models import Models
from tests.scripts.mutants import MUTANTS, Mutant

PAGE = Path(__file__).parents[2] / "docs/contributing/scripts.md"


def test_every_mutant_is_another_script(scripts_bench: Bench) -> None:
    """What a mutant replaces stands once in its script, what comes of it compiles, and no two are the same."""
    for mutant in MUTANTS:
        assert redis_scripts.TEXTS[mutant.script].count(mutant.old) == 1, mutant.id
        assert mutant.text() != redis_scripts.TEXTS[mutant.script], mutant.id
        scripts_bench.client.script_load(mutant.text())
    assert len({mutant.text() for mutant in MUTANTS}) == len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)


def test_every_script_has_mutants() -> None:
    """No script is left out, the shares of all days are all mutants, and each has some of those that matter most."""
    assert {mutant.script for mutant in MUTANTS} == set(redis_scripts.TEXTS)
    shares = [mutants.share(day) for day in range(mutants.SHARES)]
    assert sorted(mutant.id for share in shares for mutant in share) == sorted(mutant.id for mutant in MUTANTS)
    for share in shares:
        assert {"accept", "commit", "claim_inbox", "claim", "abandon"} <= {mutant.script for mutant in share}


def test_every_mutant_is_on_the_page() -> None:
    """docs/contributing/scripts.md lists them all."""
    rows = PAGE.read_text().splitlines()
    missing = [m.id for m in MUTANTS if not any(row.startswith(f"| {m.script} | {m.name} |") for row in rows)]
    assert missing == [], "make mutants writes the page"


def test_a_mutant_takes_its_scripts_place_for_a_while(scripts_bench: Bench) -> None:
    """The machine fails with it in place and passes once it is gone: what is noticed is the mutant."""
    (mutant,) = (m for m in MUTANTS if m.id == "commit: two versions")
    before = dict(redis_scripts.SHA1)
    assert hunt(mutant, scripts_bench) is not None
    assert before == redis_scripts.SHA1
    drive(Models, scripts_bench, 5)


@pytest.mark.parametrize("mutant", mutants.share(date.today().toordinal()), ids=lambda mutant: mutant.id)
def test_a_mutant_is_caught(scripts_bench: Bench, mutant: Mutant) -> None:
    """A machine notices that a script does something else than it should."""
    assert hunt(mutant, scripts_bench) is not None
