"""`m2s-view`: a case in PyVista, 3D Slicer or ParaView, with the slices it was made from."""

import importlib.util
import io
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from m2s_runtime.console import tell
from m2s_runtime.errors import INTERRUPTED, OK, CaseError, EngineError, Stop, UsageProblem, exit_codes
from m2s_runtime.text import clean

if TYPE_CHECKING:
    from m2s_runtime.scene import Scene

VIEWERS: Final = ("auto", "pyvista", "slicer", "paraview")
_PROGRAMS: Final = {"slicer": "Slicer", "paraview": "paraview"}
_INSTALL: Final = 'pip install "mask2surface[view]"'
_SIZE: Final = (1280, 960)  # pixels


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=exit_codes())
@click.argument("case", type=click.Path(path_type=Path))
@click.option("--mask", type=click.Path(path_type=Path), help="The label map that the case was made from.")
@click.option("--labels", default="auto", show_default=True, help="What its values mean, as for m2s-run.")
@click.option("--frame", type=click.IntRange(0), help="Of a cine.  [default: from the name of the case]")
@click.option("--viewer", type=click.Choice(VIEWERS), default="auto", show_default=True)
@click.option("--screenshot", type=click.Path(path_type=Path), metavar="PNG", help="Write a picture, open nothing.")
@click.option("--print", "show_only", is_flag=True, help="Print the command lines of 3D Slicer and ParaView only.")
def command(case: Path, viewer: str, screenshot: Path | None, *, show_only: bool, **given: Any) -> int:  # noqa: ANN401
    """Open CASE, a case folder that m2s-run left or a mesh file, in a viewer.

    PyVista, where it is installed, shows the surface and, with --mask, the outlines of the slices: grey as acquired,
    red where the reconstruction puts them (for which --save shifts has to have left its file). 3D Slicer opens mesh and
    volumes in place, ParaView the mesh. auto takes the first of these three that is there; when none is, it prints
    how to start the latter two.
    """
    from m2s_runtime.scene import find_scene

    scene, mask = find_scene(case), given["mask"] and given["mask"].absolute()
    volumes = [mask] if mask else scene.volumes
    commands = {
        # Absolute paths: no name can pass for an option.
        "slicer": [_PROGRAMS["slicer"], str(scene.mesh), *map(str, volumes)],
        "paraview": [_PROGRAMS["paraview"], f"--data={scene.mesh}"],
    }
    if show_only:
        return _print(commands)
    if screenshot or viewer == "pyvista" or (viewer == "auto" and importlib.util.find_spec("pyvista")):
        if screenshot and viewer not in ("auto", "pyvista"):
            raise UsageProblem("--screenshot is drawn by PyVista: leave --viewer out")
        return _show(scene, mask, screenshot, given["labels"], given["frame"])
    if viewer != "auto" and not shutil.which(_PROGRAMS[viewer]):
        raise EngineError(f"--viewer {viewer}: no program {_PROGRAMS[viewer]} on PATH; install it, or {_INSTALL}")
    found = [name for name in commands if viewer in ("auto", name) and shutil.which(_PROGRAMS[name])]
    return subprocess.call(commands[found[0]]) and 1 if found else _print(commands)


def _print(commands: dict[str, list[str]]) -> int:
    for words in commands.values():
        click.echo(" ".join(map(_shell_word, words)))
    return OK


def _shell_word(word: str) -> str:
    """A word as a shell takes it; what a terminal would act on is spelt out."""
    if word.isprintable():
        return shlex.quote(word)
    spelt = "".join(
        c if c.isprintable() and c not in "'\\" else "".join(f"\\x{b:02x}" for b in _bytes(c)) for c in word
    )
    return f"$'{spelt}'"


def _bytes(letter: str) -> bytes:
    return letter.encode("utf-8", "surrogateescape")


def _show(scene: "Scene", mask: Path | None, screenshot: Path | None, labels: str, frame: int | None) -> int:
    if screenshot and screenshot.suffix.lower() != ".png":
        raise UsageProblem(f"--screenshot {screenshot}: pictures are PNG; give a name that ends in .png")
    if not importlib.util.find_spec("pyvista"):
        raise EngineError(f"PyVista is not installed: {_INSTALL}, or use --viewer slicer or paraview")
    plotter = _plotter(scene, mask, labels, frame, off_screen=screenshot is not None)
    if screenshot is None:
        plotter.show(title=f"m2s-view {clean(scene.mesh.stem)}")
        return OK
    from PIL import Image

    from m2s_runtime import atomic

    data = io.BytesIO()
    Image.fromarray(plotter.screenshot(None, return_img=True)).save(data, "png")
    plotter.close()
    atomic.write_bytes(screenshot, data.getvalue())
    click.echo(str(screenshot))
    return OK


def _plotter(scene: "Scene", mask: Path | None, labels: str, frame: int | None, *, off_screen: bool) -> Any:  # noqa: ANN401
    """A PyVista plotter that holds the scene, world mm (RAS)."""
    import pyvista

    from m2s_runtime.given import given
    from m2s_runtime.limits import Limits
    from m2s_runtime.scene import outlines

    mesh: Any = pyvista.read(scene.mesh)
    if scene.space == "lps":
        mesh.points *= (-1.0, -1.0, 1.0)
    plotter: Any = pyvista.Plotter(off_screen=off_screen, window_size=[*_SIZE])
    known = [name for name in mesh.point_data if mesh.point_data[name].ndim == 1]
    colour: dict[str, Any] = {"scalars": known[0], "cmap": "viridis"} if known else {"color": "ivory"}
    plotter.add_mesh(mesh, smooth_shading=True, opacity=0.75, **colour)
    if mask:
        source = given(mask, None, None, Limits())
        named = scene.frame if source.labels.shape[3] > 1 else None
        both = outlines(source, labels, named if frame is None else frame, scene.shifts)
        for lines, tint in zip(both, ("grey", "firebrick"), strict=True):
            if lines:
                plotter.add_mesh(_joined(lines), color=tint, line_width=3)
    plotter.add_axes(xlabel="R", ylabel="A", zlabel="S")
    return plotter


def _joined(lines: Sequence[Any]) -> Any:  # noqa: ANN401 - PyVista's PolyData
    import numpy as np
    import pyvista

    starts = np.cumsum([0, *map(len, lines)]).tolist()
    cells = [[len(line), *range(start, start + len(line))] for line, start in zip(lines, starts, strict=False)]
    return pyvista.PolyData(np.concatenate(lines), lines=np.concatenate(cells))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become one line on stderr."""
    try:
        code = command.main(args=arguments, prog_name="m2s-view", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (Stop, CaseError) as error:
        tell(f"m2s-view: error: {clean(str(error))}")
        return error.exit_code if isinstance(error, Stop) else UsageProblem.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def main() -> None:
    """Entry point of `m2s-view`."""
    sys.exit(run())
