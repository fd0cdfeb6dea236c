"""A wall that may not go on beyond its most basal slice ends there, in the scanner's millimetres."""

import math

import nibabel as nib
import numpy as np
import pytest
import trimesh
from runtime.shells import AXIS, Shell, reoriented, scan, world_points, write

from m2s_runtime import Reconstructor, cli
from m2s_runtime.errors import UsageProblem
from m2s_runtime.options import Options
from m2s_runtime.placement import canonicalise

PLAIN = scan()
THIN = scan((1.4, 1.4, 2.9), (90, 100, 34))
"""30 slices hold wall: every third is taken, and one is left out at the base."""
SCANS = {"ten millimetres": PLAIN, "eight millimetres": scan((1.4, 1.4, 8.0), (90, 100, 13)), "thin slices": THIN}


def levels(points):
    """How far along the heart's axis, base to apex, mm."""
    return points @ AXIS


def most_basal(labels, affine):
    return levels(world_points(affine, labels.shape)[labels == 2]).min()


def end(result):
    return levels(result.mesh.vertices).min()


@pytest.fixture(scope="module")
def limited():
    """Reconstructors by their limit, opened once."""
    opened = {limit: Reconstructor(labels="myo=2", base_limit=limit) for limit in (None, 0, np.float32(1.0))}
    yield opened
    for one in opened.values():
        one.close()


def test_a_slice_is_left_out_at_the_base_of_one_of_them():
    affine, shape = THIN
    placement = canonicalise(Shell().sample(affine, shape) == 2, affine).placement
    assert placement.every == 3
    assert min(s for s in placement.slices if s >= 0) == 3


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("limit", [0, 1.0])
@pytest.mark.parametrize("stored", ["base first", "apex first"])
def test_the_wall_ends_so_far_beyond_the_most_basal_slice(limited, name, limit, stored):
    affine, shape = SCANS[name]
    labels = Shell().sample(affine, shape)
    if stored == "apex first":
        labels, affine = reoriented(labels, affine, (2,), (2, 0, 1))
    first = most_basal(labels, affine)
    assert end(limited[None].run(labels, affine)) < first - 1.05
    found = limited[limit].run(labels, affine)
    assert end(found) == pytest.approx(first - limit, abs=0.01)
    surface = trimesh.Trimesh(found.mesh.vertices, found.mesh.faces, process=False)
    assert surface.is_watertight
    assert surface.euler_number == 2


def test_nothing_else_changes(limited):
    affine, shape = PLAIN
    labels = Shell().sample(affine, shape)
    plain, found = limited[None].run(labels, affine), limited[0].run(labels, affine)
    for name in ("shifts", "probability", "agreement"):
        np.testing.assert_array_equal(getattr(plain.reconstruction, name), getattr(found.reconstruction, name))
    assert (plain.expected_dice, plain.flags) == (found.expected_dice, found.flags)
    below = levels(world_points(plain.affine, plain.sdg.shape)) > most_basal(labels, affine) + 1e-6
    np.testing.assert_array_equal(plain.sdg[below] < 0, found.sdg[below] < 0)
    assert (found.sdg >= plain.sdg).all()


@pytest.mark.parametrize("options", [{"samples": 2}, {"refine": 1, "steps": 1}])
def test_other_ways_to_run_end_there_too(options):
    affine, shape = PLAIN
    labels = Shell().sample(affine, shape)
    volumes = []
    for limit in (None, 1.0):
        with Reconstructor(labels="myo=2", base_limit=limit, **options) as reconstructor:
            found = reconstructor.run(labels, affine)
        volumes.append(np.mean([found.measurements.volume_ml, *found.reconstruction.sample_volumes_ml]))
    assert end(found) == pytest.approx(most_basal(labels, affine) - 1.0, abs=0.01)
    assert volumes[1] < 0.98 * volumes[0]


def test_each_frame_of_a_cine_has_its_own_most_basal_slice(limited):
    affine, shape = PLAIN
    frames = np.stack([Shell().sample(affine, shape)] * 2, axis=3)
    held = np.flatnonzero((frames[..., 1] == 2).any(axis=(0, 1)))
    frames[:, :, held[0], 1] = 0
    ends = [end(found) for found in limited[0].cine(frames, affine)]
    assert ends[1] - ends[0] == pytest.approx(10.0, abs=0.01)
    assert ends[0] == pytest.approx(most_basal(frames[..., 0], affine), abs=0.01)


def test_the_overlay_has_the_wall_up_to_the_plane_and_no_further(tmp_path):
    affine, shape = THIN
    labels = Shell().sample(affine, shape)
    image = write(tmp_path / "a.nii.gz", labels, affine)
    found = []
    for name, options in (("plain", []), ("ended", ["--base-limit", "0"])):
        told = ["--labels", "myo=2", "--save", "overlay", "--no-report", "-q", "--jobs", "0", *options]
        assert cli.run([str(image), "-o", str(tmp_path / name), *told]) == 0
        found.append(np.asarray(nib.load(tmp_path / name / "a" / "a_overlay.nii.gz").dataobj))
    first = int(np.flatnonzero((labels == 2).any(axis=(0, 1)))[0])
    np.testing.assert_array_equal(found[0][:, :, first:], found[1][:, :, first:])
    assert found[1][:, :, first].any()
    assert not found[1][:, :, :first].any()


@pytest.mark.parametrize("limit", [-1.0, math.inf, math.nan])
def test_limits_that_are_none_are_refused(limit):
    with pytest.raises(UsageProblem, match="--base-limit"):
        Options(base_limit=limit)


@pytest.mark.parametrize("limit", ["near", "1", False, np.bool_(True), 10**400, np.array([1.0]), 1j])
def test_a_limit_that_is_no_number_is_refused(limit):
    with pytest.raises(UsageProblem, match=r"base_limit=.*: give a number"):
        Reconstructor(base_limit=limit)
