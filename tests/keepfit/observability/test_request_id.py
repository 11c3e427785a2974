"""Request ids differ, whichever process mints them."""

import os

from keepfit.observability import request_id


def test_a_fork_mints_ids_of_its_own() -> None:
    """Ids of a process and of its forks are all different."""
    minted = {request_id.mint() for _ in range(3)}
    for _ in range(2):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writing, " ".join(request_id.mint() for _ in range(3)).encode())
            os._exit(0)
        os.close(writing)
        os.waitpid(pid, 0)
        minted |= set(os.read(reading, 1000).decode().split())
        os.close(reading)
    assert len(minted) == 9
