"""Children of a supervisor are stopped by a signal that comes early, and end with the supervisor."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import servers

STOPPED = """
import os, signal, time
from keepfit import child_processes
stop = child_processes.StopRequest()
stop.listen()
def run():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        time.sleep(0.01)
for _ in range(20):
    child = child_processes.fork("child", run)
    child.terminate()
    assert stop.wait([child.sentinel], 60) == [child.sentinel] and not stop.made
    child.join()
    assert child.exitcode == 7, child.exitcode
os.kill(os.getpid(), signal.SIGINT)
stop.wait([], None)
assert stop.made
"""
KILLED = """
import os, sys, time
from keepfit import child_processes
supervisor = os.getpid()
def run():
    child_processes.end_with(supervisor)
    print(os.getpid(), flush=True)
    time.sleep(1000)
child_processes.fork("child", run).join()
"""


def test_an_early_stop_is_not_lost() -> None:
    """A child that is sent SIGTERM right after its fork gets it once it has a handler; the supervisor is not woken."""
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_child_does_not_outlive_its_supervisor() -> None:
    """A child is killed when its supervisor is."""
    supervisor = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        os.kill(supervisor.pid, signal.SIGKILL)
    servers.wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the child")
