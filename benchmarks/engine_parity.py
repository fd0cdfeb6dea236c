"""How far apart are two engines: graph by graph, and surface by surface, on simulated stacks of hearts?

    python benchmarks/engine_parity.py onnx openvino openvino:bfloat16 --hearts 20
    python benchmarks/engine_parity.py onnx trt onnx@cuda:0 --atlas DATA/cap_mesa_lv_pca --out parity.json

An engine is NAME[:PRECISION][@DEVICE]; the first is what the others are compared with. Each graph is run on the inputs
that the first engine's own run brought it; the surfaces come from whole runs. Hearts are procedural, or those of the
atlas validation cohort.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from m2s.data.atlas import validation_hearts
from m2s.data.heart import Heart
from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER, draw_rng, simulate_stack
from m2s.evaluate.methods import canonical_from_stack
from m2s.metrics import dice
from m2s_export.surfaces import surface_p95
from m2s_runtime.bundle import Bundle, load_bundle
from m2s_runtime.engines import Engine, open_engine
from m2s_runtime.grid import PADDING
from m2s_runtime.manifest import GRAPHS
from m2s_runtime.pipeline import Pipeline, Reconstruction
from m2s_runtime.placement import Canonical

KEY = "0" * 64
Arrays = Mapping[str, npt.NDArray[Any]]


class Recorded:
    """An engine that keeps the inputs and outputs of every graph of the heart at hand."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.device, self.threads, self.description = (
            engine.name, engine.device, engine.threads, engine.description
        )  # fmt: skip
        self._engine = engine
        self.calls: list[tuple[str, Arrays, npt.NDArray[Any]]] = []

    def run(self, graph: str, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Pass on, and keep."""
        outputs = self._engine.run(graph, inputs)
        self.calls.append((graph, inputs, next(iter(outputs.values()))))
        return outputs


@dataclass
class Score:
    """One engine over all hearts.

    Attributes:
        engine: what was really bound.
        largest: graph to largest absolute difference, over all hearts and steps.
        codes_agree: least share of a heart's latent cells with the same code.
        dice: of each heart's masks, this engine's and the reference's.
        p95_mm: of each heart's surfaces, greater of the two directed 95th percentiles.
        truth: Dice of each heart with the truth.
        cpu_seconds: of each heart's whole run.
        wall_seconds: the same by the clock.
    """

    engine: str
    largest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GRAPHS, 0.0))
    codes_agree: float = 1.0
    dice: list[float] = field(default_factory=list)
    p95_mm: list[float] = field(default_factory=list)
    truth: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)

    def compare_graphs(self, engine: Engine, calls: list[tuple[str, Arrays, npt.NDArray[Any]]]) -> None:
        """Run every recorded call on `engine`."""
        for graph, inputs, wanted in calls:
            found = next(iter(engine.run(graph, inputs).values()))
            off = np.abs(found - wanted)
            self.largest[graph] = max(self.largest[graph], float(off.max()))
            if graph == "encode":
                self.codes_agree = min(
                    self.codes_agree, float((off <= 1e-4 + 1e-3 * np.abs(wanted)).all(axis=1).mean())
                )

    def compare_surfaces(self, found: Reconstruction, wanted: Reconstruction, heart: Heart) -> None:
        """Add the end metrics of one heart."""
        self.dice.append(dice(found.sdg < 0, wanted.sdg < 0))
        self.p95_mm.append(surface_p95(found.mesh, wanted.mesh))
        self.truth.append(dice(found.sdg[:, :, PADDING:-PADDING] < 0, heart.mask))


def timed(score: Score, bundle: Bundle, engine: Engine, stack: Canonical, steps: int | None) -> Reconstruction:
    """One whole run."""
    reconstructor = Pipeline(bundle, engine, steps=steps, threads=engine.threads)
    cpu, wall = time.process_time(), time.perf_counter()
    result = reconstructor.reconstruct(stack, KEY)
    score.cpu_seconds.append(time.process_time() - cpu)
    score.wall_seconds.append(time.perf_counter() - wall)
    return result


def opened(bundle: Bundle, told: str, threads: int) -> Engine:
    """The engine that NAME[:PRECISION][@DEVICE] means."""
    rest, _, device = told.partition("@")
    name, _, precision = rest.partition(":")
    return open_engine(bundle, name, device or "auto", threads, precision=precision or "auto")


def hearts_of(atlas: Path | None, count: int) -> Iterator[Heart]:
    """Those to compare on."""
    return islice(validation_hearts(atlas), count) if atlas else (phantom(seed) for seed in range(count))


def compare(bundle: Bundle, engines: list[Engine], hearts: Iterator[Heart], steps: int | None) -> list[Score]:
    """A score for each engine; the first is compared with itself in surfaces only."""
    scores = [Score(engine.description) for engine in engines]
    for heart in hearts:
        stack = canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0), PAPER))
        recorded = Recorded(engines[0])
        wanted = timed(scores[0], bundle, recorded, stack, steps)
        scores[0].compare_surfaces(wanted, wanted, heart)
        for engine, score in zip(engines[1:], scores[1:], strict=True):
            score.compare_graphs(engine, recorded.calls)
            score.compare_surfaces(timed(score, bundle, engine, stack, steps), wanted, heart)
    return scores


def table(scores: list[Score]) -> str:
    """Markdown."""
    head = ("engine", *GRAPHS, "codes agree", "least Dice between", "p95 mm, mean", "p95 mm, largest",
            "Dice with the truth", "CPU s a heart", "s a heart")  # fmt: skip
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for score in scores:
        cells = [f"{score.largest[graph]:.1e}" for graph in GRAPHS]
        cells += [f"{score.codes_agree:.3%}", f"{min(score.dice):.5f}", f"{np.mean(score.p95_mm):.4f}"]
        cells += [f"{max(score.p95_mm):.4f}", f"{np.mean(score.truth):.4f}"]
        cells += [f"{np.median(score.cpu_seconds):.2f}", f"{np.median(score.wall_seconds):.2f}"]
        rows.append(f"| {score.engine} | {' | '.join(cells)} |")
    return "\n".join(rows)


@click.command()
@click.argument("engines", nargs=-1, required=True)
@click.option("--model", help="Bundle folder or name.  [default: the installed one]")
@click.option("--hearts", type=click.IntRange(1), default=20, show_default=True)
@click.option("--atlas", type=click.Path(exists=True, file_okay=False, path_type=Path), help="CAP MESA shape atlas.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps.  [default: the bundle's]")
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON with every heart.")
def main(
    engines: tuple[str, ...], model: str | None, hearts: int, atlas: Path | None, steps: int | None, threads: int,
    out: Path | None,
) -> None:  # fmt: skip
    """Compare ENGINES, NAME[:PRECISION][@DEVICE] each, with the first of them."""
    bundle = load_bundle(model)
    scores = compare(bundle, [opened(bundle, told, threads) for told in engines], hearts_of(atlas, hearts), steps)
    kind = "of the atlas" if atlas else "that are procedural"
    click.echo(f"bundle {bundle.name} ({bundle.sha256[:12]}), {hearts} heart(s) {kind}\n")
    click.echo(table(scores))
    if out:
        document = {"bundle": bundle.sha256, "hearts": "atlas" if atlas else "procedural", "steps": steps}
        out.write_text(json.dumps({**document, "engines": [asdict(score) for score in scores]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
