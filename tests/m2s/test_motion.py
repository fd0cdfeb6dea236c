"""MC-Net on slice shapes: moments against sums over pixels, symmetry, closed-form motion against moved images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m2s.data import shapes
from m2s.data.lost_slices import lose_apex
from m2s.data.phantom import phantom
from m2s.data.shapes import slice_shapes, stored_shapes
from m2s.data.simulate import Mixture, Normal, Stack, simulate_stack
from m2s.data.store import StoreSpec, open_store
from m2s.nets.mcsr import McsrNet
from m2s.nets.motion import TrackMotionNet
from m2s.nets.presets import PRESETS
from m2s.nets.slice_moments import FEATURES, MOMENTS, RADIUS_MM, slice_features, turned, wall_centroids, wall_moments
from m2s.train import motion
from m2s.train.job import Job
from m2s.train.stretch import DILATATION, LOG_SIZE, stretched, stretched_by
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import CENTRE
from m2s_runtime.slices import pool_features, signed_distance, wall_slices


def inputs(stack: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """`slices` and `pool` of one stack (128, 128, 12)."""
    return torch.from_numpy(signed_distance(stack, 12.0))[None, None], torch.from_numpy(pool_features(stack))[None]


def features(stack: np.ndarray) -> torch.Tensor:
    slices, pool = inputs(stack)
    centroid, area = wall_centroids(slices)
    return slice_features(centroid, area, pool, wall_moments(slices, centroid, area))


@pytest.fixture(scope="module")
def net() -> TrackMotionNet:
    """A small one with random weights."""
    torch.manual_seed(3)
    made = TrackMotionNet(PRESETS["tiny"].mcsr).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    return made


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return simulate_stack(phantom(5).mask, np.random.default_rng(1), Normal(3.0)).slices


def test_moments_are_means_over_the_pixels_of_the_wall(stack):
    slices, _ = inputs(stack)
    centroid, area = wall_centroids(slices)
    found = wall_moments(slices, centroid, area)[0].numpy()
    s = int(np.flatnonzero(wall_slices(stack))[2])
    x, y = np.nonzero(stack[:, :, s])
    w = ((x - x.mean()) + 1j * (y - y.mean())) / RADIUS_MM
    for k, (a, b) in enumerate(MOMENTS):
        expected = (w**a * w.conj() ** b).mean()
        assert found[s, 0, k] + 1j * found[s, 1, k] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_features_turn_by_a_matrix_as_images_turn(stack, quarter, mirrored):
    image = np.rot90(stack[:, ::-1] if mirrored else stack, quarter)
    matrix = torch.from_numpy(turned(quarter * np.pi / 2, mirrored=mirrored)).float()
    torch.testing.assert_close(features(stack) @ matrix, features(np.ascontiguousarray(image)), atol=1e-4, rtol=1e-4)


def test_shifts_turn_and_mirror_with_the_stack(net, stack):
    with torch.no_grad():
        straight = net(*inputs(stack))[0].numpy()
        quarter = net(*inputs(np.ascontiguousarray(np.rot90(stack))))[0].numpy()
        mirrored = net(*inputs(np.ascontiguousarray(stack[:, ::-1])))[0].numpy()
    assert np.ptp(straight) > 0.5
    np.testing.assert_allclose(quarter, np.stack([-straight[:, 1], straight[:, 0]], -1), atol=1e-3)
    np.testing.assert_allclose(mirrored, straight * [1, -1], atol=1e-3)


def test_motion_in_closed_form_is_the_motion_of_the_images(net):
    """What training makes of a heart's shapes is what the network sees of the moved masks, to sampling noise."""
    mask = phantom(8).mask
    shapes = slice_shapes(mask[None])
    shifts = Normal(3.0).draw(np.random.default_rng(2), 12 * 8)

    class Same:
        def draw(self, rng: np.random.Generator, slices: int) -> np.ndarray:  # noqa: ARG002
            return shifts[:slices].copy()

    arrays = motion.moved(shapes, Same(), np.random.default_rng(4))
    seen = simulate_stack(mask, np.random.default_rng(0), Same()).slices
    held = arrays["held"][0]
    assert np.array_equal(held, wall_slices(seen))
    found = features(seen)[0].numpy()
    assert found.shape == (12, FEATURES)
    np.testing.assert_allclose(arrays["features"][0, held, :2], found[held, :2], atol=0.15)
    np.testing.assert_allclose(arrays["features"][0, held, 4:7], found[held, 4:7], atol=0.03)
    np.testing.assert_allclose(arrays["features"][0, held, 7:], found[held, 7:], atol=0.12, rtol=0.05)
    np.testing.assert_allclose(arrays["pool"][0, held, :2], pool_features(seen)[held, :2], atol=0.6)


