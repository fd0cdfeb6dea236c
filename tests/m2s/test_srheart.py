"""SRHeart against its source's sizes, and its search on hearts whose code and shifts are known."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage
from torch import Tensor

from m2s.baselines.labels import POOL, WALL
from m2s.baselines.registry import open_baseline
from m2s.baselines.srheart.method import SrHeart, grid_planes
from m2s.baselines.srheart.net import SIZES, ShapeVae, VaeSize
from m2s.baselines.srheart.search import Search
from m2s.baselines.srheart.train import HeartSource, heart_labels, recipe_of
from m2s.data.phantom import phantom
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.data.store import StoreSpec, open_store
from m2s.metrics import dice
from m2s.train.checkpoint import load_weights
from m2s.train.cli import main
from m2s.train.mcsr import symmetry
from m2s_runtime.errors import EmptyWall

X, Y = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")


def _vae(seed: int = 0) -> ShapeVae:
    """A network whose batch statistics are none of its own."""
    torch.manual_seed(seed)
    net = ShapeVae(SIZES["tiny"])
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return net.eval().requires_grad_(requires_grad=False)


def test_the_published_network_has_the_sources_layers() -> None:
    net = ShapeVae(SIZES["published"])
    down = [(m.in_channels, m.out_channels) for m in net.encoder if isinstance(m, torch.nn.Conv3d)]
    up = [m for m in [*net.body, net.last] if isinstance(m, torch.nn.ConvTranspose3d)]
    assert down == [(4, 4), (4, 8), (8, 16), (16, 32)]
    assert [(m.in_channels, m.out_channels) for m in up] == [(32, 16), (16, 8), (8, 4), (4, 4)]
    convolutions = sum(64 * i * o + o for i, o in [*down, *((m.in_channels, m.out_channels) for m in up)])
    norms = 2 * (4 + 8 + 16 + 32 + 16 + 8 + 4)
    linear = 2 * (8192 * 64 + 64) + 64 * 8192 + 8192
    assert sum(p.numel() for p in net.parameters()) == convolutions + norms + linear == 1_669_516
    with torch.no_grad():
        mean, _ = net.encode(torch.zeros(2, 64, 128, 128, dtype=torch.uint8))
        assert mean.shape == (2, 64)
        assert net.decode(mean).shape == (2, 4, 64, 128, 128)
    published = recipe_of("vae", "published")
    assert (published.rate, published.batch, published.steps * published.batch) == (1e-4, 8, 100 * 1024)


def test_single_planes_are_those_of_the_whole_volume() -> None:
    net, z = _vae(), torch.randn(1, 4, generator=torch.Generator().manual_seed(1))
    volume = net.decode(z)[0].transpose(0, 1)
    whole = torch.tensor([0, 1, 4, 9, 14, 19, 62, 63])
    torch.testing.assert_close(net.planes(z, whole.float()), volume[whole])
    between = torch.tensor([0.25, 7.5, 63.0])
    expected = [0.75 * volume[0] + 0.25 * volume[1], (volume[7] + volume[8]) / 2, volume[63]]
    torch.testing.assert_close(net.planes(z, between), torch.stack(expected))


def test_what_the_wall_closes_in_is_pool() -> None:
    mask = phantom(3).mask
    labels = heart_labels(mask, 10.0)
    np.testing.assert_array_equal(np.moveaxis(labels == WALL, 0, 2)[:, :, 2:62], mask)
    for plane in labels:
        filled = np.asarray(ndimage.binary_fill_holes(plane == WALL))
        np.testing.assert_array_equal(filled & (plane != WALL), plane == POOL)
    assert (labels == POOL).any()


def test_slices_lie_where_the_header_says() -> None:
    np.testing.assert_array_equal(grid_planes(np.arange(12), 10.0), 5 * np.arange(12) + 4)
    # 8 mm apart are four planes of 2 mm, about the same middle.
    at = grid_planes(np.arange(12), 8.0)
    np.testing.assert_allclose(np.diff(at), 4)
    assert at.mean() == pytest.approx(grid_planes(np.arange(12), 10.0).mean() * 0.8 + 31.5 * 0.2)


class Tubes(torch.nn.Module):
    """A decoder in closed form: a tube whose two codes are its radius and how much wider each plane is."""

    size = VaeSize(3, 0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def planes(self, z: Tensor, depths: Tensor) -> Tensor:
        """Logits (N, 3, 128, 128)."""
        radius = (26 + 4 * z[0, 0] + 0.1 * z[0, 1] * (depths - 31.5))[:, None, None]
        away = torch.hypot(X - 63.5, Y - 63.5)
        wall, pool = 5 - (away - radius).abs(), radius - 5 - away
        return torch.stack([torch.zeros_like(wall), pool, wall], 1)

    def decode(self, z: Tensor) -> Tensor:
        """All 64 planes."""
        return self.planes(z, torch.arange(64.0)).transpose(0, 1)[None]


def test_the_search_finds_the_shape_and_the_shifts_of_a_known_heart() -> None:
    net, code, step = Tubes(), torch.tensor([[1.0, -1.5]]), 8.0
    method = SrHeart(cast("ShapeVae", net), Search(steps=120, halve_every=15))
    heart = (net.decode(code)[0].argmax(0) == WALL).permute(1, 2, 0).numpy()
    there = grid_planes(np.arange(12), step)
    clean = (net.planes(code, torch.from_numpy(there)).argmax(1) == WALL).permute(1, 2, 0).numpy()
    # Two slices at the ends are not drawn.
    clean[:, :, [0, 11]] = False
    stack = simulate_stack(np.repeat(clean, 5, axis=2), draw_rng("tube", 0, 0))
    found = method.predict(stack.slices, (1.0, 1.0, step))
    assert found.shifts is not None
    np.testing.assert_allclose(found.shifts, stack.shifts, atol=0.55)  # moved masks keep to whole pixels
    assert dice(found.mask, heart[:, :, 2:62]) > 0.98


def test_prediction_is_repeatable_and_leaves_the_network_as_it_is() -> None:
    net = _vae()
    assert net.last.bias is not None
    net.last.bias[WALL] += 10
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    method = SrHeart(net, Search(steps=2))
    stack = phantom(0).mask[:, :, 2::5]
    one, two = method.predict(stack, (1.0, 1.0, 10.0)), method.predict(stack, (1.0, 1.0, 10.0))
    np.testing.assert_array_equal(one.mask, two.mask)
    np.testing.assert_array_equal(cast("np.ndarray", one.shifts), cast("np.ndarray", two.shifts))
    assert one.mask.shape == (128, 128, 60)
    for name, tensor in net.state_dict().items():
        assert torch.equal(before[name], tensor), name
    with pytest.raises(EmptyWall, match="no slice"):
        method.predict(np.zeros_like(stack), (1.0, 1.0, 10.0))


def test_the_command_trains_what_the_method_opens(tmp_path: Path) -> None:
    options = ["--phantom", "--size", "tiny", "--hearts", "4", "--steps", "2", "--threads", "1", "--workers", "1", "-q"]
    result = CliRunner().invoke(main, ["baseline", "srheart", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    weights, metadata = load_weights(tmp_path / "srheart" / "vae" / "best.safetensors")
    assert metadata["size"] == "tiny"
    method = cast("SrHeart", open_baseline("srheart", tmp_path))
    assert not method.net.training
    assert method.search == Search(500, 0.1, 0.2, 100)
    for name, tensor in method.net.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_hearts_cut_at_other_steps_are_brought_to_the_grid(tmp_path: Path) -> None:
    spec = StoreSpec(None, hearts=1, seed=4)
    mask = open_store(tmp_path, spec).mask(0)
    (tmp_path / "ids-0000.json").write_text('["mesa-0001-ED-0-1.6"]')
    varied = HeartSource(tmp_path, replace(spec, varied_steps=True), 0, 4)
    expected = {heart_labels(symmetry(mask, k), 8.0).tobytes() for k in range(8)}
    assert varied.batch(0, 1)["labels"][0].tobytes() in expected
    plain = HeartSource(tmp_path, spec, 0, 4).batch(0, 1)["labels"][0]
    assert plain.tobytes() in {heart_labels(symmetry(mask, k), 10.0).tobytes() for k in range(8)}
