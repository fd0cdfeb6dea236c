"""MCSR-ETE: sizes as published, a bridge that undoes motion, SR-Net on a box as on the whole, and a tiny training."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

from m2s.baselines.edsr import MARGIN_MM, Edsr, EdsrSize, super_resolve
from m2s.baselines.labels import BACKGROUND, POOL, WALL, labelled, one_hot
from m2s.baselines.mcsr_ete.net import SIZES, EteNet, hard_bridge, soft_bridge
from m2s.baselines.mcsr_ete.train import JointStage, LabelSource, recipe_of, told_shifts
from m2s.baselines.registry import open_baseline
from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER, draw_rng, simulate_stack
from m2s.train.cli import main
from m2s.train.loop import Arrays
from m2s.train.published import micro_dice
from m2s_runtime.slices import pool_features, wall_slices

X, Y = np.mgrid[:128, :128].astype(float)


def ring(x: float, y: float, outer: float = 25.0, inner: float = 15.0) -> np.ndarray:
    distance = np.hypot(X - x, Y - y)
    return (distance <= outer) & (distance > inner)


def tensor(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(labels)[None, None]


class Hearts:
    """Stacks of phantoms under the published motion."""

    def batch(self, step: int, size: int) -> Arrays:
        masks = [phantom(40 + step + k).mask for k in range(size)]
        stacks = [simulate_stack(m, draw_rng("ete", step, k), PAPER) for k, m in enumerate(masks)]
        return {
            "slices": np.stack([s.slices[None] for s in stacks]).astype(np.float32),
            "clean": np.stack([s.clean[None] for s in stacks]),
            "mask": np.stack([m[None] for m in masks]),
        }


@pytest.fixture(scope="module")
def heart() -> Arrays:
    return LabelSource(Hearts(), SIZES["tiny"], seed=0).batch(0, 1)


def test_published_sizes() -> None:
    """Counted by hand from method.md, section 2.1."""
    with torch.device("meta"):
        net = EteNet(SIZES["published"])
        assert net.motion(torch.empty(1, 1, 128, 128, 12)).shape == (1, 12, 2)
        assert net.super_resolution(torch.empty(1, 3, 128, 128, 12)).shape == (1, 3, 128, 128, 60)
    assert sum(p.numel() for p in net.motion.heads.parameters()) == 12 * (49152 * 64 + 64 * 2) == 37_750_272
    widths = [8, 32, 64, 128, 256]
    blocks = sum(27 * a * b + 27 * b * b + a * b + 4 * b for a, b in pairwise(widths))
    trunk = 8 * 8 + 2 * 8 + blocks + 256 * 16
    assert sum(p.numel() for p in net.motion.parameters()) == 37_750_272 + trunk
    wide = 27 * 128 * 128
    block = 2 * wide + 128 * 128 + 4 * 128
    high = 2 * 27 * 3 * 128 + 5 * block + wide + 2 * 128
    assert sum(p.numel() for p in net.super_resolution.parameters()) == high
    # Two operations a weight and voxel: what the issue calls about 10 TFLOP.
    weights = sum(m.weight.numel() for m in net.super_resolution.modules() if isinstance(m, torch.nn.Conv3d))
    assert 2 * weights * 128 * 128 * 60 == pytest.approx(10e12, rel=0.05)
    assert not any(m.bias is not None for m in net.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.Linear))
    recipe = recipe_of("joint", "published")
    assert (recipe.rate, recipe.batch, recipe.schedule, SIZES["published"].bridge) == (1e-4, 1, "hyperbolic", "hard")


def test_receptive_field_of_the_super_resolution() -> None:
    """Thirteen convolutions of 3: 27 voxels across."""
    torch.manual_seed(0)
    net = Edsr(replace(SIZES["published"].high, width=2)).eval()
    classes = torch.rand(1, 3, 31, 31, 7, requires_grad=True)
    net(classes)[0, :, 15, 15, 17].sum().backward()
    reached = classes.grad.abs().sum((0, 1)).nonzero()
    assert net.size.reach == 13
    rows = net.blocks[0].first.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(2))  # orthogonal, as published
    assert reached.min(0).values.tolist() == [2, 2, 0]  # planes 4 to 30 of slices five planes thick
    assert reached.max(0).values.tolist() == [28, 28, 6]


def test_the_pool_is_what_the_wall_encloses() -> None:
    wall = np.stack([ring(60, 70), ring(60, 70) & (X < 60), np.zeros((128, 128), bool)], axis=2)
    labels = labelled(wall)
    disc = np.hypot(X - 60, Y - 70) <= 15
    np.testing.assert_array_equal(labels[:, :, 0], np.where(wall[:, :, 0], WALL, np.where(disc, POOL, BACKGROUND)))
    np.testing.assert_array_equal(labels[:, :, 1:], np.where(wall[:, :, 1:], WALL, BACKGROUND))


@pytest.mark.parametrize("bridge", [hard_bridge, soft_bridge])
def test_true_shifts_give_the_clean_slices(bridge, heart: Arrays) -> None:
    clean = heart["clean"][0, 0]
    rng = np.random.default_rng(1)
    shifts = rng.integers(-6, 7, (12, 2))
    moved = np.stack([ndimage.shift(clean[:, :, s], shifts[s], order=0) for s in range(12)], axis=2)
    t = torch.from_numpy(shifts[None].astype(np.float32))
    torch.testing.assert_close(bridge(tensor(moved), t), one_hot(tensor(clean)), rtol=0, atol=0)
    held = torch.from_numpy(wall_slices(clean == WALL))[:, None]
    torch.testing.assert_close(told_shifts(tensor(moved), tensor(clean)), t * held, rtol=0, atol=1e-4)
    # Between voxels: the nearest label, or shares that still add up to one.
    between = bridge(tensor(moved), t + 0.3)
    torch.testing.assert_close(between.sum(1), torch.ones_like(between[:, 0]))
    assert torch.equal(between, one_hot(tensor(clean))) == (bridge is hard_bridge)


@pytest.mark.parametrize("bridge", ["hard", "soft"])
def test_dice_teaches_the_motion_through_the_soft_bridge_only(bridge, heart: Arrays) -> None:
    torch.manual_seed(0)
    net = EteNet(replace(SIZES["tiny"], bridge=bridge))
    batch = {name: torch.from_numpy(a) for name, a in heart.items()}
    shifts, corrected = net(batch["slices"])
    low = micro_dice(corrected, one_hot(batch["clean"]))
    found = net.super_resolution(corrected[:, :, 32:96, 32:96]).softmax(1)
    high = micro_dice(found, one_hot(batch["mask"])[:, :, 32:96, 32:96])
    for dice in (low, high):
        gradient = (
            torch.autograd.grad(dice, shifts, allow_unused=True, retain_graph=True)[0] if dice.requires_grad else None
        )
        assert (gradient is not None and float(gradient.abs().sum()) > 0) == (bridge == "soft")


def test_crops_show_the_same_place_to_the_network_and_to_the_loss(heart: Arrays) -> None:
    size = replace(SIZES["tiny"], moved=5)
    moved = LabelSource(Hearts(), size, seed=0).batch(0, 1)
    # Moved together, so the shifts that centroids tell are the same.
    told = [told_shifts(*(torch.from_numpy(b[name]) for name in ("slices", "clean"))) for b in (heart, moved)]
    assert not np.array_equal(heart["clean"], moved["clean"])
    torch.testing.assert_close(*told, rtol=0, atol=1e-4)
    stage = JointStage(size, LabelSource(Hearts(), size, 0), [], {})
    # A perfect SR-Net: it returns the logits of the planes behind the slices that it was given.
    x, y, s = moved["corner"][0].tolist()
    whole = one_hot(torch.from_numpy(moved["mask"]))

    def perfect(seen: torch.Tensor) -> torch.Tensor:
        assert seen.shape == (1, 3, 32, 32, 4)
        return 100 * whole[:, :, x : x + 32, y : y + 32, 5 * s : 5 * s + 20]

    stage.net.super_resolution.forward = perfect
    _, figures = stage.loss({name: torch.from_numpy(a) for name, a in moved.items()}, 0)
    assert figures["high"] == pytest.approx(0, abs=1e-6)
    assert (moved["clean"][0, 0, x : x + 32, y : y + 32, s : s + 4] == WALL).any()


@torch.no_grad()
def test_the_box_gives_what_the_whole_plane_gives(heart: Arrays) -> None:
    torch.manual_seed(0)
    net = Edsr(EdsrSize(4, blocks=1)).eval().double()
    classes = one_hot(torch.from_numpy(heart["clean"][:, :, ::2, ::2, ::2])).double()
    classes[:, 1:, :20] = 0.0  # cut, so that the box is not symmetric
    classes[:, 0] = 1 - classes[:, 1:].sum(1)
    labels = super_resolve(net, classes)
    held = np.argwhere((classes[0, 0] < 0.5).any(2).numpy())
    inner = [slice(max(a - MARGIN_MM, 0), b + MARGIN_MM + 1) for a, b in zip(held.min(0), held.max(0), strict=True)]
    whole = net(classes)[0].argmax(0).to(torch.uint8)
    assert len(whole[inner[0], inner[1]].unique()) > 1
    assert torch.equal(labels[inner[0], inner[1]], whole[inner[0], inner[1]])
    labels[inner[0], inner[1]] = 0
    assert not labels.any()
    assert not super_resolve(net, one_hot(torch.zeros(1, 1, 128, 128, 12))).any()


def test_tiny_training_and_prediction(tmp_path: Path) -> None:
    options = ["--phantom", "--hearts", "2", "--size", "tiny", "--threads", "1", "--workers", "1", "-q"]
    result = CliRunner().invoke(main, ["baseline", "mcsr-ete", str(tmp_path), *options, "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert "shift_residual" in result.output
    method = open_baseline("mcsr-ete", tmp_path)
    with torch.no_grad():  # whatever two steps taught: background where there is none, wall where the wall is
        method.net.super_resolution.forward = lambda c: c.repeat_interleave(5, 4)
    mask = np.zeros((128, 128, 12), bool)
    mask[:, :, 3:9] = ring(64, 60)[:, :, None]
    found = method.predict(mask, (1.0, 1.0, 10.0))
    held = wall_slices(mask)
    assert not found.shifts[~held].any()
    middle = pool_features(mask)[held, :2] - found.shifts[held]
    np.testing.assert_allclose(middle.mean(0), 63.5, atol=1e-3)  # all slices alike, so their pools weigh alike
    undone = [ndimage.shift(ring(64, 60).astype(float), -found.shifts[s], order=1) for s in np.flatnonzero(held)]
    middle = found.mask[:, :, 17:47:5]
    assert abs(middle - np.stack(undone, axis=2)).mean() < 0.02
    again = method.predict(mask, (1.0, 1.0, 10.0))
    np.testing.assert_array_equal(found.level, again.level)
    assert json.loads((tmp_path / "mcsr-ete" / "baseline.json").read_text())["size"] == "tiny"
