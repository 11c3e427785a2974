"""The memory that the Python client takes to send one large data frame, as a multiple of the frame.

    python -m benchmarks.client_memory [URL] [MEGABYTES]

Needs a gateway (`keepfit up`) and the extra `frames`. The child process makes the frame, sends it with one call, and
prints its highest memory (VmHWM) above that before the frame was made.
"""

import sys
import time
import uuid
from pathlib import Path

COLUMNS = 20


def peak_bytes() -> int:
    """Return the highest memory of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Send the frame, and print what it took."""
    import numpy as np  # noqa: PLC0415 - counted in what the process has before
    import pandas as pd  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    from keepfit import Client  # noqa: PLC0415

    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    size = int(float(sys.argv[2] if len(sys.argv) > 2 else 450) * 1e6)
    client = Client(url, timeout_s=600)
    features = {f"x{number}": "number" for number in range(COLUMNS)}
    metadata = {"type": "benchmark", "run": uuid.uuid4().hex}
    model = client.create(metadata, estimator="SGDRegressor", features=features, updates="merged")
    small = pd.DataFrame(np.ones((1000, COLUMNS + 1)), columns=[*features, "target"])
    # What each library loads with its first call is not the frame's.
    model.partial_fit(small, target="target", wait=True)
    pa.array([1.0])
    before = peak_bytes()
    rows = size // (8 * (COLUMNS + 1))
    frame = pd.DataFrame({name: np.random.default_rng(0).random(rows) for name in [*features, "target"]}, copy=False)
    made = peak_bytes()
    started = time.perf_counter()
    answer = model.partial_fit(frame, target="target", wait=True, progress=False)
    seconds = time.perf_counter() - started
    taken = peak_bytes() - before
    frame_bytes = int(frame.memory_usage(deep=True).sum())
    print(  # noqa: T201 - the result
        f"{frame_bytes / 1e6:.0f} MB, {answer['accepted']} rows in {seconds:.1f} s: the process took "
        f"{taken / frame_bytes:.2f} times the frame, {(made - before) / frame_bytes:.2f} of that to make it; "
        f"rows_seen {answer.get('rows_seen')}"
    )
    model.delete()


if __name__ == "__main__":
    main()
