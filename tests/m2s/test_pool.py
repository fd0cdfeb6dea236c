"""Worker processes end with the command that started them, even when that is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from m2s.pool import worker_pool

SCRIPT = """
import os, time
from m2s.pool import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(8)}, flush=True)
        time.sleep(600)
"""


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_worker_outlives_a_killed_parent(tmp_path):
    script = tmp_path / "holds_a_pool.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers
        assert all(map(_alive, workers))
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while any(map(_alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_alive, workers))


def test_prepared_once_in_each_process():
    with worker_pool(1, os.putenv, ("M2S_POOL_TEST", "7")) as pool:
        assert pool.submit(os.system, 'test "$M2S_POOL_TEST" = 7').result() == 0


def test_an_error_in_a_worker_reaches_the_caller():
    with worker_pool(1) as pool, pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
