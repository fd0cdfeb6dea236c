"""What the diffusion trains on: latents of true surfaces beside the latents of the C-SDGs that condition them.

Conditions from perfect masks cannot teach a denoiser to mend errors, so most come from MCSR-Net's own answers to
simulated stacks. Encoding costs more than a training step of the denoiser, so pairs are made once and kept.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from m2s.data.heart import keyed_rng
from m2s.data.lost_slices import lose_apex
from m2s.data.simulate import PAPER, MotionLaw, simulate_stack
from m2s.data.store import HeartStore, StoreSpec, mapped
from m2s.nets.mcsr import McsrNet
from m2s.nets.vqvae import Autoencoder
from m2s.pool import worker_pool
from m2s.train.loop import Arrays, device_of
from m2s.train.mcsr import NOISE_MM, stack_inputs, symmetry
from m2s.train.motion import training_law
from m2s_runtime.atomic import write_bytes
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.ddim import TRAIN_STEPS
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import NOMINAL_STEP, SPACING, UPSAMPLING

SHARD: Final = 16
_PERFECT: Final = 0.1
"""Share of conditions from the true mask."""
_NO_APEX: Final = 0.15
"""Share of the other conditions whose stacks end above the apex."""

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PairMaker:
    """Makes pair `index` of a store: condition and target as distances in mm, both (128, 128, 64)."""

    store: HeartStore
    mcsr: McsrNet
    autoencoder: Autoencoder
    seed: int
    law: MotionLaw
    noise_mm: float
    perfect: float
    threads: int
    no_apex: float = 0.0

    def grids(self, index: int) -> tuple[Floats, Floats]:
        """C-SDG and true SDG of heart `index` modulo the store's size, under a random symmetry."""
        wall, truth = self.wall(index)
        return coarse_sdg(wall, self.threads), truth

    def wall(self, index: int) -> tuple[Masks, Floats]:
        """The super-resolved wall that the C-SDG is measured to, (128, 128, 64), and the true SDG."""
        slices, mask, truth = self._drawn(index)
        if slices is None:
            return to_grid(mask.astype(np.float32), NOMINAL_STEP) >= 0.5, truth
        return super_resolved(self.mcsr, slices, NOMINAL_STEP)[0], truth

    def slices(self, index: int) -> Masks:
        """The stack behind that wall, (128, 128, 12); a perfect mask is given one that moved all the same."""
        slices, mask, _ = self._drawn(index)
        if slices is None:
            return simulate_stack(mask, keyed_rng("pair slices", self.seed, index), self.law).slices
        return slices

    def truth(self, index: int) -> Floats:
        """The true SDG of a pair alone, without asking MCSR-Net: (128, 128, 64) mm."""
        return self._drawn(index)[2]

    def _drawn(self, index: int) -> tuple[Masks | None, Masks, Floats]:
        """The simulated slices (None for a perfect mask), the mask and the true SDG of a pair."""
        rng = keyed_rng("pair", self.seed, index)
        heart, which = index % len(self.store), int(rng.integers(8))
        mask, truth = symmetry(self.store.mask(heart), which), symmetry(self.store.distance(heart), which)
        if rng.uniform() < self.perfect:
            return None, mask, truth
        noise = self.noise_mm * rng.uniform() if rng.uniform() < 0.5 else 0.0
        stack = simulate_stack(mask, rng, self.law, noise=noise)
        if rng.uniform() < self.no_apex:
            stack, moved = lose_apex(stack, mask, 1)
            truth = _along_z(truth, UPSAMPLING * _slices_moved(mask, moved))
        return stack.slices, mask, truth

    def latents(self, index: int) -> tuple[Floats, Floats]:
        """Latents (zc, zs), of a VQ-VAE quantised, each (D, X', Y', Z'), not yet scaled."""
        grids = torch.from_numpy(np.stack(self.grids(index))[:, None])
        # Single precision, as in the runtime: a quarter of the codes near the surface are others in bfloat16.
        with torch.no_grad():
            found = self.autoencoder.latent(grids)
        zc, zs = found.numpy()
        return zc, zs


