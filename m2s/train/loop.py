"""The training loop, once for all stages: seeded batches, mixed precision, schedule, average, checkpoint, log.

A batch is a pure function of (seed, step), so a resumed run sees the same batches as an undisturbed one.
"""

import csv
import io
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from m2s.pool import worker_pool
from m2s.train.checkpoint import (
    Average,
    hardware,
    load_state,
    load_weights,
    optimiser_tensors,
    restore_optimiser,
    save_state,
    save_weights,
)
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import UsageProblem

Arrays = dict[str, np.ndarray[Any, Any]]
Batch = dict[str, Tensor]
Figures = dict[str, float]
Facts = dict[str, str]


class Source(Protocol):
    """Where batches come from; picklable, because another process makes them."""

    def batch(self, step: int, size: int) -> Arrays:
        """The arrays of one step, a pure function of the source's seed and the step."""
        ...


class Stage(Protocol):
    """One training: of a network of ours or of a competing method."""

    @property
    def name(self) -> str:
        """Of the stage; also of its folder."""
        ...

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def source(self) -> Source:
        """Where batches come from."""
        ...

    @property
    def monitor(self) -> str:
        """The validation figure to lower."""
        ...

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, Figures]:
        """What to minimise, and figures for the log."""
        ...

    def validate(self, model: nn.Module, folder: Path) -> Figures:
        """Figures on hearts never trained on; may leave a picture in `folder`."""
        ...

    def metadata(self) -> Facts:
        """What export has to know beside the weights."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How long and how to train.

    Attributes:
        steps: optimiser steps; with `minutes` the schedule follows whichever share is further.
        batch: samples a step.
        rate: Adam's learning rate at the start.
        schedule: `plateau` lowers it by 0.9 when validation stalls (the paper), `cosine` anneals it to zero,
            `hyperbolic` divides it by 1 at the start to 3 at the end (MCSR-ETE: 1 + 0.01 epochs, of 200).
        patience: validations without gain before `plateau` acts.
        average: decay of the moving average of the weights, 0 for none.
        validate_every: steps between validations, checkpoints included.
        minutes: wall-clock budget, 0 for none.
        seed: of initialisation and batches.
        clip: largest gradient norm.
        clock: what `minutes` counts; `cpu` is this process's CPU time, for comparisons on a shared machine.
    """

    steps: int
    batch: int
    rate: float
    schedule: Literal["plateau", "cosine", "hyperbolic"] = "plateau"
    patience: int = 10
    average: float = 0.0
    validate_every: int = 500
    minutes: float = 0.0
    seed: int = 0
    clip: float = 1.0
    clock: Literal["wall", "cpu"] = "wall"


@dataclass
class Progression:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    rate_factor: float = 1.0
    stalled: int = 0
    averaged: int = 0


def fit(stage: Stage, recipe: Recipe, folder: Path, *, device: str = "cpu", quiet: bool = False) -> Figures:
    """Trains a stage, going on from `folder/last.safetensors` if there is one.

    Leaves `best.safetensors` (the averaged weights of the best validation), `last.safetensors` (everything needed to
    go on), `log.csv` and the pictures of the validations. Returns the best validation's figures.

    Raises:
        UsageProblem: the training has diverged: a validation came out as NaN or infinity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(stage, recipe, folder, device)
    run.resume()
    with ExitStack() as stack:
        feed = stack.enter_context(_Feed(stage.source, recipe.batch, run.at.step))
        bar = stack.enter_context(_progress(quiet=quiet))
        task = bar.add_task(stage.name, total=recipe.steps, completed=run.at.step, figures="")
        over, unjudged = run.done(), run.is_unjudged()
        if over and unjudged:
            run.validate({})
        while not over:
            figures = run.step(feed.next())
            over = run.done()
            if run.at.step % recipe.validate_every == 0 or over:
                run.validate(figures)
            bar.update(task, completed=run.at.step, figures=_spell(figures))
    return run.best_figures()


def finished(folder: Path, recipe: Recipe) -> bool:
    """Whether a training in `folder` has come to the end of its recipe, and its best weights are there."""
    last = folder / "last.safetensors"
    if not last.is_file() or not (folder / "best.safetensors").is_file():
        return False
    at = Progression(**load_state(last)[1])
    return _share(recipe, at.step, at.seconds) >= 1.0


def judge_anew(folder: Path, judged_by: str) -> None:
    """Forgets the best validation so far where it was by others than `judged_by`, a fact of the stage."""
    best = folder / "best.safetensors"
    if best.is_file() and load_weights(best)[1].get("judged_by") != judged_by:
        _change(folder, {})


def put_in(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Puts weights of another training into a stopped one, which would go on with those that it had of it."""
    last = folder / "last.safetensors"
    if last.is_file():
        model = load_state(last)[0]["model"]
        if any(not model[name].equal(tensor) for name, tensor in weights.items()):
            _change(folder, weights)


