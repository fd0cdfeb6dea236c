"""A picture of template fits, to be looked at by a person: the worst ones and some typical ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from m2s.data.fit_file import Fit, read_fit
from m2s.shading import paint
from m2s_runtime.grid import PADDING, PLANES, SPACING
from m2s_runtime.surface import Mesh

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from m2s.data.prepare import Row

SHOWN: Final = 6
"""Of the worst, and of the others."""
_COLOUR: Final = (0.80, 0.36, 0.30)


def chosen(rows: "Sequence[Row]") -> "list[Row]":
    """Up to six of the worst, unusable ones first and then by mean distance, and six spread over the rest."""
    ranked = sorted(rows, key=lambda r: (r.usable == "yes", -r.quality.mean_mm if r.quality else 0.0, r.case))
    worst, rest = ranked[:SHOWN], ranked[SHOWN:]
    if len(rest) <= SHOWN:
        return worst + rest
    return worst + [rest[round(k * (len(rest) - 1) / (SHOWN - 1))] for k in range(SHOWN)]


def draw_sheet(folder: Path, rows: "Sequence[Row]", picture: Path) -> None:
    """Draw fits: mask and contour of the fit in one short-axis and two long-axis planes, and the fitted surface.

    Args:
        folder: holds the fits.
        rows: with a quality; none, and nothing is drawn.
        picture: PNG to write.
    """
    from matplotlib.figure import Figure  # no pyplot: draws to files only, no display is needed

    shown = chosen(rows)
    if not shown:
        return
    figure = Figure(figsize=(9.0, 2.3 * len(shown)), dpi=110, layout="tight")
    grid = np.atleast_2d(figure.subplots(len(shown), 4, squeeze=False))
    for axes, row in zip(grid, shown, strict=True):
        fit = read_fit(folder, row.case)
        _draw_cuts(axes[:3], fit)
        paint(axes[3], Mesh(fit.heart.vertices, fit.heart.faces), _COLOUR)
        quality = fit.quality
        title = f"{row.case}  {quality.mean_mm:.2f} mm, p95 {quality.p95_mm:.2f}, Dice {quality.dice:.3f}"
        axes[0].set_title(f"{title}  {row.message}".rstrip(), fontsize=7, loc="left")
    temporary = picture.with_suffix(".part.png")
    figure.savefig(temporary)
    temporary.replace(picture)


def _draw_cuts(axes: "Sequence[Axes]", fit: Fit) -> None:
    mask, sdg = fit.heart.mask, fit.sdg[:, :, PADDING : PADDING + PLANES].astype(np.float32)
    middle = [int(np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {a})))[[0, -1]].mean()) for a in range(3)]
    for panel, axis in zip(axes, (2, 0, 1), strict=True):
        across, up = (a for a in range(3) if a != axis)
        # Base on top: index 0 along z is drawn first.
        extent = (-0.5 * SPACING[across], (mask.shape[across] - 0.5) * SPACING[across],
                  (mask.shape[up] - 0.5) * SPACING[up], -0.5 * SPACING[up])  # fmt: skip
        panel.imshow(mask.take(middle[axis], axis).T, cmap="Greys", vmax=3, extent=extent, interpolation="nearest")
        x, y = np.arange(mask.shape[across]) * SPACING[across], np.arange(mask.shape[up]) * SPACING[up]
        section = sdg.take(middle[axis], axis).T
        if section.min() < 0 < section.max():
            panel.contour(x, y, section, levels=[0.0], colors="tab:red", linewidths=0.8)
        panel.set(aspect="equal")
        panel.axis("off")
