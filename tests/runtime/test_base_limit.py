"""A wall that may not go on beyond its most basal slice ends there, in the scanner's millimetres."""

import math

import numpy as np
import pytest
import trimesh
from runtime.shells import AXIS, Shell, reoriented, scan, world_points

from m2s_runtime import Reconstructor
from m2s_runtime.errors import UsageProblem
from m2s_runtime.options import Options

SCANS = {
    "ten millimetres": scan(),
    "eight millimetres": scan((1.4, 1.4, 8.0), (90, 100, 13)),
    "every third of 29 slices, one left out at the base": scan((1.4, 1.4, 3.0), (90, 100, 33)),
}


def levels(points):
    """How far along the heart's axis, base to apex, mm."""
    return points @ AXIS


def most_basal(wall, affine):
    return levels(world_points(affine, wall.shape)[wall == 2]).min()


@pytest.fixture(scope="module")
def limited():
    """Reconstructors by their limit, opened once."""
    opened = {limit: Reconstructor(labels="myo=2", base_limit=limit) for limit in (None, 0, 1.0, 2.0)}
    yield opened
    for one in opened.values():
        one.close()


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("limit", [0, 1.0, 2.0])
def test_the_wall_ends_so_far_beyond_the_most_basal_slice(limited, name, limit):
    affine, shape = SCANS[name]
    labels = Shell().sample(affine, shape)
    first = most_basal(labels, affine)
    assert levels(limited[None].run(labels, affine).mesh.vertices).min() < first - 2.05
    found = limited[limit].run(labels, affine)
    assert levels(found.mesh.vertices).min() == pytest.approx(first - limit, abs=0.01)
    surface = trimesh.Trimesh(found.mesh.vertices, found.mesh.faces, process=False)
    assert surface.is_watertight
    assert surface.euler_number == 2


def test_a_stack_that_starts_at_the_apex_ends_at_its_other_end(limited):
    affine, shape = SCANS["ten millimetres"]
    labels, turned = reoriented(Shell().sample(affine, shape), affine, (2,), (2, 0, 1))
    found = limited[1.0].run(labels, turned)
    assert levels(found.mesh.vertices).min() == pytest.approx(most_basal(labels, turned) - 1.0, abs=0.01)


def test_nothing_else_changes(limited):
    affine, shape = SCANS["ten millimetres"]
    labels = Shell().sample(affine, shape)
    plain, found = limited[None].run(labels, affine), limited[2.0].run(labels, affine)
    np.testing.assert_array_equal(plain.shifts, found.shifts)
    below = levels(world_points(plain.affine, plain.sdg.shape)) > most_basal(labels, affine)
    np.testing.assert_array_equal(plain.sdg[below] < 0, found.sdg[below] < 0)
    assert (found.sdg >= plain.sdg).all()


def test_samples_end_there_too():
    affine, shape = SCANS["ten millimetres"]
    labels = Shell().sample(affine, shape)
    with Reconstructor(labels="myo=2", samples=2, base_limit=1.0) as reconstructor:
        found = reconstructor.run(labels, affine)
    with Reconstructor(labels="myo=2", samples=2) as reconstructor:
        plain = reconstructor.run(labels, affine)
    assert levels(found.mesh.vertices).min() == pytest.approx(most_basal(labels, affine) - 1.0, abs=0.01)
    assert found.measurements.volume_ml < plain.measurements.volume_ml


@pytest.mark.parametrize("limit", [-1.0, math.inf, math.nan])
def test_limits_that_are_none_are_refused(limit):
    with pytest.raises(UsageProblem, match="--base-limit"):
        Options(base_limit=limit)


def test_a_limit_that_is_no_number_is_refused():
    with pytest.raises(UsageProblem, match="base_limit='near': give a number"):
        Reconstructor(base_limit="near")
