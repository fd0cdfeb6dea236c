"""Libraries that speak to the user without being asked."""

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager

from m2s_runtime.text import clean


@contextmanager
def quiet_libraries(say: Callable[[str], None]) -> Generator[None]:
    """One line, without source code, for each distinct warning of a library."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"m2s-run: warning: {clean(str(message))}")

    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
