"""The control: `keepfit worker` that compares nothing at a commit or a load, so that only the lock separates writers.

The harness runs it as a module (``python -m tests.faults.naive``). It retains no learned requests, because other
workers would repair the model from them after a paused worker set it back. Invariant: only the checks of the script and
of a loaded bundle's header are removed; what passes all of them works as before.
"""

import hashlib
import os
import re

from keepfit.backends import redis_scripts
from keepfit_workers import bundle_cache

CHECK = re.compile(r"^( *)if [^\n]+ then\n +return -?\d\n\1end\n", re.MULTILINE)
CHECKS_MIN = 5


def without_checks(text: str) -> str:
    """Remove the checks from commit.lua: every ``if`` that only returns a number."""
    naive, checks = CHECK.subn("", text)
    assert checks >= CHECKS_MIN, f"commit.lua has only {checks} checks"
    return naive


def install() -> None:
    """Make this process commit and load without comparing."""
    redis_scripts.TEXTS["commit"] = without_checks(redis_scripts.TEXTS["commit"])
    redis_scripts.SHA1["commit"] = hashlib.sha1(redis_scripts.TEXTS["commit"].encode()).hexdigest()
    # Workers would notice that a live bundle is older than its state, and repair the model.
    bundle_cache._check_header = lambda header, model: None
    redis_scripts.LOAD_ALL = tuple(("SCRIPT", "LOAD", text) for text in redis_scripts.TEXTS.values())


if __name__ == "__main__":
    from keepfit.cli.main import main

    install()
    os.environ["KEEPFIT_REPLAY_BYTES_MAX"] = "0"
    main()
