"""A source that could be read, and what holds for all of its frames."""

import time
from dataclasses import dataclass

from m2s_runtime.frames import frame_name
from m2s_runtime.inputs import Source
from m2s_runtime.labels import LabelDecision, right_mask, wall_mask
from m2s_runtime.options import Options
from m2s_runtime.placement import slice_axis
from m2s_runtime.record import Row, Seen, source_seen
from m2s_runtime.shifts_file import Origin
from m2s_runtime.slices import BoolArray
from m2s_runtime.stacks import Estimate, Stacks
from m2s_runtime.text import clean
from m2s_runtime.volume import Study, read_study


@dataclass(frozen=True)
class Opened:
    """A source that could be read, with the decisions that hold for all of its frames."""

    source: Source
    study: Study
    wall: BoolArray
    decision: LabelDecision
    seen: Seen
    """How the file looked before it was read."""
    reading: float
    """Seconds that reading took."""

    def origin(self, frame: int | None) -> Origin:
        """Where a frame came from; an anonymous source has no name that tells anything."""
        x, y, z, _ = self.wall.shape
        return Origin(self.source.relative, self.study.sha256, frame, (x, y, z), self.study.affine)

    def stacks(self, estimate: Estimate | None) -> Stacks:
        """Its frames; with `estimate` they share their shifts."""
        right = right_mask(self.study.labels, self.decision)
        return Stacks(self.wall, self.study.affine, self.study.sha256, estimate, right)

    def row(self, frame: int) -> Row:
        """The row of one frame as far as it is known before the frame is touched."""
        warnings = (*self.study.warnings, *self.decision.warnings)
        count = self.wall.shape[3]
        return Row(
            case=frame_name(self.source.case, frame, count),
            input=self.source.relative,
            frame=frame if count > 1 else None,
            time_ms=None if self.study.frame_ms is None else frame * self.study.frame_ms,
            labels=clean(self.decision.text),
            message=clean("; ".join(warnings)) or None,
            flags=" ".join(self.decision.flags) or None,
        )


def open_source(source: Source, options: Options) -> Opened:
    """Read a source and find its wall.

    Raises:
        CaseError: the file is refused.
    """
    started = time.perf_counter()
    seen = source_seen(source.path)
    study = read_study(source.path, options.limits)
    wall, decision = wall_mask(study.labels, options.labels, slice_axis(study.affine))
    return Opened(source, study, wall, decision, seen, time.perf_counter() - started)
