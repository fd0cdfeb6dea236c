"""Which frames of a cine to reconstruct."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from m2s_runtime.errors import BadHeader, EmptyWall, UsageProblem


@dataclass(frozen=True)
class FrameRequest:
    """What `--frames` asked for: everything, phases, or indices (one of the three is set).

    Attributes:
        phases: any of `"ed"` and `"es"`.
        indices: frame indices from 0.
    """

    phases: frozenset[str] = frozenset()
    indices: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "FrameRequest":
        """Read `all`, `ed`, `es`, `ed,es` or indices such as `0,5,10-14`.

        Raises:
            UsageProblem: anything else.
        """
        words = [word.strip().lower() for word in text.split(",")]
        if words == ["all"]:
            return cls()
        if set(words) <= {"ed", "es"}:
            return cls(phases=frozenset(words))
        return cls(indices=tuple(sorted({index for word in words for index in _indices(word)})))

    def choose(self, holds_wall: Sequence[bool], volumes: Callable[[int], tuple[float, float] | None]) -> list[int]:
        """Pick frames, ascending.

        End-diastole is the frame with the largest cavity, end-systole the one with the smallest; frames that cannot
        be measured (None) or without a cavity (no closed ring) stand back behind those with one. Where no frame has a
        cavity the volume of the wall decides: the base, which leaves the first slices in systole, takes wall along.

        Args:
            holds_wall: whether each frame has any voxel of the wall.
            volumes: of cavity and wall in a frame, any unit; None where the frame is no use.

        Raises:
            BadHeader: a frame was asked for that the study does not have.
            EmptyWall: no frame holds wall.
        """
        count = len(holds_wall)
        if self.indices and self.indices[-1] >= count:
            raise BadHeader(f"has {count} frame(s), numbered from 0, but --frames asks for {self.indices[-1]}")
        if self.indices:
            return list(self.indices)
        present = [frame for frame in range(count) if holds_wall[frame]]
        if not present:
            raise EmptyWall("no voxel of the wall in any frame; check --labels, or that this is the label map")
        if not self.phases or len(present) == 1:
            return present
        return self._phases({frame: volumes(frame) for frame in present})

    def _phases(self, volumes: dict[int, tuple[float, float] | None]) -> list[int]:
        measured = {frame: both for frame, both in volumes.items() if both is not None}
        closed = {frame: cavity for frame, (cavity, _) in measured.items() if cavity > 0}
        # All frames refused: let the first one carry the message why.
        usable = closed or {frame: wall for frame, (_, wall) in measured.items()} or {min(volumes): 0.0}
        chosen: set[int] = set()
        if "ed" in self.phases:
            chosen.add(max(usable, key=lambda frame: usable[frame]))
        if "es" in self.phases:
            chosen.add(min(usable, key=lambda frame: usable[frame]))
        return sorted(chosen)


_UNIT_MS: Final = {8: 1000.0, 16: 1.0, 24: 1e-3}
"""NIfTI time unit code (second, millisecond, microsecond) to milliseconds."""

_FRAME_MS: Final = (1.0, 500.0)
"""Between frames of a beating heart; many programs write 1 s where they know nothing."""


def frame_ms(step: float, units: int) -> float | None:
    """Milliseconds between frames; None where the header does not say, or says what no cine of a heart can have.

    Args:
        step: `pixdim[4]` of a NIfTI header.
        units: its `xyzt_units`.
    """
    found = step * _UNIT_MS.get(units & 56, 0.0)
    return found if _FRAME_MS[0] <= found <= _FRAME_MS[1] else None


def frame_name(case: str, frame: int, count: int) -> str:
    """The case id of one frame: the study's own when it has a single frame, else with `_t07` added."""
    return case if count == 1 else f"{case}_t{frame:0{max(2, len(str(count - 1)))}d}"


def _indices(word: str) -> range:
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", word)
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise UsageProblem(f"--frames: {word!r} is no frame; use all, ed,es or indices from 0 such as 0,5,10-14")
    return range(int(match[1]), int(match[2] or match[1]) + 1)
