"""Stages of a heart as stacked bars, a bar a line."""

import itertools
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from m2s.bench.result import LineResult


def draw(lines: Sequence[LineResult], path: Path) -> None:
    """Write a PNG.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    figure_type: Any = import_module("matplotlib.figure").Figure
    colours: Any = import_module("matplotlib").colormaps["tab20"].colors  # there are more stages than usual colours
    measured = {line.name: line.hearts.stages for line in lines if line.hearts}
    names = list(dict.fromkeys(name for stages in measured.values() for name in stages))
    figure = figure_type(figsize=(9, 1.2 + 0.5 * len(measured)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(measured)
    for colour, name in zip(itertools.cycle(colours), names, strict=False):
        widths = [stages[name].mean if name in stages else 0.0 for stages in measured.values()]
        axes.barh(list(measured), widths, left=left, label=name, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("mean seconds a heart, file in, files out")
    axes.legend(ncols=5, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=120)
