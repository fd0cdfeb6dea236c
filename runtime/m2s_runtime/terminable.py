"""Batch systems send SIGTERM before they kill: time to end in order."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

from m2s_runtime.errors import TERMINATED


@contextmanager
def terminable() -> Generator[None]:
    """Let SIGTERM end what is under way as an exception does: `SystemExit` with code 143."""

    def stop(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: signals are the caller's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
