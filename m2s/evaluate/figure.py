"""A picture like the paper's Fig. 2: one heart by all methods, coloured by the distance to the truth."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from m2s.baselines.method import Method, from_mask
from m2s.data.simulate import Masks
from m2s.evaluate.methods import spacing_of
from m2s.evaluate.scores import Truth, score
from m2s.shading import paint, project
from m2s_runtime.atomic import write_bytes
from m2s_runtime.errors import CaseError
from m2s_runtime.grid import PLANES, UPSAMPLING
from m2s_runtime.surface import Mesh

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Doubles = npt.NDArray[np.float64]

_PLAIN: Final = (0.80, 0.79, 0.76)
_MAP: Final = "OrRd"
_SHARE: Final = 98.0
"""Percentile of all distances where the colours end."""
_WIDTH_IN: Final = 1.55
_MARGIN_MM: Final = 3.0
_LETTERS: Final = 17
"""Of a title in a line."""
_SLAB: Final = slice(1, 4)
"""Planes of each block that a slice is drawn as: 6 of 10 mm, so that one sees between them."""
FORMATS: Final = (".png", ".pdf")


@dataclass(frozen=True)
class Panel:
    """One surface of the row.

    Attributes:
        title: above it.
        mesh: mm in the grid's own frame; None where the method refused the stack.
        distance: (V,) float64 mm of each vertex to the truth, None for what is drawn plain.
        figures: lines below it.
    """

    title: str
    mesh: Mesh | None
    distance: Doubles | None = None
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """The whole picture: panels, and what is said below them."""

    panels: tuple[Panel, ...]
    note: str = ""
    limit_mm: float = field(init=False)
    """Where the colours end: whole millimetres above nearly all distances."""

    def __post_init__(self) -> None:
        """Find the limit."""
        found = [panel.distance for panel in self.panels if panel.distance is not None]
        most = float(np.percentile(np.concatenate(found), _SHARE)) if found else 1.0
        object.__setattr__(self, "limit_mm", max(float(np.ceil(most)), 1.0))


def row_of(
    methods: Mapping[str, Method], slices: Masks, step_mm: float, truth: Truth, surface: Mesh, note: str = ""
) -> Row:
    """Ask every method for the same stack.

    Args:
        methods: by title.
        slices: (128, 128, 12) bool.
        step_mm: between them.
        truth: in the grid's frame.
        surface: of the truth, the same frame.
        note: said below.
    """
    panels = [_panel(title, method, slices, step_mm, truth) for title, method in methods.items()]
    first = Panel("Input stack", slabs(slices, step_mm))
    return Row((first, *panels, Panel("Ground truth", surface)), note)


def slabs(slices: Masks, step_mm: float) -> Mesh:
    """Surface of the slices alone, (128, 128, 12) bool, each three fifths of a step thick."""
    planes = np.zeros((*slices.shape[:2], PLANES), np.bool_)
    for k in range(_SLAB.start, _SLAB.stop):
        planes[:, :, k::UPSAMPLING] = slices
    return from_mask(planes, step_mm, None).surface


def _panel(title: str, method: Method, slices: Masks, step_mm: float, truth: Truth) -> Panel:
    try:
        found = method.predict(slices, spacing_of(step_mm))
        figures = score(found, truth)
    except CaseError as error:
        return Panel(title, None, figures=(f"refused: {error.code}",))
    dice = figures["dice"]
    told = "Dice – (open)" if dice is None else f"Dice {100 * float(dice):.1f} %"
    distance = truth.surface.index.distance(found.surface.vertices)
    return Panel(title, found.surface, distance, (told, f"ASSD {float(figures['assd'] or 0):.2f} mm"))


def write_row(row: Row, picture: Path, dpi: int = 300) -> tuple[Path, ...]:
    """Draw the row and write it in every one of `FORMATS`, beside each other; returns the files."""
    drawn = _drawn(row)
    files = tuple(picture.with_suffix(suffix) for suffix in FORMATS)
    for file in files:
        buffer = io.BytesIO()
        # Without a date the same row gives the same bytes.
        plain = {"CreationDate": None} if file.suffix == ".pdf" else {"Software": None}
        drawn.savefig(buffer, format=file.suffix[1:], dpi=dpi, bbox_inches="tight", metadata=plain)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, buffer.getvalue())
    return files


def _drawn(row: Row) -> "Figure":
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure  # no pyplot: draws to files only, no display is needed

    low, high = _extent(row.panels)
    width, height = high - low
    tall = _WIDTH_IN * height / width
    figure = Figure(figsize=(_WIDTH_IN * len(row.panels) + 0.9, tall + 0.8), layout="constrained")
    colours = ScalarMappable(Normalize(0, row.limit_mm), colormaps[_MAP])
    grid = figure.subplots(1, len(row.panels), squeeze=False)[0]
    for axes, panel in zip(grid, row.panels, strict=True):
        _draw(axes, panel, colours)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    bar = figure.colorbar(colours, ax=list(grid), shrink=0.8, aspect=22, pad=0.01, extend="max")
    bar.set_label("distance to the truth (mm)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if row.note:
        figure.supxlabel(row.note, fontsize=7, x=0.01, ha="left", color="0.35")
    return figure


def _draw(axes: "Axes", panel: Panel, colours: "ScalarMappable") -> None:
    axes.set_title(fill(panel.title, _LETTERS), fontsize=10)
    axes.axis("off")
    axes.text(0.5, -0.02, "\n".join(panel.figures), transform=axes.transAxes, ha="center", va="top", fontsize=9)
    if panel.mesh is None:
        return
    if panel.distance is None:
        paint(axes, panel.mesh, _PLAIN)
    else:
        of_face = panel.distance[panel.mesh.faces].mean(axis=1)
        paint(axes, panel.mesh, np.asarray(colours.to_rgba(of_face))[:, :3])


def _extent(panels: Sequence[Panel]) -> tuple[Doubles, Doubles]:
    """Lower left and upper right (2,) mm on paper that hold every surface: one view for all."""
    seen = np.concatenate([project(panel.mesh.vertices)[:, :2] for panel in panels if panel.mesh is not None])
    return seen.min(axis=0) - _MARGIN_MM, seen.max(axis=0) + _MARGIN_MM
