"""The fit recovers surfaces given by formulas, says how good it is, and repeats itself."""

import numpy as np
import pytest
import torch
import trimesh

from m2s.data.phantom import shell
from m2s.data.quality import WORST_MEAN_MM, Quality, mask_surface, measure
from m2s.data.registration import Displacement, Recipe, align, register
from m2s.data.sdg import voxelise
from m2s.data.template import make_template
from m2s.data.wall_mesh import warp
from m2s.metrics import SampledSurface, surface_distance
from m2s.triangles import sample_surface
from m2s_runtime.errors import EmptyWall
from m2s_runtime.grid import MASK_GRID, SPACING
from m2s_runtime.surface import Mesh, signed_volume, topology

QUICK = Recipe(iterations=60, samples=6000)
MIDDLE = np.array([63.5, 63.5, 40.0])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distance(mesh: Mesh, truth: Mesh) -> float:
    return surface_distance(SampledSurface.of(mesh, "prediction"), SampledSurface.of(truth, "truth")).assd


def heart(width=26.0, length=55.0, wall=6.0, base=-18.0) -> Mesh:
    vertices, faces = shell(width, length, wall, base)
    return Mesh(vertices + MIDDLE, faces)


@pytest.fixture(scope="module")
def template():
    return make_template(3.5)


def test_an_analytic_shell_is_recovered(template):
    truth = heart()
    fit = register(template, truth, QUICK)
    assert distance(fit, truth) < 0.3
    assert topology(fit).genus == 0
    assert signed_volume(fit) == pytest.approx(signed_volume(truth), rel=0.02)


def test_a_warped_shell_is_recovered_better_than_it_was_aligned(template):
    plain = heart()
    truth = Mesh(warp(plain.vertices, 2.0, np.random.default_rng(5)), plain.faces)
    samples = sample_surface(truth, 6000, np.random.default_rng(0))
    start = Mesh(align(template, truth, samples), template.faces)
    fit = register(template, truth, Recipe(iterations=150, samples=6000))
    assert distance(fit, truth) < min(0.4, 0.35 * distance(start, truth))


def test_alignment_finds_tilt_size_and_thickness(template):
    truth = heart(width=30.0, length=60.0, wall=14.0, base=-20.0)
    sheared = truth.vertices.copy()
    sheared[:, :2] += 0.15 * sheared[:, 2:] * (1, -1)
    target = Mesh(sheared, truth.faces)
    start = Mesh(align(template, target, sample_surface(target, 6000, np.random.default_rng(0))), template.faces)
    assert signed_volume(start) == pytest.approx(signed_volume(target), rel=0.01)
    assert distance(start, target) < 1.0


def test_the_network_starts_at_rest_and_then_moves(template):
    net = Displacement(16)
    points = net.features(torch.from_numpy(template.vertices()).float())
    assert not net(points).any()
    truth = heart()
    samples = sample_surface(truth, 500, np.random.default_rng(0))
    fit = register(template, truth, Recipe(iterations=3, samples=500, width=16))
    assert 0 < np.abs(fit.vertices - align(template, truth, samples)).max() < 40


def test_the_same_seed_gives_the_same_fit(template):
    truth, recipe = heart(), Recipe(iterations=5, samples=1000, width=16)
    state = torch.get_rng_state()
    one, again = (register(template, truth, recipe).vertices for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert torch.equal(torch.get_rng_state(), state)
    other = register(template, truth, Recipe(iterations=5, samples=1000, width=16, seed=1)).vertices
    assert np.abs(one - other).max() > 1e-6


def test_the_target_is_the_largest_piece_of_the_mask_with_voxels_of_full_size():
    mask = np.zeros((20, 18, 12), np.bool_)
    mask[0:10, 4:9, 0:6] = True  # at the border of the grid
    mask[15, 15, 9] = True
    target = mask_surface(mask)
    body = trimesh.Trimesh(target.vertices, target.faces, process=False)
    assert body.is_watertight
    assert body.bounds.tolist() == [[-0.5, 3.5, -1.0], [9.5, 8.5, 11.0]]
    assert signed_volume(target) == pytest.approx(10 * 5 * 12, rel=0.06)
    with pytest.raises(EmptyWall):
        mask_surface(np.zeros_like(mask))


def test_quality_of_a_perfect_and_of_a_shifted_fit():
    truth = heart()
    mask = voxelise(truth.vertices, truth.faces, MASK_GRID, SPACING)
    good = measure(truth, mask_surface(mask), mask)
    assert good.dice == 1
    assert good.mean_mm < 0.3
    assert good.self_intersections == 0
    assert good.faults == ""
    moved = Mesh(truth.vertices + np.array([3.0, 0.0, 0.0]), truth.faces)
    bad = measure(moved, mask_surface(mask), mask)
    assert bad.dice < 0.8
    assert bad.mean_mm > WORST_MEAN_MM
    assert "from the mask" in bad.faults


def test_faults_are_told():
    assert "2 self-intersections" in Quality(0.1, 0.3, 0.99, 2, True, 0).faults
    assert "handle" in Quality(0.1, 0.3, 0.99, 0, True, 1).faults
    assert "not closed" in Quality(0.1, 0.3, 0.99, 0, False, None).faults
