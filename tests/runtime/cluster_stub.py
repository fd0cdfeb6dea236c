"""A reconstructor whose cost is fixed, for pools whose processes have to import it, and studies that harm it."""

import os
import signal
import time
from dataclasses import dataclass

import numpy as np
from runtime.stub import StubBundle, StubEngine, StubReconstructor, save, wall

from m2s_runtime.task import TaskSpec


@dataclass(frozen=True)
class FixedCost:
    """Opens a reconstructor that takes so many seconds a case; a `TaskSpec.opener` that can be pickled.

    A stack of 4 slices kills the process that reconstructs it, one of 5 the parent of that process.
    """

    seconds: float = 0.0

    def __call__(self, spec: TaskSpec):
        return StubBundle(), StubEngine(threads=spec.threads), _Reconstructor(self.seconds)


class _Reconstructor(StubReconstructor):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def reconstruct(self, canonical, *rest, **named):
        slices = np.count_nonzero(canonical.masks.any(axis=(0, 1)))
        if slices in (KILLS_ITSELF, KILLS_ITS_PARENT):
            os.kill(os.getpid() if slices == KILLS_ITSELF else os.getppid(), signal.SIGKILL)
            time.sleep(60)  # until the end of the parent is noticed
        time.sleep(self._seconds)
        return super().reconstruct(canonical, *rest, **named)


KILLS_ITSELF, KILLS_ITS_PARENT = 4, 5


def make_studies(folder, count):
    """Label maps that differ from each other, `00.nii.gz` and so on."""
    for index in range(count):
        save(folder / f"{index:02}.nii.gz", wall(scale=1.0 - 0.01 * index))
    return folder
