"""What can go wrong, as types; every message names the file or option and the remedy.

Two families: `Stop` ends the run with its `exit_code`; `CaseError` ends one case and the batch goes on.
"""

from typing import ClassVar, Final

OK: Final = 0
BUG: Final = 1
SOME_FAILED: Final = 8
INTERRUPTED: Final = 130
TERMINATED: Final = 143


class M2SError(Exception):
    """Base of every error this project raises on purpose."""


class Stop(M2SError):
    """Ends the whole command with `exit_code`."""

    exit_code: ClassVar[int] = BUG


class UsageProblem(Stop, ValueError):
    """An option or argument that cannot mean anything."""

    exit_code = 2


class NoInputs(Stop, FileNotFoundError):
    """Nothing to do: no NIfTI file under the inputs."""

    exit_code = 3


class BundleError(Stop, ValueError):
    """The model bundle is missing, altered or of another schema."""

    exit_code = 4


class EngineError(Stop, RuntimeError):
    """The inference engine or device that was asked for cannot be had."""

    exit_code = 5


class OutputError(Stop, OSError):
    """The output folder cannot be written."""

    exit_code = 6


class CaseError(M2SError, ValueError):
    """Base of everything that refuses one case; `code` is its short name in `cases.csv`."""

    code: ClassVar[str] = "case"


class UnreadableVolume(CaseError):
    """Not a NIfTI file, truncated, or not readable by this user."""

    code = "unreadable"


class BadHeader(CaseError):
    """Header dimensions that are negative, zero, giant or of the wrong number."""

    code = "header"


class BadAffine(CaseError):
    """An affine that is not finite, not invertible, sheared, or of an impossible spacing."""

    code = "affine"


class BadLabels(CaseError):
    """Voxel values that are no labels, or labels that do not fit the scheme."""

    code = "labels"


class AmbiguousLabels(BadLabels):
    """No single label can be told to be the wall; the message holds the flag to add."""

    code = "ambiguous-labels"


class EmptyWall(CaseError):
    """No voxel of the wall in the volume (or none left after super-resolution)."""

    code = "empty"

    @classmethod
    def after_networks(cls) -> "EmptyWall":
        """Where a network has left nothing."""
        return cls("no voxel of the wall is left: check that the mask holds the wall of the left ventricle")


class WallOutOfRange(CaseError):
    """Too few slices, a wall too long, or one that leaves the canonical field of view."""

    code = "range"


class NotFinite(CaseError):
    """A network returned NaN or infinity for this case."""

    code = "not-finite"


class BadMesh(CaseError):
    """A triangle mesh that is open, or whose faces name vertices that it does not have."""

    code = "mesh"


class Occupied(CaseError):
    """Something that is no folder of this program's has the name of the case in the output folder."""

    code = "occupied"


EXIT_CODES: Final = {
    OK: "ok",
    BUG: "bug",
    UsageProblem.exit_code: "usage",
    NoInputs.exit_code: "no inputs",
    BundleError.exit_code: "bundle",
    EngineError.exit_code: "device or engine",
    OutputError.exit_code: "output",
    SOME_FAILED: "some cases failed",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}
"""What the exit code of every command means: the one table that help and documentation take them from."""


def exit_codes(*others: int) -> str:
    """One line for a command's help: what ends any command on purpose, and the codes that only this one has."""
    usual = (OK, BUG, *(kind.exit_code for kind in (UsageProblem, NoInputs, BundleError, EngineError, OutputError)))
    told = ", ".join(f"{code} {EXIT_CODES[code]}" for code in sorted({*usual, INTERRUPTED, *others}))
    return f"Exit codes: {told}."
