"""All processes that learn have the same string hashes, however they are started."""

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keepfit import hash_seed
from keepfit.backends import redis_keys
from keepfit.errors import SettingsError
from keepfit.local.stack import end_with_parent
from keepfit.model.serialization import unseal
from keepfit.objects import dump
from keepfit.recipe import uploads
from keepfit.recipe.recipe import Recipe, from_text, parse
from keepfit.rows.shaping import shape
from keepfit.settings import Settings, load
from tests.conftest import SIGNING_KEYS
from tests.factories import Workshop, dump_local
from tests.servers import wait_until

KEYS = "u1:" + "ab" * 32
TEXT = "a text"
# The object remembers the hash of a text in the process that learns.
SOURCE = f"""class Hashed:
    def partial_fit(self, X, y): self.learned = float(hash({TEXT!r}) % 2**31)
    def predict(self, X): return [self.learned] * len(X)
"""
RUN = "from keepfit_workers import supervisor; from keepfit.settings import load; supervisor.run(load())"
# What a process manager of one's own may do.
FORK = f"""import os, signal
child = os.fork()
if not child:
    {RUN}
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
os.waitpid(child, 0)
"""
LAUNCHERS = {
    "module": [sys.executable, "-m", "keepfit", "worker"],
    "code": [sys.executable, "-c", RUN],
    "isolated": [sys.executable, "-I", "-c", RUN],
    "fork": [sys.executable, "-c", FORK],
}


def environment(seed: str | None) -> dict[str, str]:
    """Return the environment of the tests with this hash seed; None: without one."""
    rest = {name: value for name, value in os.environ.items() if name != hash_seed.NAME}
    return rest if seed is None else {**rest, hash_seed.NAME: seed}


def hash_of(seed: str) -> float:
    """Return the hash that Python gives the text under a seed."""
    command = [sys.executable, "-c", f"print(hash({TEXT!r}) % 2**31)"]
    return float(subprocess.check_output(command, env=environment(seed)))


def recipe_of_hashed() -> Recipe:
    """Return the recipe of an object whose class no worker can import."""
    return parse({"object": dump_local(SOURCE, KEYS)}, uploads.upload_keyring(KEYS))


@contextmanager
def workers(settings: Settings, folder: Path, command: list[str], seed: str | None) -> Iterator[None]:
    """Run workers that a launcher starts, and stop them."""
    variables = {**settings.variables(), "KEEPFIT_UPLOAD_KEYS": KEYS, "KEEPFIT_WORKERS": "1"}
    with (folder / "worker.log").open("wb") as output:
        started = subprocess.Popen(
            command,
            env={**environment(seed), **variables},
            cwd=folder,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - as in `keepfit up`
        )
    try:
        yield
    finally:
        started.terminate()
        assert started.wait(60) == 0, (folder / "worker.log").read_text()


def wait_for_bundle(shop: Workshop, model_hash: str) -> bytes:
    """Wait until the model has learned; return its bundle."""
    wait_until(lambda: shop.redis.exists(redis_keys.bundle(model_hash)), "the rows to be learned")
    return shop.data(model_hash)


async def learned_hash(shop: Workshop) -> float:
    """Let the workers that run learn a row; return the hash that they learned."""
    model_hash = await shop.make(recipe_of_hashed())
    await shop.accept(model_hash, [[1.0]], [7.0])
    wait_for_bundle(shop, model_hash)
    (value,) = await shop.predict(model_hash, [[1.0]])
    return float(value)


@pytest.mark.parametrize("launcher", LAUNCHERS)
async def test_workers_of_any_launcher_have_the_same_hashes(
    shop: Workshop, settings: Settings, tmp_path: Path, launcher: str
) -> None:
    """Without PYTHONHASHSEED, and with the value `random`, workers learn with the hashes of the seed 0."""
    with workers(settings, tmp_path, LAUNCHERS[launcher], "random" if launcher == "module" else None):
        assert await learned_hash(shop) == hash_of("0")


@pytest.mark.parametrize("launcher", ["module", "code"])
async def test_the_seed_of_the_user_is_used(shop: Workshop, settings: Settings, tmp_path: Path, launcher: str) -> None:
    """With PYTHONHASHSEED=7 workers have the hashes of 7, also if the variable was set after Python had started."""
    command, seed = LAUNCHERS[launcher], "7"
    if launcher == "code":
        command, seed = [*command[:2], f"import os; os.environ['PYTHONHASHSEED'] = '7'; {RUN}"], "0"
    with workers(settings, tmp_path, command, seed):
        assert await learned_hash(shop) == hash_of("7") != hash_of("0")


RIVER_ROWS = """
import random
from river import tree

def rows():
    r = random.Random(1)
    for i in range(500):
        x = {f"c{j}": r.choice(["red", "green", "blue", "black", "white"]) for j in range(6)}
        x |= {f"n{j}": r.gauss(0, 1) for j in range(3)}
        yield x, "up" if (x["c0"] in ("red", "blue")) ^ (x["n0"] > 0.5) else r.choice(["down", "side"])

def model():
    return tree.HoeffdingAdaptiveTreeClassifier(seed=1, grace_period=50)
"""
RIVER_LOOP = f"""{RIVER_ROWS}
one = model()
for x, y in rows():
    one.learn_one(x, y)
print(sorted(one.predict_proba_one(x).items()))
"""


