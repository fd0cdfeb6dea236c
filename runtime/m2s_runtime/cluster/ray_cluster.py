"""A connection to Ray: to the cluster that was asked for and to no other, or to one started on this machine."""

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from typing import Any, Final, TextIO

from m2s_runtime.engines.base import first_line
from m2s_runtime.errors import EngineError, UsageProblem

INSTALL: Final = 'pip install "mask2surface[ray]"'

_LOCAL: Final = "local"
_AUTO: Final = "auto"
_REACH_SECONDS: Final = 10.0
_OBJECT_BYTES: Final = 128 * 2**20
"""Objects are paths and rows; Ray would take a third of the memory."""


def chosen_address(address: str | None) -> str:
    """What `--cluster ray=ADDRESS` or RAY_ADDRESS names; `local` without either.

    Raises:
        UsageProblem: not an address that a run can use.
    """
    chosen = address or os.environ.get("RAY_ADDRESS", "").strip() or _LOCAL
    if chosen not in (_LOCAL, _AUTO) and not re.fullmatch(r"[^/:\s]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", chosen):
        raise UsageProblem(
            f"Ray address {chosen}: give HOST:PORT as `ray start` printed it, auto on a node of the cluster, or local; "
            "ray:// is not supported, run the command on a node"
        )
    return chosen


@contextmanager
def connected(address: str) -> Generator[Any]:
    """Ray, connected to `address` as `chosen_address` gave it, until the end of the context.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be reached.
    """
    # What `local` starts reports to nobody; a cluster that runs already has its own settings.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise EngineError(f"--cluster ray: Ray is not installed; {INSTALL}") from error
    if address not in (_LOCAL, _AUTO):
        _reach(address)
    with _results_only():
        try:
            _start(ray, address)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise EngineError(f"--cluster ray={address}: {first_line(error)}; {_HELP}") from error
        try:
            yield ray
        finally:
            with redirect_stdout(StringIO()):  # it prints what it held back
                ray.shutdown()


_HELP: Final = (
    "start it (`ray start --head`), or give another address, or ray=local for this machine alone; a cluster that asks "
    "for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here too"
)


def _start(ray: Any, address: str) -> None:  # noqa: ANN401 - ray's types are its own
    local = {"include_dashboard": False, "object_store_memory": _OBJECT_BYTES} if address == _LOCAL else {}
    with _same_handler(signal.SIGTERM):
        ray.init(address, log_to_driver=False, logging_level="ERROR", **local)


def _reach(address: str) -> None:
    """Refuse at once where nothing listens; Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"--cluster ray={address}: cannot be reached ({error}); {_HELP}") from error


@contextmanager
def _same_handler(number: int) -> Generator[None]:
    """Signals are handled afterwards as before; Ray puts in a handler of its own."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread, where Ray puts in none
            signal.signal(number, before)


class _OneThread:
    """A stream that takes what one thread writes and drops what any other does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return self._stream.write(text) if threading.get_ident() == self._thread else len(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


@contextmanager
def _results_only() -> Generator[None]:
    """Keep Ray's threads, which print what becomes of its nodes, from standard output: that is for results."""
    before = sys.stdout
    sys.stdout = _OneThread(before)  # pyright: ignore[reportAttributeAccessIssue] - a stream in all that is used
    try:
        yield
    finally:
        sys.stdout = before


def room(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> int:
    """How many workers fit on the nodes (`ray.nodes()`), were nobody else there."""
    needs = {"CPU": cpus, "GPU": gpus}
    offers = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(offer.get(name, 0) // need) for name, need in needs.items() if need) for offer in offers)
