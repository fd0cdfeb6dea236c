"""Which optimisation profile of a TensorRT engine serves a batch, and how large that batch has to be made."""

from collections.abc import Sequence

from m2s_runtime.manifest import BatchProfile


def fitting(rows: int, profiles: Sequence[BatchProfile]) -> tuple[int, int]:
    """Number of the profile for a batch, and the rows to run at once.

    Rows beyond the largest profile are left for another time; where no profile goes down to `rows`, the batch has to be
    padded. Of several profiles the one with the least padding, then the one tuned to the nearest size.

    Args:
        rows: at least 1.
        profiles: in the order that the engine numbers them; not empty.
    """
    at_once = min(rows, max(profile.max for profile in profiles))
    choices = [
        (max(at_once, profile.min), abs(profile.opt - at_once), number)
        for number, profile in enumerate(profiles)
        if profile.max >= at_once
    ]
    size, _, number = min(choices)
    return number, size