async def test_a_river_model_is_the_same_in_all_workers(shop: Workshop, settings: Settings, tmp_path: Path) -> None:
    """Two deployments without a seed learn, row by row, the model of a loop in a process with the seed 0."""

    @functools.cache
    def loop(seed: str) -> Any:
        return ast.literal_eval(
            subprocess.check_output([sys.executable, "-c", RIVER_LOOP], env=environment(seed)).decode()
        )

    # The order in which this tree adds is that of a set of texts.
    assert len({str(loop(seed)) for seed in "0123"}) > 1
    defined: dict[str, Any] = {}
    exec(RIVER_ROWS, defined)
    stream = list(defined["rows"]())
    kinds = {name: "number" if name.startswith("n") else "category" for name in stream[0][0]}
    recipe = parse({"object": dump(defined["model"](), KEYS), "features": kinds}, uploads.upload_keyring(KEYS))
    for _ in range(2):
        with workers(settings, tmp_path, LAUNCHERS["module"], None):
            model_hash = await shop.make(recipe)
            await shop.accept(model_hash, [x for x, _ in stream], [y for _, y in stream])
            data = wait_for_bundle(shop, model_hash)
        bundle = unseal(data, shop.keyring, from_text(recipe.text()), model_hash)[1]
        chances = bundle.confidences(shape(recipe, [stream[-1][0]], learning=False))
        assert dict(zip(chances["classes"], chances["probabilities"][0], strict=True)) == dict(loop("0"))


REPLAY = f"""
import sys
from keepfit.model import serialization
from keepfit.recipe import uploads
from keepfit.recipe.recipe import from_text
from keepfit.restore.replay_process import ReplayProcess
from keepfit.restore.replay_wire import ReplayTask
from keepfit.rows.shaping import shape
from keepfit.security import envelope
from keepfit.security.envelope import Header, Keyring

if __name__ == "__main__":
    recipe, keyring = from_text(sys.stdin.read()), Keyring.from_text({SIGNING_KEYS!r})
    process = ReplayProcess(keyring, uploads.upload_keyring({KEYS!r}))
    header = Header(envelope.BUNDLE, "ab" * 32, 1, 1, 1, 0, "", envelope.runtime())
    rows = shape(recipe, [[1.0]], [7.0], learning=True).encode()
    reply = process.learn(ReplayTask(recipe.text(), header, b"", [rows]))
    process.close()
    bundle = serialization.unseal(reply.data, keyring, recipe, header.hash)[1]
    print(bundle.predict(shape(recipe, [[1.0]], learning=False))[0])
"""


@pytest.mark.parametrize("seed", [None, "7"])
def test_logged_requests_are_replayed_with_the_hashes_of_the_workers(tmp_path: Path, seed: str | None) -> None:
    """The process that replays requests at a restore has the hashes of the seed, not those of the process around it."""
    script = tmp_path / "replay.py"
    script.write_text(REPLAY)
    text = recipe_of_hashed().text().encode()
    found = subprocess.check_output([sys.executable, str(script)], env=environment(seed), input=text)
    assert float(found) == hash_of(seed or "0")


@pytest.mark.parametrize("value", ["4294967296", "9" * 5000, "٣", "-1", "+1", "1_0", "abc", " 7"])
def test_a_seed_that_python_refuses_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    """A value that no process can start with is an error that says where it stands and what would be right."""
    monkeypatch.delenv(hash_seed.NAME, raising=False)
    file = tmp_path / "env"
    file.write_text(f"KEEPFIT_PORT=1\nPYTHONHASHSEED={value}\n")
    with pytest.raises(SettingsError, match=r"PYTHONHASHSEED in .*env must be a number from 0 to 4294967295, not '"):
        hash_seed.set_for_children(file)
    monkeypatch.setenv(hash_seed.NAME, value)
    with pytest.raises(SettingsError, match="PYTHONHASHSEED in the environment must be a number"):
        hash_seed.chosen(file)


@pytest.mark.parametrize(
    ("value", "seed"),
    [(None, "0"), ("", "0"), ("random", "0"), ("42", "42"), ("4294967295", "4294967295"), ("007", "7")],
)
def test_the_seed_is_a_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str | None, seed: str) -> None:
    """A value that several processes cannot share counts as none; a file is used where the environment has none."""
    monkeypatch.delenv(hash_seed.NAME, raising=False)
    if value is not None:
        monkeypatch.setenv(hash_seed.NAME, value)
    assert hash_seed.chosen() == hash_seed.chosen(tmp_path / "missing") == seed
    (tmp_path / "env").write_text("KEEPFIT_PORT=1\nPYTHONHASHSEED=9\n")
    assert hash_seed.chosen(tmp_path / "env") == (seed if seed != "0" else "9")


def test_a_process_that_ignores_the_seed_is_not_started_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process is what a restart made of it and still has other hashes, that is an error."""
    monkeypatch.setenv(hash_seed.NAME, "4294967295")
    monkeypatch.setenv(hash_seed.RESTARTED_PID, str(os.getpid()))
    with pytest.raises(SettingsError, match="ignores PYTHONHASHSEED=4294967295"):
        hash_seed.restart_unless_fixed([])


def test_settings_survive_as_variables(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is started with the variables of settings has the same settings."""
    changed = settings.model_copy(update={"workers": 7, "row_log_url": "file:///tmp/log"})
    for name, value in changed.variables().items():
        monkeypatch.setenv(name, value)
    assert load() == changed
