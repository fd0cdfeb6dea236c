"""How many cases a process has under way at a time, and who may begin the next one."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Seats:
    """A case needs a seat to be under way, so that what is read and not yet written is bounded.

    Attributes:
        count: seats there are.
        changed: told whenever a seat is taken or left; `taken` stands still for whoever holds it.
    """

    def __init__(self, count: int) -> None:
        """Have `count` seats, all of them free."""
        self.count, self.changed = count, threading.Condition()
        self._free, self._insiders = count, 0

    @property
    def taken(self) -> int:
        """Cases under way."""
        return self.count - self._free

    @contextmanager
    def seat(self) -> Generator[None]:
        """Hold a seat for a source that is to be opened."""
        self._take(insider=False)
        try:
            yield
        finally:
            self._leave()

    def spread(self, work: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
        """What `work` makes of each item, as it comes, in as many seats as are free and threads of their own.

        The caller holds a seat, which is lent out meanwhile. The items of sources that are open already go before
        sources that are not, so that few of them are open at a time. With a single seat or item all happens here.
        """
        if self.count == 1 or len(items) <= 1:
            yield from map(work, items)
            return
        self._leave(staying=1)
        try:
            with ThreadPoolExecutor(self.count) as pool:
                yield from self._as_they_come(pool, work, items)
        finally:
            self._take(insider=True)

    def _as_they_come(self, pool: ThreadPoolExecutor, work: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
        under_way: set[Future[U]] = set()
        try:
            for item in items:
                self._take(insider=True)
                under_way.add(pool.submit(self._seated, work, item))
                done = {future for future in under_way if future.done()}
                under_way -= done
                yield from (future.result() for future in done)
        finally:
            self._leave(0, staying=-1)
        yield from (future.result() for future in as_completed(under_way))

    def _seated(self, work: Callable[[T], U], item: T) -> U:
        try:
            return work(item)
        finally:
            self._leave()

    def _take(self, *, insider: bool) -> None:
        with self.changed:
            self._insiders += insider
            self.changed.wait_for(lambda: self._free > 0 and (insider or not self._insiders))
            self._insiders -= insider
            self._free -= 1
            self.changed.notify_all()

    def _leave(self, seats: int = 1, *, staying: int = 0) -> None:
        """Give seats back; `staying` sources more have items left, and go before others."""
        with self.changed:
            self._free += seats
            self._insiders += staying
            self.changed.notify_all()
