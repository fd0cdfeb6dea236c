"""A reconstructor without networks, and small label maps to feed it: what tests of the batch stand on."""

import contextlib
import hashlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from m2s_runtime.errors import NotFinite
from m2s_runtime.grid import PADDING, UPSAMPLING
from m2s_runtime.placement import Canonical
from m2s_runtime.surface import Mesh, extract_surface

AFFINE = np.diag([2.0, 2.0, 10.0, 1.0])


@dataclass(frozen=True)
class StubBundle:
    name: str = "stub"
    path: Path = Path("stub")
    sha256: str = "0" * 64


@dataclass(frozen=True)
class StubEngine:
    name: str = "onnx"
    device: str = "cpu"
    threads: int = 1
    description: str = "no network at all"


@dataclass(frozen=True)
class StubResult:
    mesh: Mesh
    shifts: np.ndarray
    common_shift: np.ndarray
    probability: np.ndarray
    sdg: np.ndarray
    affine: np.ndarray
    flags: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    spread: np.ndarray | None = None
    agreement: np.ndarray = field(default_factory=lambda: np.linspace(0.9, 1.0, 12, dtype=np.float32))
    sample_volumes_ml: tuple[float, ...] = ()
    expected_dice: float | None = None
    ended: None = None


class StubReconstructor:
    """Repeats each slice five times.

    `trouble` maps a call number, or the sha256 of a source file, to what happens in that call, `flags` a number to its
    flags. With `spread` every vertex gets that many millimetres. `log` is a file that gets a line for each call.
    """

    def __init__(self, trouble=None, flags=None, spread=None, log=None):
        self.trouble, self.flags, self.spread, self.log = trouble or {}, flags or {}, spread, log
        self.keys = []

    def estimate(self, canonical: Canonical, _noise_key: str) -> np.ndarray:
        """The slice of the file as its shift along x, so that a mistaken slice shows."""
        return np.stack([np.array(canonical.placement.slices), np.zeros(12)], axis=1).astype(np.float32)

    def reconstruct(self, canonical: Canonical, noise_key: str, shared: np.ndarray | None = None) -> StubResult:
        self.keys.append(noise_key)
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{noise_key}\n")
        trouble = self.trouble.get(len(self.keys), self.trouble.get(noise_key))
        while trouble == "kill in company" and len(self.log.read_text().split()) < 4:
            time.sleep(0.02)
        meet(trouble)
        planes = np.repeat(canonical.masks, UPSAMPLING, axis=2)
        probability = np.pad(planes, ((0, 0), (0, 0), (PADDING, PADDING))).astype(np.float32)
        # Noise of its own for each key, so that a wrong key shows in the mesh.
        noise = np.random.default_rng(int(noise_key[:8], 16)).uniform(0.0, 0.1, probability.shape)
        sdg = (0.5 - probability + noise).astype(np.float32)
        affine = canonical.placement.world((0.0, 0.0))
        shifts = np.zeros((12, 2), np.float32)
        shifts[canonical.masks.any(axis=(0, 1))] = (1.0, -2.0)
        if shared is not None:
            shifts = shared + np.float32((1.0, -2.0))
        mesh = extract_surface(sdg, affine)
        flags = self.flags.get(len(self.keys), ())
        spread = None if self.spread is None else np.full(len(mesh.vertices), self.spread, np.float32)
        common = np.array([1.0, -2.0])
        return StubResult(mesh, shifts, common, probability, sdg, affine, flags, {"mc": 0.25}, spread)


@dataclass(frozen=True)
class StubOpener:
    """Stands for `m2s_runtime.task.open_reconstructor`, in worker processes too."""

    trouble: dict = field(default_factory=dict)
    engine: StubEngine = StubEngine()
    error: Exception | str | None = None
    """What happens instead."""
    first: Path | None = None
    """The first to make this file gets an engine of another version."""
    log: Path | None = None
    starts: Path | None = None
    """A file that gets a letter for each process that loads; the second and third are killed."""

    def __call__(self, _):
        meet(self.error)
        if self.starts is not None:
            with self.starts.open("a+") as file:
                file.write("x")
            meet("kill" if self.starts.stat().st_size in (2, 3) else None)
        engine = self.engine
        if self.first is not None:
            with contextlib.suppress(FileExistsError):
                self.first.touch(exist_ok=False)
                engine = replace(engine, description="another version")
        return StubBundle(), engine, StubReconstructor(self.trouble, log=self.log)


def meet(trouble):
    if trouble in ("kill", "kill in company"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif trouble == "hang":
        time.sleep(600)
    elif trouble == "slow":
        time.sleep(1)
    elif trouble == "modules":
        raise RuntimeError(f"torch: {'torch' in sys.modules}")
    elif isinstance(trouble, BaseException):
        raise trouble


NOT_FINITE = NotFinite("decode returned NaN; run with --engine onnx")


def wall(slices=8, size=48, scale=1.0):
    """(size, size, slices + 2) uint8 in ACDC labels: rings that taper from base to a closed apex."""
    x, y = np.mgrid[:size, :size] * 2.0 - (size - 1)
    labels = np.zeros((size, size, slices + 2), np.uint8)
    for index in range(slices):
        outer = scale * (34.0 - 2.2 * index)
        radius = np.hypot(x - 2 * (index % 2), y)
        labels[:, :, index + 1][radius < outer] = 2
        labels[:, :, index + 1][radius < outer - 10.0] = 3
    labels[:, :, slices][labels[:, :, slices] == 3] = 2
    return labels


def save(path, labels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def digests(folder):
    """Name to content hash of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
