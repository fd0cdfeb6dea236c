"""How a run scales over the nodes of a Ray cluster, and that the loss of a node loses no case.

    python benchmarks/ray_scaling.py --work runs/ray-scaling

The nodes are Ray's own node processes on this machine, with one CPU each; a case is a fixed time of sleep and a few ms
of work, so that the number of real cores matters little: what shows is what Ray, supervision and journal add. The rate
of a node is taken between its first case and its last; efficiency is the sum of these rates over the number of nodes
times the rate of a single node. `whole` is the same from the first case begun to the last one done, with workers that
come up late and nodes that have nothing left to do. Prints a Markdown table; exit code 1 when a bar is missed.
"""

import csv
import json
import os
import shutil
import sys
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import click
from many_cases import Instant, Named, make_inputs

from m2s_runtime.placement import Canonical
from m2s_runtime.result import Reconstruction

EFFICIENCY = 0.85
OBJECT_BYTES = 80_000_000


class _Sleeper(Instant):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def reconstruct(self, canonical: Canonical, noise_key: str, shared: Any = None) -> Reconstruction:  # noqa: ANN401
        """The ball, after a while; its flag names the process."""
        time.sleep(self._seconds)
        return replace(super().reconstruct(canonical, noise_key, shared), flags=(f"process-{os.getpid()}",))


@dataclass(frozen=True)
class FixedCost:
    """Stands for `task.open_reconstructor`; a case takes so many seconds."""

    seconds: float

    def __call__(self, _: object) -> tuple[Named, Named, Instant]:
        """Bundle, engine, reconstructor."""
        return Named(), Named(), _Sleeper(self.seconds)


@dataclass(frozen=True)
class Measured:
    """Cases done and cases that the table holds more than once, seconds, and cases a second of each node."""

    done: int
    twice: int
    failed: int
    seconds: float
    rates: list[float]


def measure(work: Path, nodes: int, cases: int, seconds: float, *, kill: bool = False) -> Measured:
    """One run over a cluster of so many nodes; with `kill`, one of them goes after a third of the cases."""
    from ray.cluster_utils import Cluster

    # So that the nodes can import this module.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    shutil.rmtree(work, ignore_errors=True)
    make_inputs(work / "in", cases)
    with ExitStack() as stack:
        head = {"num_cpus": 0, "object_store_memory": OBJECT_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(cluster.shutdown)
        members = [cluster.add_node(num_cpus=1, object_store_memory=OBJECT_BYTES) for _ in range(nodes)]
        if kill:
            threading.Thread(target=_strike, args=(cluster, members[0], work / "out", cases // 3), daemon=True).start()
        _run(work, str(cluster.address), seconds)
    return _read(work)


def _strike(cluster: Any, member: Any, out: Path, after: int) -> None:  # noqa: ANN401 - ray's types
    while sum(1 for _ in out.glob("*/*.json")) < after:
        time.sleep(0.05)
    cluster.remove_node(member, allow_graceful=False)


def _run(work: Path, address: str, seconds: float) -> None:
    from ray_scaling import FixedCost as Importable  # by a name that the nodes can import

    from m2s_runtime import session
    from m2s_runtime.options import Options, Setup

    session.open_reconstructor = Importable(seconds)  # pyright: ignore[reportAttributeAccessIssue]
    setup = Setup(cluster=f"ray={address}", verbosity=-1, log_json=work / "events.jsonl")
    made = session.Session([str(work / "in")], work / "out", Options(), setup)
    with redirect_stdout(StringIO()), made:
        made.open()
        made.finish(8 if made.run() else 0)


def _read(work: Path) -> Measured:
    events = [json.loads(line) for line in (work / "events.jsonl").read_text().splitlines()]
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["event"] == "case":
            times[event.get("flags", "")].append(datetime.fromisoformat(event["time"]).timestamp())
    begun = datetime.fromisoformat(events[0]["time"]).timestamp()
    with (work / "out" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    return Measured(
        sum(row["status"] == "ok" for row in rows),
        len(rows) - len({row["case"] for row in rows}),
        sum(row["status"] == "failed" for row in rows),
        max(map(max, times.values())) - begun,
        [(len(each) - 1) / (each[-1] - each[0]) for each in times.values() if len(each) > 1],
    )


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Scratch folder; emptied.")
@click.option("--nodes", default="2,4", show_default=True, help="Numbers of nodes.")
@click.option("--cases", default=20, show_default=True, help="Cases for each node.")
@click.option("--seconds", default=1.0, show_default=True, help="What a case costs.")
def main(work: Path, nodes: str, cases: int, seconds: float) -> None:
    """Measure."""
    work = work.absolute()
    counts = [int(word) for word in nodes.split(",")]
    click.echo("| nodes | killed | cases | ok | twice | s | s a case | efficiency | whole |\n" + "|---" * 9 + "|")
    one = measure(work, 1, cases, seconds)
    single, good = one.rates[0], _show(1, cases, one, one.rates[0])
    for count in counts:
        good &= _show(count, cases * count, measure(work, count, cases * count, seconds), single)
    for count in counts:
        killed = measure(work, count, cases * count, seconds, kill=True)
        good &= _show(count, cases * count, killed, single, kill=True)
    sys.exit(not good)


def _show(nodes: int, cases: int, found: Measured, single: float, *, kill: bool = False) -> bool:
    efficiency, whole = sum(found.rates) / nodes / single, found.done / found.seconds / nodes / single
    each = nodes / sum(found.rates)
    quality = f"{each:.3f} | {efficiency:.1%} | {whole:.1%}" if not kill else " | | "
    click.echo(f"| {nodes} | {int(kill)} | {cases} | {found.done} | {found.twice} | {found.seconds:.1f} | {quality} |")
    return found.done == cases and not found.twice and (kill or efficiency >= EFFICIENCY)


if __name__ == "__main__":
    main()
