"""Ground truth for a whole data set: the template fitted to every high-resolution map, one file a case.

Whatever stops it, the same command goes on: a case is skipped when its file was made from the same map by the same
recipe. What a map provokes concerns that map alone and becomes a row of `quality.csv` with the error's short name.
"""

import csv
import hashlib
import io
import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from m2s.data.fit_file import TABLE, Fit, fit_path, make_fit, read_fit, write_fit
from m2s.data.heart import Heart
from m2s.data.labelmaps import LabelMap, LabelMaps, Phase, case_name
from m2s.data.quality import Quality, mask_surface, measure
from m2s.data.registration import Recipe, register
from m2s.data.template import make_template
from m2s.pool import worker_pool
from m2s_runtime.atomic import sweep, write_text
from m2s_runtime.errors import CaseError, NoInputs, Stop, UnreadableVolume, UsageProblem
from m2s_runtime.grid import SPACING
from m2s_runtime.surface import Mesh

VERSION: Final = 1
"""Of the method: fits of another version are made again."""
_PHASES: Final[tuple[Phase, ...]] = ("ED", "ES")


@dataclass(frozen=True)
class Row:
    """A line of `quality.csv`; empty where it does not apply.

    Attributes:
        case: name of the heart and of its file.
        subject: number.
        phase: ED or ES.
        status: `ok` or `failed`.
        usable: `yes` when the fit may be trained on.
        error: short name of what went wrong.
        message: the error, or why the fit is not usable.
        quality: None when there is no fit.
        seconds: the fit took.
    """

    case: str
    subject: int
    phase: Phase
    status: str
    usable: str = "no"
    error: str = ""
    message: str = ""
    quality: Quality | None = None
    seconds: float = 0.0
    made: bool = False
    """Whether this run made the fit; not in the table."""


@dataclass(frozen=True)
class Task:
    """One map to fit the template to; can be sent to another process."""

    label_maps: str
    out: Path
    subject: int
    phase: Phase
    recipe: Recipe

    @property
    def case(self) -> str:
        """Name of the heart."""
        return case_name(self.subject, self.phase)


def tasks(label_maps: str, out: Path, recipe: Recipe, subjects: Sequence[int] | None = None) -> list[Task]:
    """The maps of a data set, by number, ED first.

    Raises:
        NoInputs: none in the folder.
        UsageProblem: a subject that was asked for is not there.
    """
    maps = LabelMaps(label_maps)
    if missing := sorted(set(subjects or ()) - set(maps.subjects)):
        raise UsageProblem(f"--subjects: {label_maps} has no {', '.join(map(str, missing))}")
    wanted = maps.subjects if subjects is None else sorted(set(subjects))
    return [Task(label_maps, out, s, p, recipe) for s in wanted for p in _PHASES if maps.file(s, p).is_file()]


def prepare(work: Sequence[Task], jobs: int, tell: Callable[[Row], None]) -> list[Row]:
    """Fit what is not there yet; writes `quality.csv` when it ends, however it ends.

    Args:
        work: of one output folder.
        jobs: processes.
        tell: called with every row as it comes.

    Returns:
        The rows in the order of `work`.

    Raises:
        NoInputs: nothing to do.
        OutputError: the folder cannot be written.
        Stop: a process was killed.
    """
    if not work:
        raise NoInputs("no high-resolution map to fit the template to: check --label-maps, --subjects and --limit")
    out = work[0].out
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    rows: dict[str, Row] = {}
    try:
        for row in _rows(work, jobs):
            rows[row.case] = row
            tell(row)
    finally:
        ordered = [rows[t.case] for t in work if t.case in rows]
        write_text(out / TABLE, _table(ordered, out))
    return ordered


def fit_label_map(label_map: LabelMap, recipe: Recipe, key: str = "") -> Fit:
    """The template fitted to one map.

    Raises:
        EmptyWall: the map has no wall.
    """
    begun = time.perf_counter()
    target = mask_surface(label_map.mask)
    mesh = register(make_template(), target, recipe)
    # What is written is what is measured.
    mesh = Mesh(mesh.vertices.astype(np.float32).astype(np.float64), mesh.faces)
    seconds = time.perf_counter() - begun
    quality = measure(mesh, target, label_map.mask)
    return make_fit(Heart(label_map.id, label_map.mask, mesh.vertices, mesh.faces, SPACING[2]), quality, key, seconds)


def _rows(work: Sequence[Task], jobs: int) -> Iterator[Row]:
    if jobs == 1:
        yield from map(_row, work)
        return
    with worker_pool(jobs) as pool:
        try:
            for future in as_completed([pool.submit(_row, task) for task in work]):
                yield future.result()
        except BrokenProcessPool as error:
            raise Stop("a process was killed: the same command goes on; give fewer --jobs if memory ran out") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _row(task: Task) -> Row:
    """Fit one map, or read the fit that is there; never raises for what the map provokes."""
    row = Row(task.case, task.subject, task.phase, "ok")
    try:
        fit, made = _fit(task)
    except Stop:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a map provokes concerns that map alone
        code = error.code if isinstance(error, CaseError) else "bug"
        text = str(error) if isinstance(error, CaseError) else traceback.format_exc(limit=-3)
        # A fit of an earlier state of the map must not pass for this one's.
        fit_path(task.out, task.case).unlink(missing_ok=True)
        return replace(row, status="failed", error=code, message=text)
    faults = fit.quality.faults
    return replace(row, usable="no" if faults else "yes", message=faults, quality=fit.quality, seconds=fit.seconds,
                   made=made)  # fmt: skip


def _fit(task: Task) -> tuple[Fit, bool]:
    """The fit, and whether it had to be made."""
    torch.set_num_threads(1)
    maps = LabelMaps(task.label_maps)
    key = _key(maps.file(task.subject, task.phase), task.recipe)
    try:
        known = read_fit(task.out, task.case)
        if known.key == key:
            return known, False
    except UsageProblem:
        pass  # none yet, or half of one from elsewhere
    fit = fit_label_map(maps.high(task.subject, task.phase), task.recipe, key)
    write_fit(task.out, fit)
    return fit, True


def _key(path: Path, recipe: Recipe) -> str:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UnreadableVolume(f"{path}: cannot be read ({error.strerror or error})") from error
    told = json.dumps({"version": VERSION} | asdict(recipe), sort_keys=True)
    return hashlib.sha256(hashlib.sha256(source).digest() + told.encode()).hexdigest()


def _table(rows: Sequence[Row], out: Path) -> str:
    """CSV text: the rows given, then those of an earlier table that this run did not come to."""
    plain = [f.name for f in fields(Row) if f.name not in ("quality", "made")]
    measured = [f.name for f in fields(Quality)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*plain, *measured], lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    for row in rows:
        quality = asdict(row.quality) if row.quality else {}
        writer.writerow({name: getattr(row, name) for name in plain} | quality | {"seconds": f"{row.seconds:.1f}"})
    known = {row.case for row in rows}
    earlier = (row for row in _earlier(out / TABLE) if row["case"] not in known)
    writer.writerows(row for row in earlier if row["status"] == "failed" or fit_path(out, row["case"]).is_file())
    return text.getvalue()


def _earlier(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("case") and row.get("status")]
