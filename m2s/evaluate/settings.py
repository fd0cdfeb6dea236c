"""The paper's two settings as units of work: simulated motion of known hearts, and stacks as a clinic takes them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from m2s.baselines.method import Method
from m2s.data.clinical import read_pair
from m2s.data.content import content_mark
from m2s.data.heart import Heart
from m2s.data.labelmaps import KINDS, LabelMap, LabelMaps, Phase, case_file, case_name
from m2s.data.simulate import Masks
from m2s.data.stand_in import stand_in_stack
from m2s.evaluate.hearts import Cohort, base_heart, heart_truth
from m2s.evaluate.scores import Row, Truth
from m2s.evaluate.simulation import score_methods, score_stack
from m2s.evaluate.work import Item
from m2s_runtime.csdg import to_grid
from m2s_runtime.grid import PADDING, PLANES

DIRECT: Final = "direct"
TUNED: Final = "fine-tuned"


@dataclass(frozen=True)
class StandInStack:
    """A heart of the atlas scanned as patients are, see `m2s.data.stand_in`."""

    cohort: Cohort
    row: int
    draw: int
    seed: int = 0

    @property
    def name(self) -> str:
        """What it is."""
        return f"stand-in, {self.cohort.name} {self.row}, draw {self.draw}, {self.cohort.mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a method.

        Raises:
            NoInputs: the atlas is not there.
            CaseError: the stack cannot be used by any method.
        """
        scan = stand_in_stack(base_heart(self.cohort, self.row), self.draw, self.seed)
        facts: Row = {"subject": scan.heart.id, "draw": self.draw, "setting": DIRECT, "step_mm": scan.step_mm}
        for row in score_methods(methods, scan.slices, scan.step_mm, heart_truth(scan.heart), scan.shifts):
            yield facts | row


@dataclass(frozen=True)
class MapStack:
    """A high-resolution label map of the paper's data set, acquired as slices that moved."""

    folder: Path
    subject: int
    phase: Phase
    draw: int
    seed: int = 0
    law: str = "paper"

    @property
    def name(self) -> str:
        """What it is, and of which map."""
        mark = content_mark(case_file(self.folder, self.subject, self.phase, "HR"))
        return f"{case_name(self.subject, self.phase)}, {self.law}, draw {self.draw}, {mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a method.

        Raises:
            CaseError: the map cannot be used.
        """
        heart, truth = _map_heart(self.folder, self.subject, self.phase)
        facts: Row = {"subject": person(self.subject), "law": self.law, "phase": self.phase}
        for row in score_stack(heart, truth, methods, draw=self.draw, seed=self.seed, law=self.law):
            yield row | facts


@dataclass(frozen=True)
class PairStack:
    """An acquired stack of the paper's data set beside the high-resolution map of the same heart."""

    folder: Path
    subject: int
    phase: Phase

    @property
    def name(self) -> str:
        """What it is, and of which files."""
        mark = content_mark(*(case_file(self.folder, self.subject, self.phase, kind) for kind in KINDS))
        return f"pair, {case_name(self.subject, self.phase)}, {mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a method.

        Raises:
            CaseError: a file cannot be used, or the two are not of one heart.
        """
        maps = LabelMaps(self.folder)
        pair = read_pair(maps, self.subject, self.phase)
        step_mm = maps.low(self.subject, self.phase).placement.step_mm
        facts: Row = {"subject": person(self.subject), "phase": self.phase, "draw": 0}
        facts |= {"setting": DIRECT, "step_mm": step_mm}
        for row in score_methods(methods, pair.slices, step_mm, map_truth(pair.id, pair.mask, step_mm)):
            yield facts | row


@dataclass(frozen=True)
class Tuned:
    """A unit of work as the fine-tuned methods are scored on it, so that one table holds both."""

    item: Item

    @property
    def name(self) -> str:
        """What it is."""
        return f"{self.item.name}, {TUNED}"

    def rows(self, methods: Mapping[str, Method]) -> Iterable[Row]:
        """Those of the unit."""
        return (row | {"setting": TUNED} for row in self.item.rows(methods))


def person(subject: int) -> str:
    """What both phases of a subject of the paper's data set are counted as: one person, not two."""
    return f"labelmap-{subject}"


def map_truth(identity: str, mask: Masks, step_mm: float) -> Truth:
    """`map_heart` as the truth."""
    return heart_truth(map_heart(identity, mask, step_mm))


def map_heart(identity: str, mask: Masks, step_mm: float) -> Heart:
    """A mask (128, 128, 60) with planes `step_mm / 5` apart, on the planes that figures are counted on."""
    inside = to_grid(mask.astype(np.float32), step_mm) > 0.5
    planes = np.ascontiguousarray(inside[:, :, PADDING : PADDING + PLANES])
    return LabelMap(identity, planes, np.eye(4), flipped=False).heart()


@lru_cache(maxsize=1)
def _map_heart(folder: Path, subject: int, phase: Phase) -> tuple[Heart, Truth]:
    heart = LabelMaps(folder).high(subject, phase).heart()
    return heart, heart_truth(heart)
