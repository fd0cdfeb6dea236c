"""MCSR-MS: sizes and spline are its source's, true control points undo the motion, earlier stages stay frozen."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.interpolate import CubicHermiteSpline

from m2s.baselines.edsr import Edsr
from m2s.baselines.labels import POOL, WALL, labelled
from m2s.baselines.mcsr_ms.centre_line import SCALE, centroids, control_points, hermite_matrix, line_shifts
from m2s.baselines.mcsr_ms.method import FirstTwo
from m2s.baselines.mcsr_ms.net import SIZES, centre_line_net, moved_back, second_net
from m2s.baselines.mcsr_ms.sources import cut, turned
from m2s.baselines.mcsr_ms.stages import SecondStage
from m2s.baselines.mcsr_ms.train import STAGES, recipe_of
from m2s.baselines.registry import open_baseline
from m2s.data.clinical import Pair
from m2s.nets.blocks import ResBlock
from m2s.train.checkpoint import load_weights
from m2s.train.cli import main
from m2s.train.loop import Arrays
from m2s.train.mcsr import symmetry
from m2s_runtime.errors import EmptyWall
from m2s_runtime.slices import centre_shifts, pool_features

X, Y = np.mgrid[:128, :128].astype(float)
TINY = ["--phantom", "--size", "tiny", "--hearts", "2", "--batch", "1", "--steps", "2", "-q"]
TINY += ["--threads", "1", "--workers", "1"]


def weights(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def ring(x: float, y: float) -> np.ndarray:
    distance = np.hypot(X - x, Y - y)
    return (distance <= 24) & (distance > 15)


def stack(centres: np.ndarray, first: int) -> np.ndarray:
    slices = np.zeros((128, 128, 12), bool)
    for k, (x, y) in enumerate(centres):
        slices[:, :, first + k] = ring(x, y)
    return slices


def test_published_sizes_are_those_of_the_source() -> None:
    """Filters 32 to 256, one hidden layer of 64 over 16 channels of 16 x 16, 6 and 9 outputs an axis; EDSR of 128."""
    size = SIZES["published"]
    with torch.device("meta"):
        first, edsr, second = centre_line_net(size), Edsr(size.edsr), second_net(size)
        assert first.eval()(torch.empty(1, 1, 128, 128, 12)).shape == (1, 6, 2)
        assert edsr.eval()(torch.empty(1, 3, 128, 128, 12)).shape == (1, 3, 128, 128, 60)
        assert second.eval()(torch.empty(1, 1, 128, 128, 60)).shape == (1, 9, 2)

    def block(a: int, b: int) -> int:
        return 27 * (a + b) * b + a * b + 4 * b

    trunk = 8 * 8 + 16 + block(8, 32) + block(32, 64) + block(64, 128) + block(128, 256) + 256 * 16
    assert weights(first) == trunk + 16 * 16 * 12 * 16 * 64 + 64 * 12
    assert weights(second) == trunk + 16 * 16 * 60 * 16 * 64 + 64 * 18
    # Eleven convolutions with batch norm; nothing in the shortcuts.
    assert weights(edsr) == 2 * 27 * 3 * 128 + 11 * (27 * 128 * 128 + 2 * 128)
    slopes = {m.negative_slope for m in edsr.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.3}
    blocks = [m for m in edsr.modules() if isinstance(m, ResBlock)]
    assert len(blocks) == 5
    assert all(isinstance(m.shortcut, torch.nn.Identity) for m in blocks)
    assert size.edsr.reach == 13
    assert (size.crop, size.remembered) == ((128, 12), 0)


@torch.no_grad()
def test_published_centre_lines_see_pool_and_wall_as_one() -> None:
    labels = torch.from_numpy(labelled(stack(np.array([[60, 70]]), 4)))[None, None].float()
    assert SIZES["published"].joined
    for joined in (True, False):
        net = centre_line_net(replace(SIZES["tiny"], joined=joined, straight=False)).eval()
        assert torch.equal(net(labels), net((labels > 0).float())) == joined


@torch.no_grad()
def test_a_super_resolution_that_finds_nothing_counts_as_nothing() -> None:
    mask = stack(np.full((8, 2), 63), 2)
    pair = Pair("0", mask, np.repeat(mask, 5, axis=2))

    def nothing(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((128, 128, 60), np.uint8), np.zeros((12, 2))

    earlier = cast("FirstTwo", nothing)
    stage = SecondStage(SIZES["tiny"], Still(mask), [pair], {}, earlier=earlier, seed=0, penalised=False)
    assert stage.validate(stage.model, Path()) == {"dice_loss": 1, "dice": 0, "dice_before": 0}


def test_stages_and_constants_are_those_of_the_source() -> None:
    assert list(STAGES) == ["centreline", "super_resolution", "second_correction"]
    assert sum(STAGES.values()) == pytest.approx(1)
    recipes = [recipe_of(name, "published") for name in STAGES]
    assert {(r.rate, r.batch, r.schedule) for r in recipes} == {(1e-4, 1, "hyperbolic")}
    assert [r.steps for r in recipes] == [150 * 12 * 1024, 200 * 1024, 150 * 12 * 1024]


def test_spline_is_scipys_with_central_differences_for_tangents() -> None:
    rng = np.random.default_rng(0)
    for knots in (2, 3, 7, 10):
        x, y, at = np.linspace(0, 1, knots), rng.normal(size=(knots, 2)), np.sort(rng.uniform(size=23))
        wanted = CubicHermiteSpline(x, y, np.gradient(y, x, axis=0))(at)
        np.testing.assert_allclose(hermite_matrix(tuple(x), tuple(at)) @ y, wanted, atol=1e-12)
    # Between two inner knots it is the Catmull-Rom spline.
    np.testing.assert_allclose(hermite_matrix((0, 1, 2, 3), (1.5,)), [[-1 / 16, 9 / 16, 9 / 16, -1 / 16]])


def test_spline_goes_through_its_knots_and_keeps_lines_whatever_their_distances() -> None:
    knots = (0.0, 0.1, 0.4, 0.5, 1.0)
    np.testing.assert_allclose(hermite_matrix(knots, knots), np.eye(5), atol=1e-12)
    at = np.linspace(0, 1, 31)
    np.testing.assert_allclose(hermite_matrix(knots, tuple(at)) @ (3 * np.array(knots) - 1), 3 * at - 1, atol=1e-12)


def test_centroid_is_that_of_pool_and_wall_and_of_the_wall_alone_where_the_ring_is_open() -> None:
    slices = stack(np.array([[60, 70], [60, 70]]), 4)
    slices[60:, 68:73, 5] = False
    labels = labelled(slices)
    assert np.count_nonzero(labels[:, :, 4] == POOL) > 600
    assert not (labels[:, :, 5] == POOL).any()
    found, held = centroids(labels)
    assert held.nonzero()[0].tolist() == [4, 5]
    np.testing.assert_allclose(found[4], [60, 70])
    np.testing.assert_allclose(found[5], np.argwhere(slices[:, :, 5]).mean(0))


def test_true_control_points_put_every_slice_back_exactly() -> None:
    """Seven slices lie at the knots themselves, so that whole pixels stay whole."""
    rng = np.random.default_rng(1)
    line = 60 + np.cumsum(rng.integers(-2, 3, (7, 2)), axis=0)
    motion = rng.integers(-6, 7, (7, 2))
    moved = stack(line + motion, 3)
    centres, held = centroids(labelled(moved))
    shifts = line_shifts(centres, held, (line[1:] - line[0]) / SCALE)
    np.testing.assert_allclose(shifts[3:10] - shifts[3], motion - motion[0], atol=1e-9)
    np.testing.assert_allclose(shifts[:3], shifts[3][None].repeat(3, 0))
    np.testing.assert_array_equal(moved_back(moved, shifts + motion[0]), stack(line, 3))


def test_centroids_come_to_lie_on_the_curve_between_control_points() -> None:
    rng = np.random.default_rng(2)
    points = rng.normal(0, 4, (7, 2))
    moved = stack(rng.integers(54, 74, (10, 2)), 1)
    centres, held = centroids(labelled(moved))
    shifts = line_shifts(centres, held, (points[1:] - points[0]) / SCALE)
    x = np.linspace(0, 1, 7)
    curve = CubicHermiteSpline(x, points, np.gradient(points, x, axis=0))(np.linspace(0, 1, 10))
    left = (centres - shifts)[1:11] - curve
    np.testing.assert_allclose(left - left[0], 0, atol=1e-9)


def test_targets_of_a_line_are_its_points_even_with_a_missing_slice() -> None:
    centres = 50 + np.arange(12, dtype=np.float64)[:, None] * np.array([1.5, -0.5])
    held = np.ones(12, bool)
    held[[0, 5, 11]] = False
    known = held.copy()
    known[10] = True
    found = control_points(centres, known, held, 7)
    wanted = np.linspace(0, 9, 7)[1:, None] * np.array([1.5, -0.5]) / SCALE
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("turn", range(8))
def test_vectors_turn_as_volumes_do(turn: int) -> None:
    slices = stack(np.array([[50, 70], [61, 66]]), 0)
    before, _ = centroids(labelled(slices))
    after, _ = centroids(labelled(symmetry(slices, turn)))
    np.testing.assert_allclose(turned(before[1] - before[0], turn), after[1] - after[0], atol=1e-9)


def test_pieces_hold_wall_and_keep_the_pool_that_the_cut_opens() -> None:
    mask = np.repeat(stack(np.full((12, 2), 63), 0), 5, axis=2)
    labels, truth = cut(mask[:, :, 2::5], mask, (20, 6), np.random.default_rng(0))
    assert labels.shape == (20, 20, 6)
    assert {POOL, WALL} <= set(np.unique(labels))
    np.testing.assert_array_equal(truth, np.repeat(labels, 5, axis=2))


@dataclass(frozen=True)
class Still:
    """One stack, as it lies and as it belongs."""

    mask: np.ndarray

    def batch(self, step: int, size: int) -> Arrays:  # noqa: ARG002
        """The same whatever the step."""
        slices = np.stack([self.mask[None]] * size)
        return {"slices": slices, "clean": slices, "mask": np.repeat(slices, 5, axis=4)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ms")
    result = CliRunner().invoke(main, ["baseline", "mcsr-ms", str(run), *TINY])
    assert result.exit_code == 0, result.output
    return run


def test_the_third_stage_goes_on_only_with_the_weights_that_it_stands_on(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    more = ["baseline", "mcsr-ms", str(copied), *TINY]
    assert CliRunner().invoke(main, more).exit_code == 0  # nothing changed, nothing left to do
    stage = copied / "mcsr-ms" / "centreline" / "best.safetensors"
    stage.write_bytes((copied / "mcsr-ms" / "super_resolution" / "best.safetensors").read_bytes())
    refused = CliRunner().invoke(main, more)
    assert refused.exit_code == 2
    assert "stands on weights of centreline and super_resolution that were trained further" in refused.stderr
    assert str(copied / "mcsr-ms" / "second_correction") in refused.stderr


def test_three_stages_train_and_tell_what_they_are(run: Path) -> None:
    for name in STAGES:
        best, told = load_weights(run / "mcsr-ms" / name / "best.safetensors")
        assert told["size"] == "tiny"
        assert told["stage"] == name
        assert all(torch.isfinite(t).all() for t in best.values())


def test_the_third_training_leaves_the_first_two_as_they_are(run: Path) -> None:
    """One step under training mode: no gradient, no weight and no batch statistic of theirs moves; its own do."""
    size, mask = SIZES["tiny"], stack(np.random.default_rng(4).integers(56, 72, (8, 2)), 2)
    earlier = FirstTwo.load(run / "mcsr-ms", size, "cpu")
    before = [t.clone() for net in (earlier.line, earlier.edsr) for t in net.state_dict().values()]
    stage = SecondStage(size, Still(mask), [], {}, earlier=earlier, seed=0, penalised=False)
    batch = {name: torch.from_numpy(a) for name, a in stage.source.batch(0, 1).items()}
    stage.model.train()
    stage.loss(batch, 0)[0].backward()
    after = [t for net in (earlier.line, earlier.edsr) for t in net.state_dict().values()]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for net in (earlier.line, earlier.edsr) for p in net.parameters())
    assert any(p.grad is not None and p.grad.any() for p in stage.model.parameters())


def test_prediction_is_centred_repeatable_and_refuses_an_empty_stack(run: Path) -> None:
    method = open_baseline("mcsr-ms", run)
    mask = stack(np.random.default_rng(3).integers(56, 72, (8, 2)), 2)
    found = method.predict(mask, (1.0, 1.0, 10.0))
    assert found.mask.shape == (128, 128, 60)
    assert found.binary
    assert found.shifts is not None
    np.testing.assert_array_equal(found.shifts[[0, 1, 10, 11]], 0)
    pool = pool_features(mask)
    np.testing.assert_allclose(centre_shifts(found.shifts, pool)[2:10], found.shifts[2:10], atol=1e-4)
    again = method.predict(mask, (1.0, 1.0, 10.0))
    np.testing.assert_array_equal(found.mask, again.mask)
    with pytest.raises(EmptyWall):
        method.predict(np.zeros_like(mask), (1.0, 1.0, 10.0))