Part = Callable[[PairMaker, int], npt.NDArray[Any]]


def super_resolved(net: McsrNet, slices: Masks, step_mm: float) -> tuple[Masks, Floats]:
    """What MCSR-Net makes of a stack: the wall on the grid's planes, and the shifts.

    Args:
        net: in evaluation mode.
        slices: (128, 128, 12) wall.
        step_mm: distance between the slices.

    Returns:
        (128, 128, 64) on planes 2 mm apart, and (12, 2) mm, centred.

    Raises:
        NotFinite: the network returned NaN or infinity.
    """
    device = device_of(net)
    inputs = {name: torch.from_numpy(a[None]).to(device) for name, a in stack_inputs(slices, net.size).items()}
    with torch.no_grad():
        shifts = net.shifts(inputs["slices"], inputs["pool"])
        probability = net.probability(inputs["slices"], shifts)
    return to_grid(probability[0, 0].cpu().numpy(), step_mm) >= 0.5, shifts[0].cpu().numpy()


def training_maker(store: HeartStore, mcsr: McsrNet, autoencoder: Autoencoder, seed: int, threads: int) -> PairMaker:
    """Pairs as the diffusion learns from them: mixed motion, contour noise, some perfect masks."""
    return PairMaker(
        store, mcsr.eval(), autoencoder.eval(), seed, training_law(), NOISE_MM, _PERFECT, threads, _NO_APEX
    )


def selection_maker(store: HeartStore, mcsr: McsrNet, autoencoder: Autoencoder, threads: int) -> PairMaker:
    """Pairs to choose weights by: the published motion, nothing else."""
    return PairMaker(store, mcsr.eval(), autoencoder.eval(), 0, PAPER, 0.0, 0.0, threads)


def make_pairs(folder: Path, maker: PairMaker, count: int, workers: int = 1, *, quiet: bool = False) -> Path:
    """Makes what is missing of the first `count` pairs, a shard at a time, and returns the folder.

    Raises:
        UsageProblem: the folder holds pairs of other networks, hearts or another seed.
    """
    return make_shards(folder, maker, _latents, count, workers, quiet=quiet)


