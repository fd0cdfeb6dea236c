"""What does it change that a GPU makes the C-SDG, and how long does it take?

    python benchmarks/device_csdg.py --atlas DATA/cap_mesa_lv_pca --hearts 10
    python benchmarks/device_csdg.py DATA/acdc_masks/*_gt.nii.gz --device cuda:0

Each heart is reconstructed twice, with the distances of the host and with those of the device. Without a card the
device's kernels run on the CPU (`--device cpu`): slowly, which says nothing about time, but with the bits of a GPU.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from m2s.data.atlas import validation_hearts
from m2s.data.heart import Heart
from m2s.data.simulate import PAPER, draw_rng, simulate_stack
from m2s.evaluate.acdc import read_stack
from m2s.evaluate.methods import GRID_TO_MM, canonical_from_stack
from m2s.metrics import SampledSurface, cd_paper, dice
from m2s_export.surfaces import surface_p95
from m2s_runtime.bundle import Bundle, load_bundle
from m2s_runtime.device_csdg import DeviceCsdg, same_planes
from m2s_runtime.engines import Engine, open_engine
from m2s_runtime.engines.cuda import Cuda, cuda_index
from m2s_runtime.grid import GRID, PADDING
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import Canonical, canonicalise
from m2s_runtime.surface import Mesh, extract_surface

sys.path.append(str(Path(__file__).parents[1] / "tests"))

KEY = "0" * 64
REPEATS = 20
Floats = npt.NDArray[np.float32]


class Measure:
    """The C-SDG of walls (N, 128, 128, 64) bool on a device."""

    def __init__(self, device: str, rows: int) -> None:
        """Compile for batches of `rows`."""
        from runtime.device import HostMemory  # pyright: ignore[reportMissingImports] - of the tests

        self.rows = rows
        index = cuda_index(device)
        self._memory: Any = HostMemory() if index is None else Cuda(index)
        with self._memory.scope():
            given, walls, self._csdg = (self._memory.held(np.zeros((rows, *GRID), np.float32)) for _ in range(3))
            below, weights = (self._memory.held(one.repeat(rows, axis=0)) for one in same_planes(GRID[2]))
            states = self._memory.held(np.zeros((rows, 2), np.int32))
            self._go = DeviceCsdg(self._memory, GRID, GRID[2]).bind(given, below, weights, walls, self._csdg, states)
            self._given = given

    def __call__(self, walls: npt.NDArray[np.bool_]) -> Floats:
        """(N, 128, 128, 64) mm."""
        with self._memory.scope():
            self._given[...] = self._memory.held(walls.astype(np.float32))
            self._go()
            return self._memory.fetched(self._csdg)

    def milliseconds(self, walls: npt.NDArray[np.bool_]) -> float:
        """Of a heart in a batch of these."""
        self(walls)
        with self._memory.scope():
            began = time.perf_counter()
            for _ in range(REPEATS):
                self._go()
            self._memory.wait()
            return (time.perf_counter() - began) * 1000 / REPEATS / self.rows


class Replacing:
    """An engine whose `encode` is given the distances of the device; what each of both led to is kept."""

    def __init__(self, engine: Engine, measure: Measure) -> None:
        """Run all else with `engine`."""
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.description, self._engine, self._measure = engine.description, engine, measure
        self.off_mm, self.codes_agree = 0.0, 1.0
        self.walls: list[npt.NDArray[np.bool_]] = []

    def run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See `m2s_runtime.engines.base.Engine.run`."""
        if graph != "encode":
            return self._engine.run(graph, inputs)
        given = inputs["csdg"][:, 0]
        self.walls.append(given[0] < 0)
        found = self._measure(given < 0)
        self.off_mm = float(np.abs(found - given).max())
        host, device = (self._engine.run("encode", {"csdg": one[:, None]}) for one in (given, found))
        self.codes_agree = float((host["zc"] == device["zc"]).all(axis=1).mean())
        return device


