"""The simulated setting of the paper: hearts of known shape, acquired as twelve slices that moved."""

import hashlib
import time
from collections.abc import Iterable, Iterator

from m2s.data.heart import Heart
from m2s.data.simulate import PAPER, MotionLaw, draw_rng, simulate_stack
from m2s.evaluate.methods import Method, canonical_from_stack
from m2s.evaluate.scores import Row, Truth, score, score_shifts
from m2s_runtime.errors import CaseError, UsageProblem
from m2s_runtime.grid import SPACING
from m2s_runtime.surface import Mesh


def heart_truth(heart: Heart) -> Truth:
    """A heart of the cohort as the truth, in the grid's frame.

    Raises:
        UsageProblem: if its planes are not those of the grid, 2 mm apart.
    """
    if heart.plane_mm != SPACING[2]:
        raise UsageProblem(f"{heart.id}: planes {heart.plane_mm} mm apart, and figures are counted on {SPACING[2]} mm")
    return Truth.of(heart.mask, Mesh(heart.grid_vertices, heart.faces))


def noise_key(*parts: object) -> str:
    """Stands for the sha256 of the file that a simulated stack does not have: 64 hex digits."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def evaluate_heart(
    heart: Heart, truth: Truth, methods: dict[str, Method], *, draws: int, seed: int = 0, law: MotionLaw = PAPER
) -> Iterator[Row]:
    """Score methods on the stacks of one heart; every method sees the same stacks.

    Args:
        heart: what was acquired.
        truth: the same, prepared.
        methods: by name.
        draws: stacks to simulate.
        seed: of the motion.
        law: of the motion.

    Yields:
        One row a stack and method. A stack that a method refuses gives a row with `error`.
    """
    for draw in range(draws):
        stack = simulate_stack(heart.mask, draw_rng(heart.id, draw, seed), law)
        canonical = canonical_from_stack(stack)
        for name, method in methods.items():
            row: Row = {"subject": heart.id, "draw": draw, "method": name}
            started = time.perf_counter()
            try:
                prediction = method(canonical, noise_key(heart.id, draw, seed))
            except CaseError as error:
                yield row | {"error": f"{error.code}: {error}"}
                continue
            row["seconds"] = None if prediction.remembered else time.perf_counter() - started
            yield row | score(prediction, truth) | score_shifts(prediction.shifts, stack.shifts, stack.slices)


def evaluate_cohort(
    hearts: Iterable[Heart], methods: dict[str, Method], *, draws: int, seed: int = 0, law: MotionLaw = PAPER
) -> Iterator[Row]:
    """`evaluate_heart` for each heart; rows carry the `phase` where the name of the heart tells it."""
    for heart in hearts:
        phase = next((p for p in ("ED", "ES") if p in heart.id.split("-")), "")
        for row in evaluate_heart(heart, heart_truth(heart), methods, draws=draws, seed=seed, law=law):
            yield {**row, "phase": phase}


def groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Lines of the table: each method over all hearts, then by phase where there are two."""
    lines: dict[str, list[Row]] = {}
    for name in dict.fromkeys(str(row["method"]) for row in rows):
        mine = [row for row in rows if row["method"] == name]
        lines[name] = mine
        phases = sorted({str(row.get("phase") or "") for row in mine} - {""})
        if len(phases) > 1:
            lines |= {f"{name}, {phase}": [r for r in mine if r.get("phase") == phase] for phase in phases}
    return lines
