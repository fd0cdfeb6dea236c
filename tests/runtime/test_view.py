"""`m2s-view`: finds what belongs to a case, shows it where it lies, and never lets a name become a command."""

import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from runtime.stub import AFFINE, save, wall

import m2s_runtime
from m2s_runtime import scene, view
from m2s_runtime.errors import BadHeader
from m2s_runtime.given import given
from m2s_runtime.limits import Limits
from m2s_runtime.mesh_files import encode
from m2s_runtime.surface import Mesh
from m2s_runtime.view import run

LABELS = wall()
CORNERS = np.array([[0.0, 0, 0], [40, 0, 0], [0, 40, 0], [0, 0, 60]])
MESH = Mesh(CORNERS, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32))


def case(folder: Path, *suffixes: str, space="lps") -> Path:
    """A case folder as `m2s-run` leaves it, the mesh a tetrahedron."""
    folder.mkdir(parents=True)
    for suffix in suffixes:
        (folder / f"{folder.name}.{suffix}").write_bytes(encode(MESH, suffix, space))
    return folder


def words(printed: str) -> list[list[str]]:
    return [shlex.split(line) for line in printed.splitlines()]


@pytest.mark.parametrize("suffix", ["ply", "stl", "vtp", "obj"])
@pytest.mark.parametrize("space", ["lps", "ras"])
def test_the_axes_are_read_off_the_file(tmp_path, suffix, space):
    folder = case(tmp_path / "a", suffix, space=space)
    assert scene.find_scene(folder).space == space
    assert scene.find_scene(folder / f"a.{suffix}").mesh == folder / f"a.{suffix}"


def test_what_lies_beside_a_mesh_belongs_to_it(tmp_path):
    folder = case(tmp_path / "heart_t07", "stl", "vtp")
    for name in ("heart_t07_mask.nii.gz", "heart_t07_shifts.json", "other_mask.nii.gz"):
        (folder / name).touch()
    found = scene.find_scene(folder)
    assert found.mesh.name == "heart_t07.vtp"
    assert [path.name for path in found.volumes] == ["heart_t07_mask.nii.gz"]
    assert found.shifts == folder / "heart_t07_shifts.json"
    assert found.frame == 7