@dataclass(frozen=True)
class Effect:
    """On one heart; the last two, of those whose truth is known, are pairs: host and device."""

    off_mm: float
    codes_agree: float
    dice_between: float
    p95_mm: float
    dice: tuple[float, ...]
    cd_mm2: tuple[float, ...]


def compared(bundle: Bundle, engine: Engine, replacing: Replacing, stack: Canonical, heart: Heart | None) -> Effect:
    """One heart both ways."""
    both = [Pipeline(bundle, one).reconstruct(stack, KEY) for one in (engine, replacing)]
    wanted, found = both
    overlaps: tuple[float, ...] = ()
    chamfers: tuple[float, ...] = ()
    if heart:
        truth = SampledSurface.of(Mesh(heart.grid_vertices, heart.faces), "truth")
        surfaces = [SampledSurface.of(extract_surface(one.sdg, GRID_TO_MM), "prediction") for one in both]
        chamfers = tuple(cd_paper(surface, truth) for surface in surfaces)
        overlaps = tuple(dice(one.sdg[:, :, PADDING:-PADDING] < 0, heart.mask) for one in both)
    between = dice(found.sdg < 0, wanted.sdg < 0), surface_p95(found.mesh, wanted.mesh)
    return Effect(replacing.off_mm, replacing.codes_agree, *between, overlaps, chamfers)


def stacks(files: tuple[Path, ...], atlas: Path | None, hearts: int) -> Iterator[tuple[Canonical, Heart | None]]:
    """First the files, of which the first frame counts, then hearts of the validation cohort."""
    for path in files:
        read = read_stack(path, "auto")
        yield canonicalise(read.wall, read.affine), None
    for heart in islice(validation_hearts(atlas), hearts) if atlas else ():
        yield canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0), PAPER)), heart


def table(effects: list[Effect]) -> str:
    """Markdown."""
    rows = {
        "hearts": str(len(effects)),
        "C-SDG, largest difference, mm": f"{max(e.off_mm for e in effects):.1e}",
        "codes that agree, least": f"{min(e.codes_agree for e in effects):.3%}",
        "Dice between the two, least": f"{min(e.dice_between for e in effects):.6f}",
        "surfaces, 95th percentile, largest, mm": f"{max(e.p95_mm for e in effects):.5f}",
    }
    known = [e for e in effects if e.dice]
    if known:
        figures = {"Dice with the truth": [e.dice for e in known], "cd_paper, mm2": [e.cd_mm2 for e in known]}
        for name, values in figures.items():
            host, device = np.mean(values, axis=0)
            rows[f"{name}, host and device"] = f"{host:.5f}, {device:.5f}"
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="Bundle folder or name.  [default: the installed one]")
@click.option("--atlas", type=click.Path(exists=True, file_okay=False, path_type=Path), help="CAP MESA shape atlas.")
@click.option("--hearts", type=click.IntRange(1), default=10, show_default=True, help="Of the atlas.")
@click.option("--device", default="cpu", show_default=True, help="cuda:N, or cpu: the device's kernels on the CPU.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Hearts at a time when timed.")
def main(files: tuple[Path, ...], model: str | None, atlas: Path | None, hearts: int, device: str, batch: int) -> None:
    """Reconstruct FILES, and hearts of an atlas, with either kernel."""
    bundle = load_bundle(model)
    engine = open_engine(bundle, "onnx", "cpu", 1)
    replacing = Replacing(engine, Measure(device, 1))
    effects = [compared(bundle, engine, replacing, stack, heart) for stack, heart in stacks(files, atlas, hearts)]
    click.echo(f"bundle {bundle.name} ({bundle.sha256[:12]}), {engine.description}, kernels on {device}\n")
    click.echo(table(effects))
    if device != "cpu":
        walls = np.stack([replacing.walls[k % len(effects)] for k in range(batch)])
        click.echo(f"\n{Measure(device, batch).milliseconds(walls):.3f} ms a heart in batches of {batch} on {device}")


if __name__ == "__main__":
    main()
