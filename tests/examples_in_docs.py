"""Run the code blocks of the documentation as a reader does: shell sessions, Python, JSON.

Owns which blocks there are, and how one is run. A page's blocks run in order in one folder, against a running stack,
whose address replaces port 8000. Where this machine cannot do what a command does, a stand-in on the PATH checks what
can be checked: ``kubectl`` (no cluster: the real one renders and validates on the client), ``docker`` and ``kind`` (no
engine: ``docker run IMAGE ARGUMENTS`` runs ``keepfit ARGUMENTS``).
"""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# The prompt of a session; a name before it tells two machines apart.
PROMPT = re.compile(r"^(\w*)\$ ", re.MULTILINE)
COMMAND_S_MAX = 100

# Runs a Python block with `await` at its top level, as a notebook does.
RUN_PYTHON = """
import ast, asyncio, inspect, sys
code = compile(sys.stdin.read(), "the block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
result = eval(code, {"__name__": "__main__"})
if inspect.iscoroutine(result):
    asyncio.run(result)
"""


# Separates the outputs of steps.
END = "\x1e"

STAND_INS = {
    # The real kubectl validates what is created, and renders folders. Deployments and services must be in the result.
    "kubectl": """
set -eo pipefail
words=("$@")
[ "$1" = -n ] && words=("${@:3}")
has() { "$KUBECTL" kustomize k8s/overlays/production | grep -q "name: ${1##*/}"; }
case "${words[0]} ${words[1]}" in
  "apply -k") "$KUBECTL" kustomize "${words[2]}" > /dev/null ;;
  "apply -f") grep -q '^kind:' - ;;
  "create job") has "${words[3]}" ;;
  create*) "$KUBECTL" "$@" $([[ "$*" = *--dry-run* ]] || echo --dry-run=client -o yaml) ;;
  *) for word in "$@"; do case "$word" in deployment/*|service/*) has "$word" ;; esac; done ;;
esac
""",
    "docker": """
[ "$1 $2" = "run --rm" ] || exit 0
exec keepfit "${@:4}"
""",
    "kind": "exit 0",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One command, the name of the machine in its prompt, and the output that the page shows."""

    host: str
    command: str
    shown: str


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def first_line(self) -> str:
        """The line that names the block in tables of tests."""
        return self.text.splitlines()[0]

    def steps(self) -> list["Step"]:
        """Return the commands of a session, each with the output shown below it; the whole block of other languages."""
        if self.language == "python":
            return [Step("", f"python \"$RUN_PYTHON\" <<'END_OF_BLOCK'\n{self.text}END_OF_BLOCK", "")]
        if self.language != "console":
            return [Step("", self.text.rstrip("\n"), "")]
        _, *parts = PROMPT.split(self.text)
        sessions = zip(parts[::2], parts[1::2], strict=True)
        return [Step(host, *text.partition("\n")[::2]) for host, text in sessions]


def blocks() -> list[Block]:
    """Return the blocks with a language of all pages of the repository."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [block for page in listed.stdout.splitlines() for block in _blocks_of(page)]


def _blocks_of(page: str) -> Iterator[Block]:
    for indent, language, text in BLOCK.findall((ROOT / page).read_text()):
        yield Block(page, language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))


def run(page: list[Block], folder: Path, hosts: Mapping[str, Mapping[str, str]], texts: Mapping[str, str]) -> list[str]:
    """Run the blocks of a page in one shell that ends at the first failure; return the output of each step.

    `hosts` are the variables of each machine by the name in its prompt; the key "" is the machine without a name.
    `texts` are replaced in the commands, such as a shortened hash by the hash of a model.
    """
    # Assignments such as KEEPFIT_HISTORY_KEEP=… are settings of the commands after them.
    lines = ["set -aeo pipefail", 'python() { command "$PYTHON" "$@"; }']
    for step in (step for block in page for step in block.steps()):
        command = step.command
        for text, value in texts.items():
            command = command.replace(text, value)
        lines += [f"export {name}={shlex.quote(value)}" for name, value in hosts[step.host].items()]
        lines += [command, "printf '\\036'"]
    run_python = folder / "run_python.py"
    run_python.write_text(RUN_PYTHON)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("KEEPFIT_")},
        "PATH": f"{stand_ins(folder / 'bin')}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "RUN_PYTHON": str(run_python),
        "KUBECTL": str(Path(sys.executable).with_name("kubectl")),
        "HOME": str(folder),
    }
    shell = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=COMMAND_S_MAX)
    except subprocess.TimeoutExpired:
        # With it ends what it has started; services that run in the foreground end as after Ctrl-C.
        os.killpg(shell.pid, signal.SIGINT)
        output, _ = shell.communicate()
        pytest.fail(f"not done after {COMMAND_S_MAX} s: {output[-4000:]}")
    assert shell.returncode == 0, output[-4000:]
    return output.split(END)[:-1]


def stand_ins(folder: Path) -> Path:
    """Write the commands that this machine cannot run as they are; return their folder."""
    folder.mkdir()
    for name, text in STAND_INS.items():
        file = folder / name
        file.write_text(f"#!/bin/bash\n{text}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


def assert_shown(output: str, shown: str) -> None:
    """Compare an output with the one that a page shows: JSON by its form, else the text; … stands for any text."""
    if shown.startswith(("{", "[")):
        assert_same_form(json.loads(output), json.loads(shown))
        return
    # The letters before … are the beginning of a value that differs each time.
    pattern = ".*".join(re.escape(part) for part in re.split("[A-Za-z0-9]*…", shown.strip()))
    assert re.fullmatch(pattern, output.strip(), re.DOTALL), output


def assert_same_form(answer: Any, shown: Any) -> None:
    """Compare the names of fields and the types of values, all the way down; an integer is a number."""
    if isinstance(shown, dict):
        assert answer.keys() == shown.keys()
        for name, value in shown.items():
            assert_same_form(answer[name], value)
    elif isinstance(shown, list):
        assert len(answer) == len(shown)
        for one, other in zip(answer, shown, strict=True):
            assert_same_form(one, other)
    else:
        assert type(answer) is type(shown) or {type(answer), type(shown)} <= {int, float}