@pytest.mark.parametrize("name", ["gone", "empty", "file.txt", "heart.glb"])
def test_what_is_no_case(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("SPACE=LPS")
    (tmp_path / "heart.glb").touch()
    assert run([str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("m2s-view: error: ")
    assert name in line


def test_outlines_lie_where_the_wall_is(tmp_path):
    """Against the voxels themselves: every point of an outline is half a voxel from a wall voxel of its slice."""
    affine = nib.affines.from_matvec(np.array([[0, -2.0, 0], [2.0, 0, 0], [0, 0, 10.0]]), [5, -7, 11])
    acquired, corrected = scene.outlines(given(LABELS, affine, None, Limits()), "acdc", None, None)
    assert corrected == []
    points = nib.affines.apply_affine(np.linalg.inv(affine), np.concatenate(acquired))
    slices = np.flatnonzero((LABELS == 2).any(axis=(0, 1)))
    assert set(np.round(points[:, 2], 6)) == set(slices)
    for index in slices:
        voxels = np.argwhere(LABELS[:, :, index] == 2)
        here = points[np.isclose(points[:, 2], index), :2]
        nearest = np.abs(here[:, None] - voxels).sum(axis=2).min(axis=1)
        np.testing.assert_allclose(nearest, 0.5)


def test_outlines_of_a_frame_that_is_not_there():
    with pytest.raises(BadHeader, match="frame 3"):
        scene.outlines(given(LABELS, AFFINE, None, Limits()), "acdc", 3, None)


@pytest.mark.parametrize("name", ["-rf", "a b;touch HACKED", "$(touch HACKED)", "`touch HACKED`", "it's", "--data=x"])
def test_hostile_names_stay_names(tmp_path, monkeypatch, capfd, name):
    monkeypatch.chdir(tmp_path)
    folder = case(tmp_path / name, "ply")
    mesh = str(folder / f"{name}.ply")
    assert run(["--print", "--", name]) == 0
    printed = capfd.readouterr().out
    assert words(printed) == [["Slicer", mesh], ["paraview", f"--data={mesh}"]]
    echo = subprocess.run(["sh", "-c", f'set -- {printed.splitlines()[0]}; printf %s "$2"'], stdout=-1, check=True)
    assert echo.stdout.decode() == mesh
    assert not (tmp_path / "HACKED").exists()


def test_control_characters_are_spelt_out(tmp_path, capfd):
    folder = case(tmp_path / "a\x1b[2Jb\n'c", "stl")
    assert run(["--print", str(folder)]) == 0
    first, _ = capfd.readouterr().out.splitlines()
    assert "\x1b" not in first
    bash = subprocess.run(["bash", "-c", f'set -- {first}; printf %s "$2"'], stdout=-1, check=True)
    assert bash.stdout.decode() == str(folder / f"{folder.name}.stl")


def test_a_viewer_on_the_path_is_started_without_a_shell(tmp_path, monkeypatch, capfd):
    folder, programs = case(tmp_path / "a;b", "vtp"), tmp_path / "bin"
    programs.mkdir()
    (programs / "paraview").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (programs / "paraview").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert run(["--viewer", "paraview", str(folder)]) == 0
    assert capfd.readouterr().out == f"--data={folder / 'a;b.vtp'}\n"
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda _: None)
    assert run([str(folder)]) == 0
    assert capfd.readouterr().out == f"--data={folder / 'a;b.vtp'}\n"


def test_what_cannot_be_had(tmp_path, monkeypatch, capfd):
    folder = case(tmp_path / "a", "vtp")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda _: None)
    assert run([str(folder), "--viewer", "slicer"]) == 5
    assert "no program Slicer" in capfd.readouterr().err
    assert run([str(folder), "--screenshot", "a.png"]) == 5
    assert 'pip install "mask2surface[view]"' in capfd.readouterr().err
    assert run([str(folder), "--screenshot", "a.jpg"]) == 2
    assert run([str(folder), "--viewer", "slicer", "--screenshot", "a.png"]) == 2
    assert run([str(folder)]) == 0  # neither viewer is there: what to type
    assert len(capfd.readouterr().out.splitlines()) == 2


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from m2s_runtime import view; view.run(['--help'])\n"
        "sys.exit(bool({'numpy', 'nibabel', 'skimage', 'pyvista', 'vtk'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(Path(m2s_runtime.__path__[0]).parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def drawing():
    """Skip where VTK finds no way to draw; it may take the process with it, so another one tries."""
    pytest.importorskip("pyvista")
    code = "import pyvista; p = pyvista.Plotter(off_screen=True); p.add_mesh(pyvista.Sphere()); p.screenshot(None)"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no OpenGL to draw with off screen (exit code {tried.returncode})")


@pytest.mark.usefixtures("drawing")
def test_a_picture(tmp_path):
    from PIL import Image

    case(tmp_path / "a", "vtp")
    mask = save(tmp_path / "mask.nii.gz", LABELS)
    pictures = []
    for name, more in (("bare.png", []), ("slices.png", ["--mask", str(mask), "--labels", "acdc"])):
        arguments = [str(tmp_path / "a"), *more, "--screenshot", str(tmp_path / name)]
        code = "import sys; from m2s_runtime.view import run; sys.exit(run(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path / name}\n"
        pictures.append(np.asarray(Image.open(tmp_path / name), np.int16))
    bare, slices = pictures
    assert bare.shape == (960, 1280, 3)
    assert np.ptp(bare) > 100
    assert (np.abs(bare - slices).max(axis=2) > 50).mean() > 0.002