def test_turned_shapes_are_those_of_turned_masks():
    mask = phantom(3).mask
    shapes = slice_shapes(np.stack([mask, np.ascontiguousarray(np.rot90(mask))]))
    held = shapes.area[0] > 0
    np.testing.assert_allclose(shapes.wall[1, held], 1j * shapes.wall[0, held], atol=1e-6)
    np.testing.assert_allclose(shapes.pool[1, held], 1j * shapes.pool[0, held], atol=1e-4)
    np.testing.assert_allclose(np.abs(shapes.moments[1]), np.abs(shapes.moments[0]), atol=1e-9)
    again = motion.turned(shapes, np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(again.wall), np.abs(shapes.wall))
    # Products of moments whose turns cancel do not change, up to a mirror.
    invariant = shapes.moments[..., MOMENTS.index((2, 0))] ** 2 * shapes.moments[..., MOMENTS.index((4, 0))].conj()
    turned_too = again.moments[..., MOMENTS.index((2, 0))] ** 2 * again.moments[..., MOMENTS.index((4, 0))].conj()
    np.testing.assert_allclose(turned_too.real, invariant.real, atol=1e-9)


def test_worn_stacks_lose_ends_and_are_seated_anew():
    shapes = slice_shapes(np.stack([phantom(k).mask for k in range(4)]))
    many = motion._pick(shapes, np.arange(400) % 4)  # pyright: ignore[reportPrivateUsage]
    worn = motion.worn(many, motion.Wear(no_apex=1.0, no_base=0.0, rolled=0.0, blurred=0.0, open_ring=0.0),
                       np.random.default_rng(1))  # fmt: skip
    before, after = (many.area > 0).sum(1), (worn.area > 0).sum(1)
    assert set(np.unique(before - after)) == {1, 2}
    first = (worn.area > 0).argmax(1)
    np.testing.assert_array_equal(first, (12 - after) // 2)
    rows, kept = np.arange(400), worn.area[np.arange(400), first]
    np.testing.assert_array_equal(kept, many.area[rows, (many.area > 0).argmax(1)])


def test_a_stack_without_its_apex_keeps_its_truth():
    mask = phantom(2).mask
    stack = simulate_stack(mask, np.random.default_rng(0), Normal(2.0))
    cut, truth = lose_apex(stack, mask, 1)
    held, left = np.flatnonzero(wall_slices(stack.slices)), np.flatnonzero(wall_slices(cut.slices))
    assert len(left) == len(held) - 1
    assert left[0] == (12 - len(left)) // 2
    assert truth.sum() == mask.sum()
    moved = int(left[0] - held[0])
    np.testing.assert_array_equal(truth, np.roll(mask, 5 * moved, axis=2))
    np.testing.assert_array_equal(cut.shifts[left], stack.shifts[held[:-1]])
    np.testing.assert_array_equal(cut.clean[:, :, left], truth[:, :, 5 * left + 2])


def test_a_short_stack_keeps_its_apex():
    slices = np.zeros((128, 128, 12), bool)
    slices[60:70, 60:70, 3:8] = True
    stack, mask = Stack(slices, np.zeros((12, 2), np.float32), slices), np.repeat(slices, 5, axis=2)
    assert lose_apex(stack, mask, 1)[0] is stack


def test_blocks_of_slices_move_together():
    law = Mixture(share=0.0, sd_mm=(0.0, 0.0), outlier=0.0, block=1.0, block_mm=20.0)
    shifts = law.draw(np.random.default_rng(7), 600)
    steps = np.abs(np.diff(shifts, axis=0)).max(1)
    assert 0.05 < (steps > 0).mean() < 0.25
    assert np.hypot(*shifts.T).max() <= 20.0
    assert (np.hypot(*shifts.T) == 0).mean() > 0.25


def direct(spec: StoreSpec, count: int) -> shapes.SliceShapes:
    return slice_shapes(np.stack([spec.heart(k).mask for k in range(count)]))


def test_stored_shapes_are_kept_and_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "PART", 2)
    spec = StoreSpec(None, hearts=3, seed=6)
    wanted = direct(spec, 4)
    np.testing.assert_allclose(stored_shapes(tmp_path, spec).moments, wanted.moments[:3])
    assert not list(tmp_path.glob("masks*"))
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("shapes-*")}
    assert len(kept) == 2
    np.testing.assert_allclose(stored_shapes(tmp_path, spec).wall, wanted.wall[:3])
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("shapes-*")} == kept
    np.testing.assert_allclose(stored_shapes(tmp_path, replace(spec, hearts=4)).wall, wanted.wall)
    assert (tmp_path / "shapes-000000.npz").stat().st_mtime_ns == kept["shapes-000000.npz"]
    np.testing.assert_allclose(stored_shapes(tmp_path, spec).wall, wanted.wall[:3])
    with pytest.raises(UsageProblem, match="other options"):
        stored_shapes(tmp_path, replace(spec, seed=7))


