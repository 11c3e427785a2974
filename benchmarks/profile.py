"""Profile of a request: processor time of gateway and workers under load, by layer.

Owns the assignment of stack frames to layers. The processor time of a request is read from /proc, split in kernel and
user time; py-spy's samples of the threads that hold the GIL, taken in a second run, divide the user time. A sample
counts for the innermost frame that belongs to a layer. Native frames are sampled too: parsers, event loop and linear
algebra are written in C.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from benchmarks import stack
from benchmarks.bench import Bench, temporary_folder
from benchmarks.load import Call, Load, LoadError, run
from benchmarks.processes import StartError

SAMPLES_PER_S = 150
CONNECTIONS = 32
KERNEL = "kernel: sockets, files, switching"
OTHER = "interpreter and the rest"

# In the order in which a frame is compared with them. A name between slashes is a package or an extension module.
LAYERS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("JSON and msgpack (msgspec)", re.compile(r"msgspec|/json/|rfc8785")),
    ("Redis client (redis-py, hiredis)", re.compile(r"/redis/|hiredis")),
    ("RQ", re.compile(r"/rq/")),
    ("scikit-learn, numpy", re.compile(r"/sklearn/|/numpy|/scipy|openblas|libgomp|joblib|threadpoolctl")),
    ("HTTP (aiohttp)", re.compile(r"/aiohttp/|_http_parser|_http_writer|/yarl/|multidict|frozenlist|propcache")),
    ("keepfit", re.compile(r"(^|[/(])keepfit(_gateway|_workers)?/(\w+/)*\w+\.py")),
    ("event loop and sockets (uvloop, asyncio)", re.compile(r"uvloop|/asyncio/|selectors\.py|/socket\.py|_socket\.")),
)


def layer_of(frames: Iterable[str]) -> str:
    """Return the layer of a call stack, given from its outermost to its innermost frame.

    >>> layer_of(["run (asyncio/runners.py:190)", "predict (keepfit_gateway/app.py:116)", "memcpy (libc.so.6)"])
    'keepfit'
    """
    for frame in reversed(list(frames)):
        for layer, pattern in LAYERS:
            if pattern.search(frame):
                return layer
    return OTHER


def shares(raw: str) -> dict[str, float]:
    """Return the share of each layer in py-spy's raw samples: lines of frames, joined by semicolons, and a count.

    >>> shares("main (a.py:1);get (/x/redis/client.py:3) 3\\nmain (a.py:1) 1\\n")
    {'Redis client (redis-py, hiredis)': 0.75, 'interpreter and the rest': 0.25}
    """
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        frames, _, count = line.rpartition(" ")
        counts[layer_of(frames.split(";"))] += int(count)
    total = counts.total()
    return {layer: count / total for layer, count in counts.most_common()}


def cpu_s(pid: int) -> tuple[float, float]:
    """Return the user and kernel time of a process so far, in seconds."""
    # utime and stime are the 14th and 15th field; the name before them is in parentheses and may contain anything.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return int(fields[11]) * tick_s, int(fields[12]) * tick_s


def take_profile(bench: Bench) -> None:
    """Profile `predict` with fresh rows at 32 connections; store microseconds by process and layer."""
    try:
        with temporary_folder() as folder, stack.started(folder) as up:
            call = up.predict(stack.make_model(up))
            run(up.url, call, Load(CONNECTIONS, 1.0), next(bench.seeds))
            cpu = _measure_cpu_us(bench, up, call)
            samples = _sample_stacks(bench, up, call, folder)
    except (StartError, LoadError) as error:
        bench.results.fail("start", "profile", str(error))
        return
    bench.results.figures["profile"] = {
        name: divide_by_layer(user_us, kernel_us, samples.get(name, "")) for name, (user_us, kernel_us) in cpu.items()
    }


def divide_by_layer(user_us: float, kernel_us: float, raw: str) -> dict[str, float]:
    """Divide the user time of a process by layer; without samples, all of it goes to the rest.

    >>> divide_by_layer(8.0, 2.0, "main (a.py:1);get (/x/redis/client.py:3) 1\\n")
    {'Redis client (redis-py, hiredis)': 8.0, 'kernel: sockets, files, switching': 2.0}
    """
    return {layer: share * user_us for layer, share in (shares(raw) or {OTHER: 1.0}).items()} | {KERNEL: kernel_us}


def _measure_cpu_us(bench: Bench, up: stack.Stack, call: Call) -> dict[str, tuple[float, float]]:
    """Return the user and kernel microseconds per request of each process, without py-spy attached."""
    pids = {"gateway": [up.process_ids()["gateway"]], "workers": up.workers(), "Redis": [up.process_ids()["redis"]]}
    before = {pid: cpu_s(pid) for group in pids.values() for pid in group}
    seconds = max(bench.seconds, 3.0)
    sample = run(up.url, call, Load(CONNECTIONS, seconds), next(bench.seeds))
    if sample.failed:
        raise StartError(f"requests failed: {sample.errors}")
    micros = 1e6 / (sample.rate * seconds)
    after = {pid: cpu_s(pid) for pid in before}
    return {
        name: (
            sum(after[pid][0] - before[pid][0] for pid in group) * micros,
            sum(after[pid][1] - before[pid][1] for pid in group) * micros,
        )
        for name, group in pids.items()
    }


def _sample_stacks(bench: Bench, up: stack.Stack, call: Call, folder: Path) -> dict[str, str]:
    """Return py-spy's raw samples of the gateway and of all workers under load."""
    seconds = max(2, round(bench.seconds))
    pids = {up.process_ids()["gateway"]: "gateway"} | dict.fromkeys(up.workers(), "workers")
    spies = [_start_py_spy(pid, seconds, folder / f"{pid}.raw") for pid in pids]
    # The load lasts longer than the sampling, because attaching takes a moment.
    run(up.url, call, Load(CONNECTIONS, seconds + 3), next(bench.seeds))
    raw: dict[str, str] = {}
    for (pid, name), spy in zip(pids.items(), spies, strict=True):
        _, stderr = spy.communicate(timeout=60)
        path = folder / f"{pid}.raw"
        if not path.exists():
            raise StartError(f"py-spy: {stderr.decode().strip()[-300:]}")
        raw[name] = raw.get(name, "") + path.read_text()
    return raw


def _start_py_spy(pid: int, seconds: int, output: Path) -> "subprocess.Popen[bytes]":
    command = [
        str(Path(sys.executable).with_name("py-spy")), "record", "--native", "--gil", "--full-filenames",
        "--format", "raw", "--pid", str(pid), "--duration", str(seconds), "--rate", str(SAMPLES_PER_S),
        "--output", str(output),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
