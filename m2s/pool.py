"""Worker processes that never outlive the command that started them."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import TypeVarTuple

Arguments = TypeVarTuple("Arguments")


def worker_pool(
    workers: int, prepare: Callable[[*Arguments], object] | None = None, arguments: tuple[*Arguments] | tuple[()] = ()
) -> ProcessPoolExecutor:
    """A pool of fresh interpreters, for PyTorch's threads do not survive a fork.

    Each ends as soon as its parent is gone, however that died; `ProcessPoolExecutor` alone would leave them waiting.

    Args:
        workers: how many processes.
        prepare: called once in each of them; can be pickled.
        arguments: what it is called with.
    """
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(prepare, arguments))


def _begin(prepare: Callable[..., object] | None, arguments: tuple[object, ...]) -> None:
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if prepare is not None:
        prepare(*arguments)


def _end_with(sentinel: int) -> None:
    """Outlive the parent by nothing: a killed one cannot say goodbye."""
    wait([sentinel])
    os._exit(1)
