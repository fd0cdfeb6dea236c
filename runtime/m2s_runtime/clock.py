"""Seconds of named stages."""

import time
from collections.abc import Generator
from contextlib import contextmanager


class Clock:
    """Adds up the seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        """Times the block."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