def test_parts_that_are_missing_torn_or_short_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "PART", 1)
    spec = StoreSpec(None, hearts=3, seed=6)
    store = open_store(tmp_path / "masks", spec)
    stored_shapes(tmp_path / "shapes", spec, 1, store)
    parts = [tmp_path / "shapes" / f"shapes-{k:06d}.npz" for k in range(3)]
    kept = parts[2].stat().st_mtime_ns
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:-40])
    np.testing.assert_allclose(stored_shapes(tmp_path / "shapes", spec, 1, store).area, direct(spec, 3).area)
    assert parts[2].stat().st_mtime_ns == kept
    monkeypatch.setattr(shapes, "_make_part", print)
    parts[1].write_bytes(b"")
    with pytest.raises(UsageProblem, match="RUN of its own"):
        stored_shapes(tmp_path / "shapes", spec, 1, store)


def test_mc_net_has_hearts_of_its_own():
    job = Job(Path("run"), "compact", "atlas", None, 100, 0, "cpu", 1, 1, True, None, None, None, None)
    assert [job.motion_spec(s).hearts for s in ("training", "selection")] == [1600, 400]
    assert replace(job, motion_hearts=70).motion_spec("training").hearts == 70
    assert replace(job, atlas=None).motion_spec("training").hearts == 100
    spec = job.spec("training", distances=False)
    assert replace(job.motion_spec("training"), hearts=100, varied_share=0.3) == spec
    phantoms = replace(job, atlas=None)
    assert phantoms.motion_spec("training") == phantoms.spec("training", distances=False)


def test_the_loss_of_the_right_answer_is_zero(tmp_path):
    spec = StoreSpec(None, hearts=3, seed=1)
    open_store(tmp_path, spec)
    source = motion.ShapeSource(tmp_path, spec, 0, motion.training_law(), motion.Wear())
    arrays = source.batch(3, 32)
    again = motion.ShapeSource(tmp_path, spec, 0, motion.training_law(), motion.Wear()).batch(3, 32)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)
    stage = motion.MotionStage(PRESETS["tiny"].mcsr, source, stored_shapes(tmp_path, spec), {})
    batch = {name: torch.from_numpy(a) for name, a in arrays.items()}
    right = batch["wall"] - batch["shifts"]
    assert float(motion._error(batch, right)) == pytest.approx(0, abs=1e-5)  # pyright: ignore[reportPrivateUsage]
    assert float(stage.loss(batch, 0)[0]) > 0.5


