"""The simulated setting of the paper: hearts of known shape, acquired as twelve slices that moved."""

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from m2s.baselines.method import FloatArray, Method
from m2s.data.heart import Heart
from m2s.data.simulate import Masks, draw_rng, simulate_stack
from m2s.evaluate.compare import paired_table, steps_table
from m2s.evaluate.hearts import Cohort, cuttable, subject
from m2s.evaluate.laws import motion_law
from m2s.evaluate.methods import spacing_of
from m2s.evaluate.scores import Row, Truth, score, score_shifts
from m2s_runtime.errors import CaseError
from m2s_runtime.grid import NOMINAL_STEP, UPSAMPLING


def noise_key(*parts: object) -> str:
    """Stands for the sha256 of the file that a simulated stack does not have: 64 hex digits."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def score_stack(
    heart: Heart, truth: Truth, methods: Mapping[str, Method], *, draw: int, seed: int = 0, law: str = "paper"
) -> Iterator[Row]:
    """Score methods on one stack of a heart; every method sees the same stack.

    Args:
        heart: what was acquired.
        truth: the same, prepared.
        methods: by name.
        draw: number of the stack.
        seed: of the motion.
        law: of the motion, see `motion_law`.

    Yields:
        One row a method. A stack that a method refuses gives a row with `error`.
    """
    stack = simulate_stack(heart.mask, draw_rng(heart.id, draw, seed), motion_law(law, heart.mask))
    facts: Row = {"subject": heart.id, "draw": draw}
    step_mm = heart.plane_mm * UPSAMPLING
    for row in score_methods(methods, stack.slices, step_mm, truth, stack.shifts):
        yield facts | row


def score_methods(
    methods: Mapping[str, Method], slices: Masks, step_mm: float, truth: Truth, shifts: FloatArray | None = None
) -> Iterator[Row]:
    """Score methods on one stack.

    Args:
        methods: by name.
        slices: (128, 128, 12) bool.
        step_mm: between them.
        truth: in the grid's frame.
        shifts: (12, 2) mm, how far slices moved; None where nobody knows.

    Yields:
        One row a method, with `error` where the method refuses the stack.
    """
    for name, method in methods.items():
        row: Row = {"method": name}
        started, worked = time.perf_counter(), time.process_time()
        try:
            prediction = method.predict(slices, spacing_of(step_mm))
        except CaseError as error:
            yield row | {"error": f"{error.code}: {error}"}
            continue
        took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
        row |= dict.fromkeys(took) if prediction.remembered else took
        known = {} if shifts is None else score_shifts(prediction.shifts, shifts, slices)
        yield row | score(prediction, truth) | known


@dataclass(frozen=True)
class SimulatedStack:
    """One stack of one heart of a cohort, as a unit of work."""

    cohort: Cohort
    row: int
    draw: int
    seed: int = 0
    law: str = "paper"
    step_mm: float = NOMINAL_STEP

    @property
    def name(self) -> str:
        """What it is."""
        return f"{self.cohort.name} {self.row}, {self.law}, {self.step_mm:g} mm, draw {self.draw}, {self.cohort.mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """Rows of `score_stack`; without figures where slices this close would have to be thinned out.

        Raises:
            NoInputs: the atlas is not there.
        """
        facts: Row = {"law": self.law, "step_mm": self.step_mm}
        if not cuttable(self.cohort, self.row, self.step_mm):
            yield from ({"subject": f"row {self.row}", "method": name, "thinned": True} | facts for name in methods)
            return
        found = subject(self.cohort, self.row, self.step_mm)
        facts |= {"phase": "ES" if self.row % 2 else "ED", "covered": found.truth.covered}
        scored = score_stack(found.heart, found.truth, methods, draw=self.draw, seed=self.seed, law=self.law)
        yield from (row | facts | {"subject": found.id} for row in scored)


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Lines of the table: each method over all hearts, then by phase; by slice step where there are several."""
    rows = [row for row in rows if not row.get("thinned")]
    steps = sorted({float(row["step_mm"] or 0) for row in rows if row.get("step_mm")})
    lines: dict[str, list[Row]] = {}
    for name in dict.fromkeys(str(row["method"]) for row in rows):
        mine = [row for row in rows if row["method"] == name]
        if len(steps) > 1:
            lines |= {f"{name}, {s:g} mm": [r for r in mine if r.get("step_mm") == s] for s in steps}
            continue
        lines[name] = mine
        phases = sorted({str(row.get("phase") or "") for row in mine} - {""})
        if len(phases) > 1:
            lines |= {f"{name}, {phase}": [r for r in mine if r.get("phase") == phase] for phase in phases}
    return lines


def summary(rows: list[Row]) -> str:
    """What `ours` gains over the others, and what other slice steps cost."""
    rows = [row for row in rows if not row.get("thinned")]
    steps = {row.get("step_mm") for row in rows}
    return steps_table(rows) if len(steps) > 1 else paired_table(rows)
