"""Pictures of reconstructed surfaces beside the slices they came from, to be looked at by a person.

    python benchmarks/contact_sheet.py MESHES INPUTS --labels acdc --out sheet.png

MESHES is a folder that `m2s-run --out` wrote (in PLY), INPUTS the folder that it read. Both panels of a case share one
view: the base on top, seen 20 degrees from above.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import trimesh
from skimage.measure import find_contours

from m2s_runtime.labels import wall_mask
from m2s_runtime.placement import canonicalise, slice_axis
from m2s_runtime.volume import read_study

mpl.use("Agg")  # draws to files only: no display is needed
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

ELEVATION = np.radians(20)
TURN = np.radians(35)
COLOUR = np.array([0.80, 0.36, 0.30])


@dataclass(frozen=True)
class Camera:
    """Orthographic view of a heart: rows are right, up and towards the viewer, in world axes."""

    axes: Floats

    @classmethod
    def at(cls, grid_to_world: Floats) -> "Camera":
        """Look at a placed canonical grid from the side, its base on top."""
        x, y, z = (column / np.linalg.norm(column) for column in grid_to_world[:3, :3].T)
        side = np.cos(TURN) * x + np.sin(TURN) * y
        toward = np.cos(ELEVATION) * side - np.sin(ELEVATION) * z
        up = -np.cos(ELEVATION) * z - np.sin(ELEVATION) * side
        return cls(np.stack([np.cross(up, toward), up, toward]))

    def project(self, points: Floats) -> Floats:
        """World mm (..., 3) to right, up, towards the viewer."""
        return points @ self.axes.T


@dataclass(frozen=True)
class Case:
    """One line of `cases.csv`."""

    name: str
    source: Path
    frame: int
    mesh: Path
    caption: str


def read_mesh(path: Path) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Vertices in world RAS mm and faces of a PLY file, whichever space its comment names."""
    mesh = trimesh.load_mesh(path, process=False)
    vertices = np.asarray(mesh.vertices, np.float64)
    lps = b"SPACE=LPS" in path.read_bytes()[:1000]
    return vertices * (-1, -1, 1) if lps else vertices, np.asarray(mesh.faces)


def contours(wall: npt.NDArray[np.bool_], affine: Floats, axis: int) -> Iterator[Floats]:
    """Outlines of the wall in every slice, (N, 3) world mm each."""
    order = [a for a in range(3) if a != axis] + [axis]
    stack, placed = np.transpose(wall, order), affine[:, [*order, 3]]
    for s in np.flatnonzero(stack.any(axis=(0, 1))):
        for line in find_contours(np.pad(stack[:, :, s], 1).astype(np.float32), 0.5):
            indices = np.column_stack([line - 1, np.full(len(line), s), np.ones(len(line))])
            yield (indices @ placed.T)[:, :3]


def draw_surface(axes: Axes, camera: Camera, vertices: Floats, faces: npt.NDArray[np.int64]) -> None:
    """Shade triangles by their normals and paint them from far to near."""
    corners = camera.project(vertices)[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    light = np.array([-0.3, 0.5, 0.8]) / np.linalg.norm([-0.3, 0.5, 0.8])
    shade = 0.35 + 0.65 * np.clip(normals @ light, 0, 1)
    order = np.argsort(corners[:, :, 2].mean(axis=1))
    order = order[normals[order, 2] > 0]
    colours = np.clip(shade[order, None] * COLOUR + 0.12 * shade[order, None] ** 8, 0, 1)
    axes.add_collection(
        PolyCollection(list(corners[order, :, :2]), facecolors=colours, edgecolors=colours, linewidths=0.2)
    )


def draw_slices(axes: Axes, camera: Camera, lines: list[Floats]) -> None:
    """Outlines of the slices, darker towards the viewer."""
    projected = [camera.project(line) for line in lines]
    depth = np.array([line[:, 2].mean() for line in projected])
    near = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
    colours = [(0.15, 0.3, 0.6, 0.55 + 0.45 * n) for n in near]
    axes.add_collection(LineCollection([line[:, :2] for line in projected], colors=colours, linewidths=0.9))


def read_cases(meshes: Path, inputs: Path) -> list[Case]:
    """The cases of a run that have a mesh."""
    table = meshes / "cases.csv"
    if not table.is_file():
        raise click.UsageError(f"{table} is not there: give the folder that m2s-run wrote")
    cases: list[Case] = []
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            mesh = meshes / row["case"] / f"{row['case']}.ply"
            if row["status"] == "ok" and mesh.is_file():
                caption = f"{row['case']}\n{row['slices']} slices, {float(row['step_mm']):g} mm, {row['flags']}"
                cases.append(
                    Case(row["case"], inputs / row["input"], int(row["frame"] or 0), mesh, caption.rstrip(" ,"))
                )
    return cases


def draw(case: Case, scheme: str, left: Axes, right: Axes) -> None:
    """Slices on the left, surface on the right, at one scale."""
    study = read_study(case.source)
    wall, _ = wall_mask(study.labels, scheme, slice_axis(study.affine))
    frame = wall[..., case.frame] if wall.ndim == 4 else wall
    placement = canonicalise(frame, study.affine).placement
    camera = Camera.at(placement.affine)
    lines = list(contours(frame, study.affine, placement.slice_axis))
    vertices, faces = read_mesh(case.mesh)
    draw_slices(left, camera, lines)
    draw_surface(right, camera, vertices, faces)
    seen = camera.project(np.concatenate([vertices, *lines]))[:, :2]
    low, high = seen.min(axis=0) - 3, seen.max(axis=0) + 3
    for axes in (left, right):
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
        axes.axis("off")
    left.set_title(case.caption, fontsize=7, loc="left")


@click.command()
@click.argument("meshes", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("inputs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--labels", default="auto", show_default=True, help="Label scheme, as in m2s-run.")
@click.option("--count", type=click.IntRange(1), default=12, show_default=True, help="Cases, spread over the run.")
@click.option("--case", "names", multiple=True, help="These cases instead; may be repeated.")
@click.option("--columns", type=click.IntRange(1), default=4, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("contact_sheet.png"))
def main(meshes: Path, inputs: Path, labels: str, count: int, names: tuple[str, ...], columns: int, out: Path) -> None:
    """Draw a contact sheet of a run of m2s-run."""
    cases = [case for case in read_cases(meshes, inputs) if not names or case.name in names]
    if not cases:
        raise click.UsageError(f"{meshes} holds no finished case in PLY (m2s-run --format ply)")
    if not names and count < len(cases):
        cases = [cases[round(i * (len(cases) - 1) / max(count - 1, 1))] for i in range(count)]
    rows = -(-len(cases) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.3 * rows), dpi=130, layout="tight")
    grid = np.atleast_2d(figure.subplots(rows, 2 * columns, squeeze=False))
    for axes in grid.flat:
        axes.axis("off")
    for i, case in enumerate(cases):
        row, column = divmod(i, columns)
        draw(case, labels, grid[row, 2 * column], grid[row, 2 * column + 1])
    figure.savefig(out)
    click.echo(out)


if __name__ == "__main__":
    main()
