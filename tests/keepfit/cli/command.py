"""Run `keepfit` as a process to its end."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keepfit.settings import Settings
from tests import fork_server

Done = fork_server.Done


def keepfit(
    *words: str, cwd: Path, variables: Mapping[str, str] | None = None, sent: str | None = None, timeout: float = 60
) -> Done:
    """Run the command to its end; `sent` is its standard input."""
    return fork_server.run(words, cwd, {**os.environ, **(variables or {})}, sent, timeout)


def error_line(done: Done) -> str:
    """Return the one line that a failed command prints to standard error; assert that it prints nothing else."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("keepfit: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.rstrip("\n")


@dataclass(frozen=True, slots=True)
class Command:
    """The command with the settings of one deployment."""

    settings: Settings
    cwd: Path
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """The deployment's settings as environment variables."""
        return {
            "KEEPFIT_STORE_URL": self.settings.store_url.get_secret_value(),
            "KEEPFIT_MONGO_URL": self.settings.mongo_url.get_secret_value(),
            "KEEPFIT_SNAPSHOT_URL": self.settings.snapshot_url,
            "KEEPFIT_SIGNING_KEYS": self.settings.signing_keys.get_secret_value(),
            **self.more,
        }

    def run(self, *words: str) -> Done:
        """Run it with the deployment's settings."""
        return keepfit(*words, cwd=self.cwd, variables=self.variables)

    def __call__(self, *words: str) -> str:
        """Run it, assert that it succeeds without a word on standard error, and return its output."""
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def json(self, *words: str) -> list[dict[str, Any]]:
        """Run it with --json; return the documents, one per line."""
        return [json.loads(line) for line in self(*words, "--json").splitlines()]
