"""How well a spread could rank the errors if the truth were one more posterior sample.

    python benchmarks/spread_ceiling.py --atlas DATA/cap_mesa_lv_pca --hearts 20 --samples 9

Of every stack each sample in turn plays the truth: Spearman's correlation of the distance to its surface with the
spread of the others, at vertices of the surface of their mean. As in `m2s-eval spread`, but for the true surface.
"""

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from m2s.baselines.method import GRID_TO_MM
from m2s.evaluate.coarse import Shared, shared
from m2s.evaluate.hearts import Cohort
from m2s.evaluate.methods import canonical_from_stack
from m2s.evaluate.networks import ModelOptions
from m2s.evaluate.work import Setup
from m2s.metrics import spearman
from m2s.triangles import TriangleIndex
from m2s_runtime.clock import Clock
from m2s_runtime.one_pass import OnePass
from m2s_runtime.pipeline import given_slices
from m2s_runtime.sampling import chosen_sampling, mean_sdg, vertex_spread
from m2s_runtime.surface import extract_surface

Floats = npt.NDArray[np.float32]

VERTICES = 2000


def posterior(found: Shared, samples: int) -> Floats:
    """Samples of one stack under the shifts found, (N, 128, 128, 64) mm."""
    manifest, stack = found.pipeline.manifest, canonical_from_stack(found.stack)
    one = OnePass(
        manifest, found.pipeline.engine, sampling=chosen_sampling(manifest, None, None, samples), seed=0, threads=1,
        samples=samples, exact=False,
    )  # fmt: skip
    return one.run(stack, *given_slices(manifest, stack), found.result.shifts[None], found.key, Clock()).sdgs


def correlations(sdgs: Floats) -> Iterator[float]:
    """One for each sample that plays the truth."""
    for index, truth in enumerate(sdgs):
        others = np.delete(sdgs, index, axis=0)
        mean = mean_sdg(others)
        vertices = extract_surface(mean, GRID_TO_MM).vertices
        chosen = vertices[np.random.default_rng(0).permutation(len(vertices))[:VERTICES]]
        spread = vertex_spread(chosen, GRID_TO_MM, others).astype(np.float64)
        yield spearman(spread, TriangleIndex.of(extract_surface(truth, GRID_TO_MM)).distance(chosen))


@click.command()
@click.option("--atlas", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--hearts", type=click.IntRange(1), default=20, show_default=True)
@click.option("--samples", type=click.IntRange(3), default=9, show_default=True)
@click.option("--model", default=None, help="Bundle; the installed one.")
def main(atlas: Path, hearts: int, samples: int, model: str | None) -> None:
    """Print the mean over stacks and samples."""
    cohort, methods = Cohort(atlas), Setup(("ours",), ModelOptions(model=model)).methods()
    found: list[float] = []
    for row in cohort.rows[:hearts]:
        stack = shared(methods, cohort, row, 0, 0, "paper")
        found.append(float(np.mean(list(correlations(posterior(stack, samples))))))
        click.echo(f"row {row}: {found[-1]:.3f}")
    click.echo(f"Spearman of a sample as the truth: {np.mean(found):.3f} ± {np.std(found):.3f}, {len(found)} stacks")


if __name__ == "__main__":
    main()
