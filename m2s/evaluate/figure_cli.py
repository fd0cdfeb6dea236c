"""`m2s-eval figure`: one heart by all methods, as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from m2s.evaluate.options import FILE, FOLDER, Choice, check_law, choosing, setup_of, source
from m2s_runtime.errors import UsageProblem

if TYPE_CHECKING:
    from m2s.data.heart import Heart
    from m2s.data.labelmaps import Phase
    from m2s.data.simulate import Masks


class Scene(TypedDict):
    """Which stack of which heart is drawn."""

    atlas: Path | None
    label_maps: Path | None
    row: int
    phase: "Phase | None"
    draw: int | None
    law: str | None
    clinical: bool


class FigureOptions(Scene, Choice):
    """All of the command but the file."""


@click.command()
@click.option("--atlas", type=FOLDER, default=None, help="Folder of the CAP MESA shape atlas.")
@click.option("--label-maps", type=FOLDER, default=None, help="Or folder of the paper's data set.")
@click.option(
    "--row", type=int, required=True, help="Validation row of the atlas, 1400, 1403 …, or number of a subject."
)
@click.option(
    "--phase",
    type=click.Choice(["ED", "ES"]),
    default=None,
    help="Of a subject, ED unless told otherwise; even rows of the atlas are ED, odd ones ES.",
)
@click.option("--draw", type=click.IntRange(0), default=None, help="Number of a simulated stack, 0 unless told.")
@click.option(
    "--law", default=None, help="Of simulated motion: paper (unless told), positive, normal:SD or one-off:MM."
)
@click.option(
    "--clinical",
    "--stand-in",
    "clinical",
    is_flag=True,
    help="Instead of a simulated stack the subject's acquired one, or with --atlas the clinical stand-in's.",
)
@click.option("--out", type=FILE, required=True, help="Picture; written as PNG and as PDF.")
@choosing
def figure(out: Path, **options: Unpack[FigureOptions]) -> None:
    """One heart reconstructed by every --method, coloured by the distance to the truth; like the paper's Fig. 2."""
    from m2s.baselines.registry import BASELINES
    from m2s.evaluate.figure import row_of, write_row
    from m2s.evaluate.hearts import heart_truth
    from m2s.evaluate.published import title_of
    from m2s.evaluate.tables import LEGEND, MARKS
    from m2s.evaluate.trained import trained
    from m2s_runtime.surface import Mesh

    _check(options)
    setup = setup_of(options)
    opened = setup.methods()
    sizes = {name: trained(name, setup.run_of(name)).size for name in setup.names if name in BASELINES}
    methods = {title_of(name) + MARKS.get(sizes.get(name, ""), ""): opened[name] for name in setup.names}
    slices, step_mm, heart = _scene(options, options["seed"])
    surface = Mesh(heart.grid_vertices, heart.faces)
    note = "; ".join(LEGEND[size] for size in dict.fromkeys(sizes.values()) if size in LEGEND)
    drawn = row_of(methods, slices, step_mm, heart_truth(heart), surface, note)
    for panel in drawn.panels:
        click.echo(" ".join([panel.title, *panel.figures]))
    for file in write_row(drawn, out):
        click.echo(str(file))


def _check(scene: Scene) -> None:
    """Refuse what would have no effect, and a law that nobody knows."""
    _, mapped = source(scene["atlas"], scene["label_maps"])
    if not mapped and scene["phase"] is not None:
        raise UsageProblem("--phase: the row of the atlas decides it, even ones are ED and odd ones ES; leave it away")
    if scene["clinical"] and scene["law"] is not None:
        raise UsageProblem("--law is of simulated motion: leave it or --clinical away")
    if mapped and scene["clinical"] and scene["draw"] is not None:
        raise UsageProblem("--draw: an acquired stack is one stack; leave it away")
    check_law(scene["law"] or "paper")


def _scene(scene: Scene, seed: int) -> "tuple[Masks, float, Heart]":
    """Slices (128, 128, 12), mm between them, and the heart that they were taken of, as the tables have them."""
    from m2s.data.clinical import read_pair
    from m2s.data.labelmaps import LabelMaps
    from m2s.data.stand_in import stand_in_stack
    from m2s.evaluate.hearts import Cohort, base_heart
    from m2s.evaluate.settings import map_heart

    (folder, mapped), row, phase = source(scene["atlas"], scene["label_maps"]), scene["row"], scene["phase"] or "ED"
    if mapped:
        maps = LabelMaps(folder)
        if not scene["clinical"]:
            return _simulated(maps.high(row, phase).heart(), scene, seed)
        pair, step_mm = read_pair(maps, row, phase), maps.low(row, phase).placement.step_mm
        return pair.slices, step_mm, map_heart(pair.id, pair.mask, step_mm)
    heart = base_heart(Cohort(folder), row)
    if not scene["clinical"]:
        return _simulated(heart, scene, seed)
    scan = stand_in_stack(heart, scene["draw"] or 0, seed)
    return scan.slices, scan.step_mm, scan.heart


def _simulated(heart: "Heart", scene: Scene, seed: int) -> "tuple[Masks, float, Heart]":
    from m2s.data.simulate import draw_rng, simulate_stack
    from m2s.evaluate.laws import motion_law
    from m2s_runtime.grid import UPSAMPLING

    rng = draw_rng(heart.id, scene["draw"] or 0, seed)
    stack = simulate_stack(heart.mask, rng, motion_law(scene["law"] or "paper", heart.mask))
    return stack.slices, heart.plane_mm * UPSAMPLING, heart
