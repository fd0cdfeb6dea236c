"""CardiacPCN: its points against closed forms, its network against the published sizes, its command on phantoms."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.spatial.distance import cdist

from m2s.baselines.cardiac_pcn import meshing
from m2s.baselines.cardiac_pcn.chamfer import chamfer
from m2s.baselines.cardiac_pcn.cloud import Frame, outward, sample_of, truth_points, wall_contours
from m2s.baselines.cardiac_pcn.method import CardiacPcn
from m2s.baselines.cardiac_pcn.net import SIZES, Pcn, of_parts
from m2s.baselines.cardiac_pcn.train import fine_weight, recipe_of
from m2s.baselines.registry import open_baseline
from m2s.metrics import SampledSurface, cd_of_points, cd_paper
from m2s.train.checkpoint import load_weights
from m2s.train.cli import main
from m2s_runtime.errors import EmptyWall, EngineError, NotFinite
from m2s_runtime.surface import Mesh

X, Y = np.mgrid[:128, :128].astype(float)
SPACING = (1.0, 1.0, 10.0)
needs_meshlab = pytest.mark.skipif(
    importlib.util.find_spec("pymeshlab") is None, reason="PyMeshLab is not installed (extra pcn)"
)


def _ring(x: float, y: float, outer: float, inner: float) -> np.ndarray:
    distance = np.hypot(X - x, Y - y)
    return (distance <= outer) & (distance > inner)


def _tube() -> np.ndarray:
    """Wall between radii 20 and 30 mm in planes 10 to 49 of the sixty."""
    mask = np.zeros((128, 128, 60), bool)
    mask[:, :, 10:50] = _ring(60, 70, 30, 20)[:, :, None]
    return mask


def test_contours_of_a_ring_are_its_two_circles_in_its_own_plane() -> None:
    slices = np.zeros((128, 128, 12), bool)
    slices[:, :, 3] = _ring(60, 70, 30, 20)
    points = wall_contours(slices)
    radius = np.hypot(points[:, 0] - 60, points[:, 1] - 70)
    outer = radius > 25
    assert abs(radius[outer] - 30).max() < 0.8
    assert abs(radius[~outer] - 20).max() < 0.8
    # Steps along a pixel contour, so the two lengths stand as the radii.
    assert np.count_nonzero(outer) / np.count_nonzero(~outer) == pytest.approx(1.5, abs=0.05)
    assert set(points[:, 2]) == {2.0 * (5 * 3 + 2 + 2)}
    assert len(np.unique(points, axis=0)) == len(points)


def test_outwards_is_away_from_the_ring_on_both_of_its_sides() -> None:
    slices = _tube()[:, :, 2::5]
    near = [[92.0, 70, 63], [78.0, 70, 63], [60.0, 101, 53], [60.0, 88, 53]]
    out = outward(slices, wall_contours(slices), np.array(near))
    np.testing.assert_allclose(out, [[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], atol=0.25)


def test_outwards_is_told_by_slices_that_moved_as_by_those_that_did_not() -> None:
    points = truth_points(_tube(), np.random.default_rng(0))
    points = points[abs(points[:, 2] - 63) < 38]
    slices = _tube()[:, :, 2::5]
    for k, by in enumerate((9, -8, 7, 12, -9, 8, -7, 10)):  # about as far as the wall is thick
        slices[:, :, 2 + k] = np.roll(slices[:, :, 2 + k], (by, -by), (0, 1))
    radial = (points - (60, 70, 0))[:, :2]
    radius = np.linalg.norm(radial, axis=1, keepdims=True)
    expected = radial / radius * np.where(radius > 25, 1, -1)
    right = (outward(slices, wall_contours(slices), points)[:, :2] * expected).sum(axis=1) > 0
    assert right.mean() > 0.98


def test_truth_lies_on_the_surface_of_the_mask_and_frames_undo_themselves() -> None:
    points = truth_points(_tube(), np.random.default_rng(0))
    radius = np.hypot(points[:, 0] - 60, points[:, 1] - 70)
    caps = (abs(points[:, 2] - 23) < 1e-9) | (abs(points[:, 2] - 103) < 1e-9)
    assert points.shape == (16384, 3)
    assert np.minimum(abs(radius - 30), abs(radius - 20))[~caps & (abs(points[:, 2] - 63) < 38)].max() < 0.9
    # The flat ends hold 0.11 of the tube's area, a little less of a surface whose sides have the steps of voxels.
    assert caps.mean() == pytest.approx(0.1, abs=0.015)
    sample, frame = sample_of(_tube()[:, :, 2::5], _tube(), 500, np.random.default_rng(1))
    assert sample["points"].shape == (500, 3)
    np.testing.assert_allclose(frame.centroid, (60, 70, 63), atol=0.1)
    np.testing.assert_allclose(Frame(frame.centroid).back(frame.into(points)), points, atol=1e-4)


def test_chamfer_is_that_of_all_distances_and_its_gradient_points_to_the_nearest() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 50, 3)), rng.normal(size=(2, 70, 3))
    every = [cdist(p, q) for p, q in zip(a, b, strict=True)]
    expected = np.mean([(d.min(1).mean() + d.min(0).mean()) / 2 for d in every])
    assert float(chamfer(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, rel=1e-6)
    moved = torch.tensor([[[0.0, 0.0, 0.0]]], requires_grad=True)
    chamfer(moved, torch.tensor([[[3.0, 4.0, 0.0]]])).backward()
    assert moved.grad is not None
    np.testing.assert_allclose(moved.grad.numpy(), [[[-0.6, -0.8, 0.0]]], atol=1e-6)


def test_cd_of_a_cloud_on_the_truth_is_that_of_its_mesh() -> None:
    vertices = np.array([[0.0, 0, 0], [90, 0, 0], [0, 90, 0], [0, 0, 90]])
    mesh = Mesh(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32))
    truth, prediction = SampledSurface.of(mesh, "truth"), SampledSurface.of(mesh, "prediction")
    assert cd_of_points(prediction.points, truth) == pytest.approx(cd_paper(prediction, truth), rel=0.05)
    assert cd_of_points(prediction.points + np.array([0, 0, 100.0]), truth) > 1000


def test_the_published_network_has_the_published_sizes() -> None:
    net = Pcn(SIZES["published"])
    encoder = 3 * 128 + 128 + 128 * 256 + 256 + 512 * 512 + 512 + 512 * 1024 + 1024
    anchors = 2 * (1024 * 1024 + 1024) + 1024 * 3072 + 3072
    folding = (2 + 3 + 1024) * 512 + 512 + 512 * 512 + 512 + 512 * 3 + 3
    assert sum(p.numel() for p in net.parameters()) == encoder + anchors + folding == 6_861_059
    assert not [m for m in net.modules() if "Norm" in type(m).__name__]
    with torch.no_grad():
        coarse, fine = net(torch.rand(1, SIZES["published"].points, 3))
    assert coarse.shape == (1, 1024, 3)
    assert fine.shape == (1, 16384, 3)
    corners = {(x, y) for x in (-0.05, 0.05) for y in (-0.05, 0.05)}
    assert corners <= {tuple(np.round(node, 6)) for node in net.grid.tolist()}
    recipe = recipe_of("pcn", "published")
    assert (recipe.rate, recipe.batch, recipe.steps) == (1e-4, 32, 300_000)
    steps = (9_999, 10_000, 20_000, 49_999, 50_000)
    assert [fine_weight(k / recipe.steps) for k in steps] == [0.01, 0.1, 0.5, 0.5, 1.0]


def test_the_code_knows_no_order_and_parts_are_joined_as_published() -> None:
    torch.manual_seed(0)
    net, points = Pcn(SIZES["tiny"]), torch.rand(2, 100, 3)
    torch.testing.assert_close(net.encode(points), net.encode(points[:, torch.randperm(100)]))
    layer, own, shared = torch.nn.Linear(9, 4), torch.rand(2, 7, 5), torch.rand(2, 4)
    joined = torch.cat([own, shared[:, None].expand(-1, 7, -1)], dim=2)
    torch.testing.assert_close(of_parts(layer, own, shared), layer(joined))
    some = net.complete(net.encode(points), torch.tensor([3, 9]))[1]
    every = net(points)[1].unflatten(1, (-1, 16))
    torch.testing.assert_close(some.unflatten(1, (-1, 2)), every[:, :, [3, 9]])


def test_a_tiny_training_by_the_command_can_be_opened(tmp_path: Path) -> None:
    options = ["--phantom", "--size", "tiny", "--hearts", "4", "--steps", "2", "--threads", "1", "--workers", "1", "-q"]
    result = CliRunner().invoke(main, ["baseline", "cardiac-pcn", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    told = load_weights(tmp_path / "cardiac-pcn" / "pcn" / "best.safetensors")[1]
    assert told["size"] == "tiny"
    method = open_baseline("cardiac-pcn", tmp_path)
    assert isinstance(method, CardiacPcn)
    stack = _tube()[:, :, 2::5]
    cloud = method.cloud(stack, SPACING)
    np.testing.assert_array_equal(cloud, method.cloud(stack, SPACING))
    half = method.cloud(stack, (1.0, 1.0, 5.0))
    np.testing.assert_allclose(half[:, 2] - 63, (cloud[:, 2] - 63) / 2)
    np.testing.assert_array_equal(half[:, :2], cloud[:, :2])
    with pytest.raises(EmptyWall, match="no contour"):
        method.predict(np.zeros_like(stack), SPACING)
    for weights in method.net.parameters():
        weights.data.fill_(np.nan)
    with pytest.raises(NotFinite, match="the network returned NaN"):
        method.predict(stack, SPACING)


@needs_meshlab
def test_poisson_of_a_sphere_of_points_is_that_sphere() -> None:
    points = np.random.default_rng(3).normal(size=(4000, 3))
    out = points / np.linalg.norm(points, axis=1)[:, None]
    points = 63 + 30 * out
    mesh = meshing.poisson_mesh(points, out)
    assert abs(np.linalg.norm(mesh.vertices - 63, axis=1) - 30).max() < 0.5
    assert mesh.topology.closed
    assert abs(mesh.volume) == pytest.approx(4 / 3 * np.pi * 30**3, rel=0.01)


def test_without_meshlab_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(meshing, "import_module", missing)
    with pytest.raises(EngineError, match=r'pip install "mask2surface\[pcn\]"'):
        meshing.poisson_mesh(*np.zeros((2, 10, 3)))
