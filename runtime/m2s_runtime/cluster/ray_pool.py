"""Sources done by a Ray cluster. Ray finds the room for each worker; the journal knows what is done.

A worker has one source at a time, so nothing piles up, and with a worker or node that is lost goes one source, which
another worker then takes over. What a case does to its process is dealt with on the node, as in a local run.
"""

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from m2s_runtime.cluster.node import Node, Report
from m2s_runtime.cluster.ray_cluster import chosen_address, connected, room
from m2s_runtime.errors import EngineError, Stop, UsageProblem
from m2s_runtime.inputs import Source
from m2s_runtime.outcome import Outcome
from m2s_runtime.record import Row
from m2s_runtime.task import CRASHED, Bound, TaskSpec, lost

_TRIES: Final = 3
"""Workers that one source, or the loading of the bundle, may be lost with."""

_TELL_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 1800.0


@dataclass
class _Lane:
    """A worker somewhere in the cluster, the call that it has not answered yet, and the source that it is about."""

    worker: Any
    call: Any
    source: Source | None = None
    open: bool = False
    losses: int = 0


class RayPool:
    """A `workers.Pool` on a Ray cluster."""

    def __init__(
        self,
        spec: TaskSpec,
        address: str | None,
        jobs: int | None,
        timeout: float,
        sources: int,
        say: Callable[[str], None],
    ) -> None:
        """Prepare; for the arguments see `open_cluster`."""
        if spec.device not in ("auto", "cpu", "cuda"):
            raise UsageProblem(f"--device {spec.device}: Ray hands out the GPUs; give cuda, cpu or auto")
        if jobs == 0:
            raise UsageProblem("--jobs 0: a cluster has at least one worker; leave it out for as many as there is room")
        self._address = chosen_address(address)
        self._out, self._spec = spec.out, _anywhere(spec)
        self._jobs, self._timeout, self._most, self._say = jobs, timeout, max(sources, 1), say
        self._probe = None if spec.dry_run else self._spec.out / f".shared-{uuid.uuid4().hex}"
        self._context = ExitStack()
        self._lanes: list[_Lane] = []
        self._waiting: deque[Source] = deque()
        self._losses: Counter[str] = Counter()
        self._bound: Bound | None = None

    def open(self) -> Bound:
        """See `Pool.open`; returns with the first worker, the others join as they come up."""
        self._ray = self._context.enter_context(connected(self._address))
        self._prepare()
        if self._address == "local":
            self._say("Ray runs on this machine alone; name a cluster with --cluster ray=ADDRESS or RAY_ADDRESS")
        while self._bound is None:
            for _ in self._hear():  # nothing was asked of them yet
                pass
        return self._bound

    def outcomes(self, sources: Iterable[Source]) -> Iterator[Outcome | None]:
        """See `Pool.outcomes`."""
        self._waiting.extend(sources)
        if self._probe:
            self._probe.touch()
        while True:
            for lane in self._lanes:
                if lane.open and not lane.source and self._waiting:
                    lane.source = self._waiting.popleft()
                    lane.call = lane.worker.run.remote(_placed(lane.source))
            if not self._waiting and not any(lane.source for lane in self._lanes):
                return
            yield from self._hear()

    def close(self) -> None:
        """See `Pool.close`."""
        for lane in self._lanes:
            self._ray.kill(lane.worker)
        self._lanes = []
        self._context.close()
        if self._probe:
            self._probe.unlink(missing_ok=True)

    def _prepare(self) -> None:
        """Ask for the workers."""
        nodes, cpus = self._ray.nodes(), self._spec.threads
        gpus = self._spec.device == "cuda" or (self._spec.device == "auto" and room(nodes, cpus, 1) > 0)
        fitting = room(nodes, cpus, gpus)
        if not fitting:
            need = f"{cpus} CPU(s)" + (" and a GPU" if gpus else "")
            raise self._trouble(f"no node has {need}; add nodes, or see --device and --threads")
        # Ray lets a worker see its own GPU only, which is number 0 to it.
        device = {"cuda": "cuda:0", "auto": "auto"}[self._spec.device] if gpus else "cpu"
        spec = self._ray.put(replace(self._spec, device=device))
        kind = self._ray.remote(Node).options(num_cpus=cpus, num_gpus=int(gpus), scheduling_strategy="SPREAD")
        self._start = lambda: kind.remote(spec, self._timeout, self._probe)
        for _ in range(min(self._jobs or fitting, self._most)):
            worker = self._start()
            self._lanes.append(_Lane(worker, worker.open.remote()))

    def _hear(self) -> Iterator[Outcome | None]:
        """Wait for an answer, and take in all there are."""
        lanes = {lane.call: lane for lane in self._lanes if lane.source or not lane.open}
        for call in self._answers(list(lanes)):
            lane = lanes[call]
            try:
                answer = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Stop) else RuntimeError(str(error)) from None
            except self._ray.exceptions.RayError as error:
                yield from self._lose(lane, error)
                continue
            if isinstance(answer, Report):
                yield from self._finish(lane, answer)
            else:
                self._join(lane, *answer)

    def _answers(self, calls: list[Any]) -> list[Any]:
        """The calls that are answered, at least one; EngineError when the cluster has no room for long."""
        since = time.monotonic()
        while True:
            ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
            ready = ready or self._ray.wait(calls, timeout=_TELL_SECONDS)[0]
            if ready:
                return ready
            if any(lane.open for lane in self._lanes):
                since = time.monotonic()
            elif time.monotonic() - since > _PATIENCE_SECONDS:
                raise self._trouble(f"no worker came up in {_PATIENCE_SECONDS / 60:g} minutes; add nodes")
            else:
                self._say("waiting for a worker: Ray has found no room for one yet, or it is loading")

    def _join(self, lane: _Lane, node: str, bound: Bound) -> None:
        lane.open, lane.losses = True, 0
        first = self._bound = self._bound or bound
        if (bound.fingerprint, bound.bundle["sha256"]) != (first.fingerprint, first.bundle["sha256"]):
            raise EngineError(
                f"node {node} does not agree with the others: bundle {bound.bundle['name']}, "
                f"{bound.engine['description']}, {bound.kernel} distance kernel; install the same versions on all nodes"
            )

    def _finish(self, lane: _Lane, report: Report) -> Iterator[Outcome | None]:
        lane.source = None
        for note in report.notes:
            self._say(note)
        for outcome in report.outcomes:
            paths = tuple(self._out / path.relative_to(self._spec.out) for path in outcome.paths)
            yield replace(outcome, paths=paths)
        yield None

    def _lose(self, lane: _Lane, error: Exception) -> Iterator[Outcome | None]:
        """Put another worker in place of a lost one, and its source back into the queue, unless it lost several."""
        source, reason = lane.source, (str(error).strip() or type(error).__name__).splitlines()[-1]
        lane.losses += 1
        if lane.losses >= _TRIES and not source:
            raise self._trouble(f"{_TRIES} workers were lost one by one while they loaded ({reason})")
        self._ray.kill(lane.worker)  # it may be out of reach only, and must not write any more
        lane.worker, lane.source, lane.open = self._start(), None, False
        lane.call = lane.worker.open.remote()
        if source is None or self._bound is None:
            return
        self._losses[source.case] += 1
        if self._losses[source.case] < _TRIES:
            self._say(f"{source.case}: its worker was lost; another one takes over")
            self._waiting.appendleft(source)
            return
        row, message = Row(case=source.case, input=source.relative), f"{_TRIES} workers were lost with it, one by one"
        yield lost(self._bound.journal(self._out), row, CRASHED, message, dry_run=self._spec.dry_run)
        yield None

    def _trouble(self, message: str) -> EngineError:
        return EngineError(f"--cluster ray={self._address}: {message}")


def _anywhere(spec: TaskSpec) -> TaskSpec:
    """The same task from any current folder, with a number of threads that does not depend on the node."""
    model = str(Path(spec.model).absolute()) if spec.model and Path(spec.model).exists() else spec.model
    return replace(
        spec,
        out=spec.out.absolute(),
        sources=tuple(map(_placed, spec.sources)),
        engine_dir=spec.engine_dir and spec.engine_dir.absolute(),
        model=model,
        threads=spec.threads or 1,
        batch_size=spec.batch_size or 1,  # a worker has one source at a time
    )


def _placed(source: Source) -> Source:
    return replace(source, path=source.path.absolute())
