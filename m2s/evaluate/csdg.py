"""What exact distances to the surface buy: the same coarse hearts under the condition that each C-SDG makes of them.

Networks are the bundle's, which were trained on exact C-SDGs; stack, noise and steps are the same in every row.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from m2s.baselines.method import BoolArray, FloatArray, Method
from m2s.evaluate.coarse import shared
from m2s.evaluate.hearts import Cohort
from m2s.evaluate.scores import Row
from m2s.evaluate.steps import Way, sampled
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.edge_distance import edge_distance
from m2s_runtime.grid import GRID, SPACING
from m2s_runtime.mesh_distance import vertex_distance
from m2s_runtime.surface import contour

COLUMNS: Final = ("dice", "cd", "assd", "hd95", "csdg_error", "csdg_seconds")


def exact_distance(mask: BoolArray) -> FloatArray:
    """Signed distance to the surface: `coarse_sdg`, by libigl where no kernel was compiled, never to the vertices.

    Args and returns as there.

    Raises:
        EmptyWall: no voxel is set.
        EngineError: there is neither the kernel nor libigl.
    """
    return coarse_sdg(mask, exact=True)


def nearest_vertex(mask: BoolArray) -> FloatArray:
    """Signed distance to the nearest vertex of the same surface: what the runtime takes where no kernel was compiled.

    Args and returns as of `coarse_sdg`.
    """
    vertices, _ = contour(mask.astype(np.float32), mask, 0.5, 0.0, "lewiner")
    distance = vertex_distance(vertices, GRID, SPACING)
    return np.where(mask, -distance, distance)


def distance_transform(mask: BoolArray) -> FloatArray:
    """Distance to the nearest voxel centre of the other side, see `edge_distance`; no surface is asked.

    Args and returns as of `coarse_sdg`.
    """
    return edge_distance(mask, SPACING).astype(np.float32)


KINDS: Final[Mapping[str, Callable[[BoolArray], FloatArray]]] = {
    "exact distance to the surface": exact_distance,
    "distance to the nearest vertex": nearest_vertex,
    "Euclidean distance transform": distance_transform,
}


@dataclass(frozen=True)
class CsdgStack:
    """One stack of one heart, as a unit of work for the method `ours`."""

    cohort: Cohort
    row: int
    draw: int
    seed: int = 0
    law: str = "paper"

    @property
    def name(self) -> str:
        """What it is."""
        return f"csdg, {self.cohort.name} {self.row}, {self.law}, draw {self.draw}, {self.cohort.mark}"

    def rows(self, methods: Mapping[str, Method]) -> Iterator[Row]:
        """One row a C-SDG; `csdg_seconds` is its CPU time, `csdg_error` the mean distance from the exact one in mm."""
        found = shared(methods, self.cohort, self.row, self.draw, self.seed, self.law)
        pipeline, wall = found.pipeline, found.result.probability >= 0.5
        way, exact = Way(pipeline.sampling.steps, pipeline.sampling.temperature), exact_distance(wall)
        for kind, made in KINDS.items():
            began = time.process_time()
            csdg = made(wall)
            seconds = time.process_time() - began
            zc = pipeline.engine.run("encode", {"csdg": csdg[None, None]})["zc"]
            sdg = sampled(pipeline.engine, pipeline.manifest, way, csdg, zc, found.key, self.seed)
            facts: Row = {"subject": found.subject.heart.id, "draw": self.draw, "method": "ours", "csdg": kind}
            error = float(np.abs(csdg - exact).mean())
            yield facts | found.score(sdg) | {"csdg_error": error, "csdg_seconds": seconds}


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines of the table: one a C-SDG, in the order of `KINDS`; a stack that was refused counts against each."""
    refused = [row for row in rows if row.get("error")]
    return {kind: mine + refused for kind in KINDS if (mine := [row for row in rows if row.get("csdg") == kind])}
