"""The contact sheet from a run folder made by hand: it must show the heart, and the base on top."""

import nibabel as nib
import numpy as np
import pytest
from benchmarked import benchmark
from click.testing import CliRunner

from m2s.data.phantom import phantom
from m2s.data.sdg import voxelise
from m2s_runtime.mesh_files import encode
from m2s_runtime.surface import Mesh

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def sheet():
    return benchmark("contact_sheet")


@pytest.fixture
def run(tmp_path):
    """A finished run of one oblique case."""
    heart = phantom(2)
    affine = np.array([[0, -0.8, 6, 30], [1, 0, 0, -20], [0, 0.6, 8, 5], [0, 0, 0, 1]], float)
    wall = voxelise(heart.grid_vertices, heart.faces, (128, 128, 13), (1, 1, 10))
    inputs, meshes = tmp_path / "in", tmp_path / "out"
    (meshes / "a").mkdir(parents=True)
    inputs.mkdir()
    nib.save(nib.Nifti1Image(wall.astype(np.uint8), affine), inputs / "a.nii.gz")
    world = (np.column_stack([heart.grid_vertices / (1, 1, 10), np.ones(len(heart.vertices))]) @ affine.T)[:, :3]
    (meshes / "a" / "a.ply").write_bytes(encode(Mesh(world, heart.faces), "ply", "lps"))
    (meshes / "cases.csv").write_text(
        "case,input,frame,status,slices,step_mm,flags\na,a.nii.gz,,ok,8,10,\nb,b.nii.gz,,failed,,,\n"
    )
    return inputs, meshes, world


def test_the_surface_is_read_back_in_world_axes_and_seen_base_up(sheet, run):
    inputs, meshes, world = run
    vertices, faces = sheet.read_mesh(meshes / "a" / "a.ply")
    np.testing.assert_allclose(vertices, world, atol=1e-3)
    assert len(faces)
    study = nib.load(inputs / "a.nii.gz")
    wall = np.asarray(study.dataobj) > 0
    placement = sheet.canonicalise(wall, study.affine).placement
    camera = sheet.Camera.at(placement.affine)
    # The affine in the file is in single precision.
    np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(camera.axes) == pytest.approx(1, abs=1e-6)
    outlines = list(sheet.contours(wall, study.affine, placement.slice_axis))
    heights = [camera.project(line)[:, 1].mean() for line in outlines]
    assert heights[0] > heights[-1]  # the phantom's base is its first slice
    low, high = np.concatenate(outlines).min(axis=0), np.concatenate(outlines).max(axis=0)
    assert (low > world.min(axis=0) - 2).all()
    assert (high < world.max(axis=0) + 2).all()


def test_the_sheet_shows_both_panels(sheet, run, tmp_path):
    from matplotlib.image import imread

    inputs, meshes, _ = run
    out = tmp_path / "sheet.png"
    done = CliRunner().invoke(sheet.main, [str(meshes), str(inputs), "--columns", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    picture = imread(out)[..., :3]
    reddish = (picture[..., 0] > picture[..., 2] + 0.15).mean(axis=0)
    bluish = (picture[..., 2] > picture[..., 0] + 0.15).mean(axis=0)
    half = picture.shape[1] // 2
    assert reddish[half:].mean() > 0.1 > reddish[:half].mean()
    assert bluish[:half].mean() > 0.01 > bluish[half:].mean()


def test_folders_without_a_run_are_refused(sheet, tmp_path):
    done = CliRunner().invoke(sheet.main, [str(tmp_path), str(tmp_path)])
    assert done.exit_code == 2
    assert "cases.csv" in done.output