def make_shards(
    folder: Path, maker: PairMaker, one: Part, count: int, workers: int = 1, *, quiet: bool = False
) -> Path:
    """Makes what is missing of one part of the first `count` pairs, a shard at a time, and returns the folder.

    Args:
        folder: of this part alone.
        maker: what the pairs are drawn by.
        one: the part of one pair as an array; a function of a module, because other processes call it.
        count: of pairs, rounded up to whole shards.
        workers: processes.
        quiet: no progress bar.

    Raises:
        UsageProblem: the folder holds pairs of other networks, hearts or another seed.
    """
    claim_pairs(folder, maker.store.spec, maker.seed, maker.mcsr, maker.autoencoder)
    missing = [k for k in range((count + SHARD - 1) // SHARD) if not _file(folder, k).is_file()]
    if missing:
        with worker_pool(workers, _adopt, (maker,)) as pool:
            made = pool.map(_make_shard, [folder] * len(missing), [one] * len(missing), missing)
            for _ in track(made, folder.name, total=len(missing), disable=quiet):
                pass
    return folder


def _latents(maker: PairMaker, index: int) -> npt.NDArray[np.float16]:
    return np.stack(maker.latents(index)).astype(np.float16)


_maker: list[PairMaker] = []


def _adopt(maker: PairMaker) -> None:
    torch.set_num_threads(maker.threads)
    _maker[:] = [maker]


def _make_shard(folder: Path, one: Part, shard: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.stack([one(_maker[0], shard * SHARD + k) for k in range(SHARD)]))
    write_bytes(_file(folder, shard), buffer.getvalue())


def _slices_moved(before: Masks, after: Masks) -> int:
    first = [int(np.flatnonzero(mask.any((0, 1)))[0]) for mask in (before, after)]
    return (first[1] - first[0]) // UPSAMPLING


def _along_z(distance: Floats, planes: int) -> Floats:
    """Moved by whole planes; what comes in lies outside the wall, the further the deeper."""
    if planes == 0:
        return distance
    moved = np.roll(distance, planes, axis=2)
    depth = SPACING[2] * np.arange(1, abs(planes) + 1, dtype=np.float32)
    if planes > 0:
        moved[:, :, :planes] = distance[:, :, :1] + depth[::-1]
    else:
        moved[:, :, planes:] = distance[:, :, -1:] + depth
    return moved


def claim_pairs(folder: Path, spec: StoreSpec, seed: int, mcsr: McsrNet, autoencoder: Autoencoder) -> None:
    """Pairs are worth nothing to networks that did not make them: the folder is stamped with theirs.

    Raises:
        UsageProblem: it bears another stamp.
    """
    digest = hashlib.sha256(repr((spec, seed)).encode())
    for net in (mcsr, autoencoder):
        for name, tensor in net.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    marker, stamp = folder / "pairs.sha256", digest.hexdigest()
    if not marker.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(marker, stamp.encode())
    elif marker.read_text() != stamp:
        raise UsageProblem(
            f"{folder} holds pairs of other networks, hearts or another seed: give --hearts, --seed and the source of"
            " the hearts as they were when it was made, or remove it and run again"
        )


class PairSource:
    """Reads pairs; scaled to unit variance."""

    def __init__(self, folder: Path, seed: int, scale: float) -> None:
        self._folder, self._seed, self._scale = folder, seed, scale
        self._shards: list[npt.NDArray[np.float16]] = []

    @property
    def residual(self) -> float:
        """Standard deviation of the scaled zs - zc."""
        errors = [np.square(np.subtract(s[:, 1], s[:, 0], dtype=np.float32)).mean() for s in read_shards(self._folder)]
        return self._scale * float(np.sqrt(np.mean(errors)))

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return len(self._opened()) * SHARD

    def pairs(self, pick: Sequence[int]) -> Floats:
        """(B, 2, D, X', Y', Z') latents zc and zs of the named pairs, scaled."""
        shards = self._opened()
        return self._scale * np.stack([shards[k // SHARD][k % SHARD] for k in pick]).astype(np.float32)

    def batch(self, step: int, size: int) -> Arrays:
        """`zc` and `zs` (B, D, X', Y', Z'), `t` (B,) int64 uniform in 0..999 and the `noise`."""
        rng = keyed_rng("diffusion", self._seed, step)
        pairs = self.pairs([int(k) for k in rng.integers(self.count, size=size)])
        noise = rng.standard_normal(pairs[:, 0].shape, dtype=np.float32)
        return {"zc": pairs[:, 0], "zs": pairs[:, 1], "t": rng.integers(0, TRAIN_STEPS, size), "noise": noise}

    def _opened(self) -> list[npt.NDArray[np.float16]]:
        if not self._shards:
            self._shards = list(read_shards(self._folder))
        return self._shards


def read_shards(folder: Path) -> Iterator[npt.NDArray[np.float16]]:
    """Every shard, (SHARD, 2, D, X', Y', Z')."""
    for path in sorted(folder.glob("pairs-*.npy")):
        yield mapped(path)


def scale_factor(folder: Path) -> float:
    """1 / standard deviation of the true surfaces' latents (the factor that `encode` applies)."""
    latents = np.concatenate([np.asarray(s[:, 1], np.float32).ravel() for s in read_shards(folder)])
    return float(1 / latents.std())


def _file(folder: Path, shard: int) -> Path:
    return folder / f"pairs-{shard:05d}.npy"
