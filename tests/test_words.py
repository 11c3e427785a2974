"""Words that this project avoids: dialect, metaphors, inverted clauses. `docs/glossary.md` has the plain ones."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = ("*.py", "*.md", "*.lua", "*.js", "*.yaml", "Makefile", "Dockerfile")
# Each with what to write instead.
AVOIDED = {
    "nobody|no-one": "name the actor: no client, no worker",
    "somebody|someone|anybody": "name the actor: a client, an operator",
    "those who|he who|who(ever|soever)": "clients that, processes that",
    "what came of": "the result of",
    "tells? whether": "return whether, check whether",
    "(is|are) told|told of": "is notified, is reported",
    "lets? go": "release",
    "in hand": "claimed, in progress",
    "mail": "pending requests",
    "of ours": "of keepfit",
    "shelf|shelves": "storage",
    "waiting rooms?": "run queue",
    "(send|sent|goes|go) home": "release",
    "bury|buried": "reap",
    "apprentice|locksmith": "replay process, keys",
    "(short|long) way": "fast path, regular path",
    "moving house": "export and import",
    "afresh|anew": "again",
    "hence|thereof|therein|whereof|lest": "a plain sentence",
}


def pattern(words: str) -> re.Pattern[str]:
    """Match words in prose and, between underscores, in names."""
    return re.compile(rf"(?<![a-z])({words.replace(' ', '[ _]')})(?![a-z])", re.IGNORECASE)


def files() -> list[str]:
    """List the tracked files whose text is held to the list."""
    listed = subprocess.run(["git", "ls-files", *READ], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if name != "tests/test_words.py"]


@pytest.mark.parametrize("words", AVOIDED)
def test_plain_words_only(words: str) -> None:
    """No file uses the avoided words, in code, comments, messages or documentation."""
    found = []
    for name in files():
        path = ROOT / name
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if pattern(words).search(line):
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found, f"write instead: {AVOIDED[words]}\n" + "\n".join(found)


def test_the_list_is_read() -> None:
    """The list of files is not empty by mistake, and the patterns find what they are for."""
    assert {"README.md", "keepfit/errors.py", "docs/glossary.md"} <= set(files())
    assert pattern("those who").search("those who wait")
    assert pattern("nobody").search("test_nobody_waits")
    assert not pattern("mail").search("an e-mailed email")