def _change(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Rewrites where a training stopped: with these weights, and without a best validation."""
    tensors, metadata = load_state(folder / "last.safetensors")
    for held in {"model", "average"} & tensors.keys():
        tensors[held] |= weights
    save_state(folder / "last.safetensors", tensors, metadata | {"best": math.inf})


def _share(recipe: Recipe, steps: int, seconds: float) -> float:
    """How much of a recipe's budget is used, 0 to 1."""
    return max(steps / recipe.steps, seconds / 60 / recipe.minutes if recipe.minutes else 0.0)


class _Run:
    def __init__(self, stage: Stage, recipe: Recipe, folder: Path, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.stage, self.recipe, self.folder, self.device = stage, recipe, folder, device
        self.model = stage.model.to(device)
        self.optimiser = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], recipe.rate)
        self.average = Average(self.model, recipe.average) if recipe.average else None
        self.at = Progression()
        self.now = time.process_time if recipe.clock == "cpu" else time.monotonic
        self.began = self.now()

    def resume(self) -> None:
        last = self.folder / "last.safetensors"
        if not last.is_file():
            return
        tensors, metadata = load_state(last)
        self.model.load_state_dict(tensors["model"])
        restore_optimiser(self.optimiser, tensors.get("optimiser", {}))
        self.at = Progression(**metadata)
        if self.average:
            self.average.state = {name: t.to(self.device) for name, t in tensors["average"].items()}
            self.average.updates = self.at.averaged
        self.began = self.now() - self.at.seconds

    def done(self) -> bool:
        return self.share() >= 1.0

    def is_unjudged(self) -> bool:
        """Whether weights were put in, or are judged by other hearts, or the best ones are gone, since it stopped."""
        if not (self.folder / "best.safetensors").is_file():
            self.at.best = math.inf
        return math.isinf(self.at.best)

    def share(self) -> float:
        """How much of the budget is used, 0 to 1."""
        return _share(self.recipe, self.at.step, self.now() - self.began)

    def step(self, arrays: Arrays) -> Figures:
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        batch = {name: torch.from_numpy(a).to(self.device) for name, a in arrays.items()}
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            loss, figures = self.stage.loss(batch, self.at.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimiser.step()
        if self.average:
            self.average.update(self.model)
        self.at.step += 1
        return figures | {"loss": float(loss.detach())}

    def _rate(self) -> float:
        warm = min(1.0, (self.at.step + 1) / 50)
        if self.recipe.schedule == "plateau":
            return self.recipe.rate * self.at.rate_factor * warm
        if self.recipe.schedule == "hyperbolic":
            return self.recipe.rate * warm / (1 + 2 * self.share())
        return self.recipe.rate * warm * (0.5 * (1 + math.cos(math.pi * min(self.share(), 1.0))) + 0.002)

    def validate(self, figures: Figures) -> None:
        live = {k: v.clone() for k, v in self.model.state_dict().items()} if self.average else None
        if self.average:
            self.model.load_state_dict(self.average.state)
        self.model.eval()
        with torch.no_grad():
            found = self.stage.validate(self.model, self.folder)
        self.at.seconds = self.now() - self.began
        self._log(figures | found)
        judged = found[self.stage.monitor]
        if not math.isfinite(judged):
            raise UsageProblem(
                f"{self.folder}: diverged, {self.stage.monitor} is {judged} at step {self.at.step};"
                " the best weights stay. To begin again remove the folder and give a smaller --rate"
            )
        if judged < self.at.best:
            self.at.best, self.at.stalled = judged, 0
            save_weights(self.folder / "best.safetensors", self.model.state_dict(), self._metadata(found))
        else:
            self.at.stalled += 1
            if self.recipe.schedule == "plateau" and self.at.stalled >= self.recipe.patience:
                self.at.rate_factor, self.at.stalled = self.at.rate_factor * 0.9, 0
        if live is not None:
            self.model.load_state_dict(live)
        self._checkpoint()

    def _checkpoint(self) -> None:
        tensors: dict[str, Any] = {"model": self.model.state_dict(), "optimiser": optimiser_tensors(self.optimiser)}
        if self.average:
            tensors["average"] = self.average.state
            self.at.averaged = self.average.updates
        save_state(self.folder / "last.safetensors", tensors, dict(vars(self.at)))

    def _metadata(self, found: Figures) -> Facts:
        facts = {"stage": self.stage.name, "step": self.at.step, "seed": self.recipe.seed}
        facts |= {
            "seconds": round(self.at.seconds),
            "validation": json.dumps(found),
            "recipe": json.dumps(vars(self.recipe)),
            "hardware": hardware(self.device),
            "torch": str(torch.__version__),
        }
        return {name: str(value) for name, value in facts.items()} | self.stage.metadata()

    def _log(self, figures: Figures) -> None:
        path = self.folder / "log.csv"
        row = {"step": self.at.step, "seconds": round(self.at.seconds), "rate": f"{self._rate():.3g}"}
        row |= {name: f"{value:.5g}" for name, value in figures.items()}
        earlier = list(csv.DictReader(path.open(newline=""))) if path.is_file() else []
        # A run killed between log and checkpoint comes here again.
        rows: list[Mapping[str, object]] = [*(r for r in earlier if int(r["step"]) < self.at.step), row]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(name for r in rows for name in r)))
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(path, text.getvalue().encode())

    def best_figures(self) -> Figures:
        return json.loads(load_weights(self.folder / "best.safetensors")[1]["validation"])


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are."""
    return next(module.parameters()).device


class _Feed:
    """Makes batches ahead in another process, in order."""

    _AHEAD = 4

    def __init__(self, source: Source, size: int, start: int) -> None:
        self._pool = worker_pool(1, _adopt, (source,))
        self._size, self._next = size, start
        self._queue: list[Future[Arrays]] = []

    def __enter__(self) -> "_Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def next(self) -> Arrays:
        while len(self._queue) < self._AHEAD:
            self._queue.append(self._pool.submit(_make, self._next, self._size))
            self._next += 1
        return self._queue.pop(0).result()


_source: list[Source] = []


def _adopt(source: Source) -> None:
    torch.set_num_threads(1)
    _source[:] = [source]


def _make(step: int, size: int) -> Arrays:
    return _source[0].batch(step, size)


def _progress(*, quiet: bool) -> Progress:
    console = Console(stderr=True, quiet=quiet)
    return Progress(*Progress.get_default_columns(), TextColumn("{task.fields[figures]}"), console=console)


def _spell(figures: Figures) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in figures.items())
