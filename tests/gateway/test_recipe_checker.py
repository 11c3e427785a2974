"""The checker process: its verdicts, its start and end, and the memory that the gateway saves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sklearn.linear_model import SGDRegressor

from keepfit.errors import KeepfitError, MalformedError, UnavailableError
from keepfit.model import recipe_check
from keepfit.objects import dump
from keepfit_gateway import recipe_checker
from keepfit_gateway.recipe_checker import CheckerProcess

GOOD = b'{"estimator": "SGDRegressor"}'
VALID = '{"encoding": null}\n'


@pytest.fixture
def checker() -> Iterator[CheckerProcess]:
    """Return a checker process of the test's own."""
    own = CheckerProcess()
    yield own
    own.close()


def ended(pid: int) -> bool:
    """Return whether the process `pid` does not exist any more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "document",
    [
        {"estimator": "SGDRegressor"},
        {"estimator": "SGDClassifier", "params": {"alpha": 1}, "classes": ["né", "☃"], "scaler": "StandardScaler"},
        {"estimator": "PassiveAggressiveRegressor", "params": {"C": 0.1 + 0.2}, "features": {"b": "number"}},
        {"estimator": "SGDRegresor"},
        {"estimator": "SGDRegressor", "params": {"alpha": -1}},
        {"estimator": "SGDRegressor", "params": {"alpha": 2**70}},
        {"estimator": "SGDRegressor", "params": {"alpha": float("inf")}},
        {"estimator": "MLPRegressor", "params": {"hidden_layer_sizes": []}},
        {"estimator": "SGDClassifier"},
        {"scaler": 1},
        ["SGDRegressor"],
        None,
    ],
)  # fmt: skip
def test_a_verdict_equals_that_of_the_library(document: Any) -> None:
    """A recipe is accepted or refused, with the same message, as by a check in this process."""
    outcomes = []
    for check in (recipe_check.check, recipe_checker.check_blocking):
        try:
            outcomes.append(check(document))
        except KeepfitError as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


def test_a_too_deeply_nested_recipe_is_refused() -> None:
    """A recipe nested deeper than Python can serialize is refused."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(MalformedError, match="nested too deeply"):
        recipe_checker.check_blocking({"estimator": "SGDRegressor", "params": {"alpha": deep}})


def test_checks_share_a_process_until_it_is_idle(checker: CheckerProcess) -> None:
    """The first check starts a process, the next ones use it, and it ends after the idle time."""
    assert checker.pid is None
    assert checker.ask(GOOD) == VALID
    first = checker.pid
    assert first is not None
    assert "there is no" in checker.ask(b'{"estimator": "SGDRegressor", "params": {"alfa": 1}}')
    assert checker.pid == first
    checker._idle_s = 0.05
    checker.ask(GOOD)
    deadline = time.monotonic() + 30
    while not ended(first):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert checker.ask(GOOD) == VALID


def test_a_killed_process_is_replaced(checker: CheckerProcess) -> None:
    """A check whose process is dead is made by a new process."""
    checker.ask(GOOD)
    first = checker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert checker.ask(GOOD) == VALID
    assert checker.pid != first


def test_a_process_that_does_not_answer_is_ended(checker: CheckerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """If two processes do not answer in time, the error asks to try again, and no process is left."""
    monkeypatch.setattr(recipe_checker, "ANSWER_S_MAX", 0.05)
    pids: list[int] = []
    start = subprocess.Popen

    def sleeping(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = start(["/bin/sleep", "60"], **options)
        pids.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", sleeping)
    with pytest.raises(UnavailableError, match="try again"):
        checker.ask(GOOD)
    assert len(pids) == 2
    assert all(map(ended, pids))


def test_the_process_ends_with_its_gateway() -> None:
    """A gateway that is killed leaves no checker process."""
    script = "import keepfit_gateway.recipe_checker as c;"
    script += f"c.CHECKER.ask({GOOD!r}); print(c.CHECKER.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        gateway.kill()
    deadline = time.monotonic() + 30
    while not ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_gateway_is_free_of_scikit_learn() -> None:
    """Importing the gateway imports neither scikit-learn nor the row log's packages: they need most memory."""
    heavy = {"sklearn", "scipy", "pandas", "pyarrow", "fsspec", "botocore"}
    script = f"import sys, keepfit_gateway.app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_object_is_checked_without_unpickling() -> None:
    """Checking a recipe with an object imports no module that could unpickle it or build an estimator."""
    text = dump(SGDRegressor(), "u1:" + "ab" * 32)
    document = {"object": text, "features": {"a": "number"}, "scaler": "StandardScaler"}
    script = (
        "import json, sys; from keepfit_gateway.recipe_checker import CHECKER, check_blocking;"
        "from keepfit.recipe.uploads import upload_keyring;"
        f"recipe = check_blocking(json.loads({json.dumps(document)!r}), upload_keyring('u1:' + 'ab' * 32));"
        "loaded = {'sklearn', 'cloudpickle', 'keepfit.model.pickling', 'keepfit.model.bundle'} & set(sys.modules);"
        "print(recipe.name, recipe.entry.kind, CHECKER.pid, sorted(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "SGDRegressor regressor None []", done.stderr
