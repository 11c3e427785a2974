"""The control: `keepfit worker` over a commit that does not compare, so that only the lock stands between writers.

Run as a module by the harness (``python -m tests.faults.naive``) and by nobody else. It keeps no learned rows either:
where a sleeper set a model back, others would learn those again. Invariant: nothing but the script's checks is taken
out; what passes them all is committed just as always.
"""

import hashlib
import os
import re

from keepfit.backends import redis_scripts

CHECK = re.compile(r"^if [^\n]+ then\n  return -?\d\nend\n", re.MULTILINE)
CHECKS_MIN = 4


def without_checks(text: str) -> str:
    """Take the checks out of commit.lua: every ``if`` that does nothing but return a number."""
    naive, checks = CHECK.subn("", text)
    assert checks >= CHECKS_MIN, f"only {checks} checks were found in commit.lua"
    return naive


def install() -> None:
    """Make this process commit without looking."""
    redis_scripts.TEXTS["commit"] = without_checks(redis_scripts.TEXTS["commit"])
    redis_scripts.SHA1["commit"] = hashlib.sha1(redis_scripts.TEXTS["commit"].encode()).hexdigest()
    redis_scripts.LOAD_ALL = tuple(("SCRIPT", "LOAD", text) for text in redis_scripts.TEXTS.values())


if __name__ == "__main__":
    from keepfit.cli.main import main

    install()
    os.environ["KEEPFIT_REPLAY_BYTES_MAX"] = "0"
    main()
