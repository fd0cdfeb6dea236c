"""The 17 segments of the left ventricle (Cerqueira et al., Circulation 2002;105:539): which point belongs where.

Rings are thirds of the cavity's length, base plane to its end; beyond lies the apex (17). Within a ring the anterior
insertion of the right ventricle parts segment 1 from 2, whence the six of the basal and the middle ring span 60 degrees
each; the four of the apical ring span 90, with 13 and 14 centred on the middle of the anterior wall and of the septum.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.cavity import Cavity
from m2s_runtime.grid import SPACING
from m2s_runtime.septum import Septum
from m2s_runtime.thickness import Thickness

Vectors = npt.NDArray[np.float64]
Segments = npt.NDArray[np.uint8]

SEGMENTS: Final = 17

NAMES: Final = (
    "basal anterior", "basal anteroseptal", "basal inferoseptal", "basal inferior", "basal inferolateral",
    "basal anterolateral", "mid anterior", "mid anteroseptal", "mid inferoseptal", "mid inferior", "mid inferolateral",
    "mid anterolateral", "apical anterior", "apical septal", "apical inferior", "apical lateral", "apex",
)  # fmt: skip
"""Of segments 1 to 17."""

LEAST_POINTS: Final = 4
"""A segment with fewer points measured has no mean."""

_SIX: Final = np.array([1, 6, 5, 4, 3, 2], np.uint8)
"""Of the basal ring, from the anterior insertion over the anterior wall, 60 degrees each."""

_FOUR: Final = np.array([13, 16, 15, 14], np.uint8)
"""Of the apical ring, from 15 degrees before the anterior insertion, 90 degrees each."""


def segments_of(vertices: Vectors, cavity: Cavity, apex: float, septum: Septum) -> Segments:
    """The segment of each point, (V,) uint8; 0 above the base plane.

    Args:
        vertices: (V, 3) in voxels.
        cavity: what the wall encloses.
        apex: level of the cavity's end.
        septum: where the right ventricle inserts.
    """
    level = (vertices[:, 2] - cavity.base) / (apex - cavity.base)
    plane = np.rint(vertices[:, 2]).astype(np.int64).clip(0, len(cavity.centres) - 1)
    x, y = ((vertices[:, :2] - cavity.centres[plane]) * SPACING[:2]).T
    turned = np.degrees(septum.turn * (np.arctan2(y, x) - septum.insertion)) % 360
    basal = _SIX[(turned // 60).astype(np.int64) % 6]
    apical = _FOUR[((turned + 15) % 360 // 90).astype(np.int64) % 4]
    found = np.where(level < 1 / 3, basal, np.where(level < 2 / 3, basal + np.uint8(6), apical))
    return np.where(level > 1, np.uint8(SEGMENTS), np.where(level < 0, np.uint8(0), found)).astype(np.uint8)


def segment_means(segments: Segments, measured: Thickness) -> tuple[float | None, ...]:
    """Mean thickness (mm) of segments 1 to 17: of what is measured from inside and from outside, both alike."""
    sides: list[Vectors] = []
    for side in (measured.endo, measured.epi):
        of, areas = segments[side], measured.areas[side]
        count, area, total = (
            np.bincount(of, weights, SEGMENTS + 1)[1:] for weights in (None, areas, areas * measured.thickness[side])
        )
        sides.append(np.divide(total, area, out=np.full(SEGMENTS, np.nan), where=count >= LEAST_POINTS))
    known = [[mean for mean in both if np.isfinite(mean)] for both in zip(*sides, strict=True)]
    return tuple(float(np.mean(means)) if means else None for means in known)


_RADII: Final = (25.0, 50.0, 75.0, 98.0)
"""Of apex, apical, middle and basal ring in the drawing."""

_COLOURS: Final = ("#fde0c5", "#facba6", "#f8b58b", "#f2855d", "#dd5342", "#b5304a", "#7a1f4d")
"""Thin to thick, light to dark: they stay in order without colour vision and on paper."""


def bulls_eye_svg(values: Sequence[float | None], low: float = 4.0, high: float = 16.0) -> str:
    """Draw 17 values as a bull's eye: anterior wall on top, septum on the left, apex in the middle.

    Args:
        values: mm, of segments 1 to 17; None is left blank.
        low: value of the lightest colour; the scale is the same for all hearts unless the caller has it otherwise.
        high: value of the darkest one.

    Returns:
        An `<svg>` element without styles and scripts; lines and what is written beside the segments take the colour of
        the text around it.

    Raises:
        ValueError: not 17 values.
    """
    parts = [_segment(n, value, low, high) for n, value in enumerate(values, 1)]
    if len(parts) != SEGMENTS:
        raise ValueError(f"a bull's eye has {SEGMENTS} segments, not {len(parts)}")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-102 -102 204 226" role="img" font-family="sans-serif"'
        ' font-size="9" text-anchor="middle" stroke-width="1">'
        "<title>Wall thickness in the 17 segments (AHA), mm</title>" + "".join(parts) + _scale(low, high) + "</svg>"
    )


def _segment(number: int, value: float | None, low: float, high: float) -> str:
    """One segment with its value, and for whoever points at it or has it read out its name."""
    fill, ink = ("none", "currentColor") if value is None else _colour((value - low) / (high - low))
    text, told = ("\u2013", "withheld") if value is None else (f"{value:.1f}", f"{value:.1f} mm")
    if number == SEGMENTS:
        shape, x, y = f'<circle r="{_RADII[0]:g}" fill="{fill}" stroke="currentColor"/>', 0.0, 0.0
    else:
        ring, start, span = _place(number)
        middle, radius = np.radians(start + span / 2), (_RADII[ring] + _RADII[ring + 1]) / 2
        shape = f'<path d="{_outline(ring, start, span)}" fill="{fill}" stroke="currentColor"/>'
        x, y = radius * np.cos(middle), -radius * np.sin(middle)
    label = f'<text x="{x:.1f}" y="{y + 3:.1f}" fill="{ink}">{text}</text>'
    return f"<g><title>{number} {NAMES[number - 1]}: {told}</title>{shape}{label}</g>"


def _place(number: int) -> tuple[int, float, float]:
    """Ring from the inside (0 to 2), angle at which a segment starts (degrees, 0 right, 90 up) and how far it goes."""
    if number > 12:
        return 0, 45 + 90 * (number - 13), 90
    return (2, 60 + 60 * (number - 1), 60) if number <= 6 else (1, 60 + 60 * (number - 7), 60)


def _outline(ring: int, start: float, span: float) -> str:
    inner, outer = _RADII[ring], _RADII[ring + 1]
    (ax, ay), (bx, by) = ((np.cos(a), -np.sin(a)) for a in np.radians([start, start + span]))
    return (
        f"M{inner * ax:.2f} {inner * ay:.2f}L{outer * ax:.2f} {outer * ay:.2f}"
        f"A{outer:g} {outer:g} 0 0 0 {outer * bx:.2f} {outer * by:.2f}L{inner * bx:.2f} {inner * by:.2f}"
        f"A{inner:g} {inner:g} 0 0 1 {inner * ax:.2f} {inner * ay:.2f}Z"
    )


def _colour(part: float) -> tuple[str, str]:
    """Fill, and an ink that can be read on it."""
    step = int(np.clip(part * len(_COLOURS), 0, len(_COLOURS) - 1))
    return _COLOURS[step], "#000" if step < 4 else "#fff"


def _scale(low: float, high: float) -> str:
    width = 100 / len(_COLOURS)
    boxes = "".join(
        f'<rect x="{-50 + width * k:.2f}" y="106" width="{width:.2f}" height="8" fill="{colour}"/>'
        for k, colour in enumerate(_COLOURS)
    )
    ends = f'<text x="-62" y="114">{low:g}</text><text x="72" y="114">{high:g} mm</text>'
    return f'<g fill="currentColor">{boxes}{ends}</g>'