def test_a_small_net_learns_the_track(tmp_path):
    """On one heart's shapes it must beat what it starts from: all centroids on one point."""
    spec = StoreSpec(None, hearts=2, seed=9)
    open_store(tmp_path, spec)
    torch.manual_seed(0)
    source = motion.ShapeSource(tmp_path, spec, 0, Normal(1.0), motion.Wear(0, 0, 0, 0, 0))
    stage = motion.MotionStage(PRESETS["tiny"].mcsr, source, stored_shapes(tmp_path, spec), {})
    optimiser = torch.optim.Adam(stage.net.parameters(), 5e-3)
    losses: list[float] = []
    for step in range(120):
        loss, _ = stage.loss({n: torch.from_numpy(a) for n, a in source.batch(step, 64).items()}, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < 0.85 * np.mean(losses[:10])


def test_shifts_of_the_whole_network_are_centred(stack):
    net = McsrNet(PRESETS["tiny"].mcsr).eval()
    slices, pool = inputs(stack)
    with torch.no_grad():
        shifts = net.shifts(slices, pool)
    # Moved by them, the cavity as a whole lies in the middle: its slices' centroids, weighted by their areas.
    moved = ((pool[..., :2] - shifts) * pool[..., 2:]).sum(1) / pool[..., 2:].sum(1)
    torch.testing.assert_close(moved, torch.full_like(moved, CENTRE), atol=1e-3, rtol=0)


def test_stretched_moments_are_those_of_the_stretched_wall():
    """Against the moments of a cloud of points of the wall, each of them moved."""
    shapes = slice_shapes(phantom(5).mask[None])
    s = int(np.flatnonzero(shapes.area[0])[2])
    x, y = np.nonzero(phantom(5).mask[:, :, 5 * s + 2])
    points = (x - x.mean()) + 1j * (y - y.mean())
    found = stretched_by(shapes, np.array([[1.1]]), np.array([[-0.07]]))
    moved = 1.1 * points - 0.07 * points.conj()
    for k, (a, b) in enumerate(MOMENTS):
        expected = ((moved / RADIUS_MM) ** a * (moved.conj() / RADIUS_MM) ** b).mean()
        assert found.moments[0, s, k] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.area[0, s] / shapes.area[0, s] == pytest.approx(1.1**2 - 0.07**2)
    assert found.wall[0, s].real == pytest.approx((1.1 - 0.07) * shapes.wall[0, s].real)
    assert found.pool[0, s].imag == pytest.approx((1.1 + 0.07) * shapes.pool[0, s].imag)
    same = stretched_by(shapes, np.ones((1, 1)), np.zeros((1, 1)))
    np.testing.assert_allclose(same.moments, shapes.moments, atol=1e-12)


def test_every_draw_stretches_the_hearts_anew():
    shape = slice_shapes(phantom(5).mask[None])
    many = motion._pick(shape, np.zeros(4000, int))
    s = int(np.flatnonzero(shape.area[0])[2])
    found = stretched(many, np.random.default_rng(0))
    growth = np.log(found.area[:, s] / shape.area[0, s])
    assert growth.std() == pytest.approx(2 * LOG_SIZE, rel=0.05)
    # Of a nearly round ring the moment (2, 0) over (1, 1) moves by twice the dilatation.
    round_, long_ = (found.moments[:, s, MOMENTS.index(powers)] for powers in ((1, 1), (2, 0)))
    assert (long_ / round_).real.std() == pytest.approx(2 * DILATATION, rel=0.1)


def test_training_sees_stretched_hearts(tmp_path):
    spec = StoreSpec(None, "training", 2, 0)
    open_store(tmp_path, spec)
    source = motion.ShapeSource(tmp_path, spec, 0, Normal(0.0), motion.Wear(0, 0, 0, 0, 0))
    batch = source.batch(0, 64)
    held = batch["held"].sum(1)
    areas = batch["features"][..., 4].max(1)
    # Two hearts, turned, mirrored and stretched: no two sizes alike.
    assert len(held) == 64
    assert len(np.unique(areas.round(6))) > 60
