"""Doing an evaluation: units of work, over several processes, each row on disk as soon as it is there."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

from m2s.baselines.method import Method
from m2s.baselines.registry import BASELINES
from m2s.evaluate.methods import classical_method
from m2s.evaluate.names import NETWORK_METHODS, is_plugin
from m2s.evaluate.networks import ModelOptions, network_methods
from m2s.evaluate.plugins import open_plugin, plugin_digest
from m2s.evaluate.rows import ITEM, RUN, RowFile
from m2s.evaluate.scores import Row
from m2s.evaluate.trained import open_trained, trained
from m2s.pool import worker_pool
from m2s_runtime.errors import CaseError, UsageProblem

EVERY_METHOD = "-"
"""In the column `method`: what was wrong concerns every method alike."""


T = TypeVar("T")


def spaced(items: Sequence[T], count: int) -> list[T]:
    """`count` items from the first to the last, as evenly as it goes; all of them if there are no more."""
    last, gaps = len(items) - 1, max(count - 1, 1)
    return [items[round(i * last / gaps)] for i in range(count)] if count < len(items) else list(items)


class Item(Protocol):
    """A unit of work that another process can be sent."""

    @property
    def name(self) -> str:
        """What it is, unique within a run."""
        ...

    def rows(self, methods: Mapping[str, Method]) -> Iterable[Row]:
        """One row a method, in the column `method`, or one for all (`EVERY_METHOD`)."""
        ...


@dataclass(frozen=True)
class Setup:
    """Methods by name and the options they are made with.

    Attributes:
        names: of `METHODS`, plug-ins, or names that `also` gives.
        options: of the bundle; seed, device and threads are everybody's.
        baselines: run that the competing methods were trained in.
        also: name and bundle of further methods `ours`.
    """

    names: tuple[str, ...] = ("ours",)
    options: ModelOptions = field(default_factory=ModelOptions)
    baselines: Path | None = None
    also: tuple[tuple[str, str], ...] = ()

    def methods(self) -> dict[str, Method]:
        """Build what was asked for; a bundle is opened only when a network of it is asked for.

        Raises:
            BundleError: the bundle is missing or altered.
            EngineError: the engine or device cannot be had.
            NoInputs: a competing method was not trained in the run.
            UsageProblem: no such method.
        """
        found = network_methods([n for n in self.names if n in NETWORK_METHODS], self.options)
        for label, bundle in self.also:
            if label in self.names:
                found[label] = network_methods(["ours"], replace(self.options, model=bundle))["ours"]
        # First the one whose run the other networks share: its time is then that of the whole method.
        ordered = sorted(self.names, key=lambda name: name != "ours")
        return {n: found[n] if n in found else self._other(n) for n in ordered}

    def fingerprints(self) -> dict[str, str]:
        """What decides a method's figures besides the item, in 12 hex digits a method; errors as `methods`."""
        return {name: _digest({"seed": self.options.seed} | self._facts(name)) for name in self.names}

    def run_of(self, name: str) -> Path:
        """The run that a competing method was trained in.

        Raises:
            UsageProblem: none was given.
        """
        if self.baselines is None:
            raise UsageProblem(f"--method {name} was trained: give --baselines RUN, where m2s-train baseline put it")
        return self.baselines

    def _facts(self, name: str) -> dict[str, object]:
        from m2s_runtime.bundle import load_bundle
        from m2s_runtime.versions import version

        bundles, o = dict(self.also), self.options
        if name in NETWORK_METHODS or name in bundles:
            bundle = load_bundle(bundles.get(name, o.model)).sha256
            # What is made of the networks' answers changes with the code.
            sampled = {"steps": o.steps, "samples": o.samples, "refine": o.refine}
            ended = {"base_limit": o.base_limit} if name == "ours" or name in bundles else {}
            return {"mask2surface": version(), "bundle": bundle, **sampled, **ended}
        if name in BASELINES:
            return {"weights": trained(name, self.run_of(name)).digest}
        return {"source": plugin_digest(name)} if is_plugin(name) else {}

    def _other(self, name: str) -> Method:
        if name in BASELINES:
            return open_trained(name, self.run_of(name), self.options.device, self.options.threads)
        return open_plugin(name) if is_plugin(name) else classical_method(name)


def evaluate(items: Sequence[Item], setup: Setup, table: RowFile, jobs: int = 1) -> Iterator[list[Row]]:
    """Do what is not in the table yet.

    Args:
        items: units of work with distinct names.
        setup: methods.
        table: where rows are added as they come; those that are there already are not done again.
        jobs: processes.

    Yields:
        For each item its rows, those of the table included; items in any order, methods in that of the setup.

    Raises:
        UsageProblem: the table holds rows of these items made with another model or other options.
        M2SError: what ends every item alike, such as a bundle that is not there.
    """
    marks = setup.fingerprints()
    known = _known(table, marks, {item.name for item in items})
    tasks: list[tuple[Item, tuple[str, ...]]] = []
    done = {name: {str(row["method"]) for row in rows} for name, rows in known.items()}
    for item in items:
        there = done.setdefault(item.name, set())
        missing = () if EVERY_METHOD in there else tuple(n for n in setup.names if n not in there)
        if missing:
            tasks.append((item, missing))
        else:
            yield known[item.name]
    for item, rows in _done(tasks, setup, jobs):
        new = [row for row in rows if row["method"] not in done[item.name]]
        marked: list[Row] = [{ITEM: item.name, RUN: marks.get(str(r["method"]), "")} | r for r in new]
        table.add(marked)
        yield known.get(item.name, []) + marked


def _known(table: RowFile, marks: dict[str, str], names: set[str]) -> dict[str, list[Row]]:
    """Rows of these items, without those of methods that were not asked for, by item."""
    known: dict[str, list[Row]] = {}
    for row in table.rows:
        method, name = str(row.get("method")), str(row[ITEM])
        if name not in names or (row[RUN] and method not in marks):
            continue
        if method in marks and row[RUN] != marks[method]:
            raise UsageProblem(
                f"--out holds rows of {name} that another model or other options gave for {method}:"
                " choose another file, or take the rows of that method out of this one"
            )
        known.setdefault(name, []).append(row)
    return known


def _done(tasks: Sequence[tuple[Item, tuple[str, ...]]], setup: Setup, jobs: int) -> Iterator[tuple[Item, list[Row]]]:
    if jobs == 1 or len(tasks) < 2:
        for item, names in tasks:
            yield item, _rows(item, names, setup)
        return
    with worker_pool(jobs) as pool:
        waiting: dict[Future[list[Row]], Item] = {pool.submit(_rows, *task, setup): task[0] for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _rows(item: Item, names: tuple[str, ...], setup: Setup) -> list[Row]:
    methods = _methods(setup)
    try:
        return list(item.rows({n: m for n, m in methods.items() if n in names}))
    except CaseError as error:
        return [{"subject": item.name, "method": EVERY_METHOD, "error": f"{error.code}: {error}"}]


@cache
def _methods(setup: Setup) -> dict[str, Method]:
    """One engine a process."""
    return setup.methods()


def _digest(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
