"""The networks: shapes, re-alignment against SciPy, the quantiser against brute force, published sizes."""

import numpy as np
import pytest
import torch
from monai.networks.schedulers.ddim import DDIMScheduler
from scipy import ndimage

from m2s.nets.blocks import fold_patches, realign, unfold_patches, upsample_nearest
from m2s.nets.denoiser import Denoiser
from m2s.nets.mcsr import DistanceSrNet, McsrNet
from m2s.nets.presets import PRESETS, Preset
from m2s.nets.slice_moments import wall_centroids
from m2s.nets.vqvae import VectorQuantiser, VqVae
from m2s_runtime import ddim
from m2s_runtime.grid import CENTRE, GRID
from m2s_runtime.slices import signed_distance


def weights(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def disc_stack(centres: np.ndarray, radius: float = 20.0) -> np.ndarray:
    """Discs as wall slices, (128, 128, 12) bool; a negative centre leaves a slice empty."""
    x, y = np.mgrid[:128, :128]
    discs = [(x - cx) ** 2 + (y - cy) ** 2 < radius**2 if cx > 0 else np.zeros((128, 128), bool) for cx, cy in centres]
    return np.stack(discs, -1)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -2.0), (0.25, 0.5), (-7.75, 4.125), (200.0, 0.0)])
def test_realign_is_bilinear_translation(shift: tuple[float, float]) -> None:
    plane = np.random.default_rng(0).random((128, 128)).astype(np.float32)
    slices = torch.from_numpy(np.repeat(plane[..., None], 12, -1))[None, None]
    found = realign(slices, torch.tensor(shift).expand(1, 12, 2))[0, 0, :, :, 5]
    # corrected(p) = in(p + t); "grid-constant" interpolates towards the zeros outside as the hat functions do.
    expected = ndimage.shift(plane, [-s for s in shift], order=1, mode="grid-constant", prefilter=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_realign_fills_and_differentiates() -> None:
    slices = torch.rand(1, 1, 128, 128, 12, dtype=torch.float64)
    shifts = torch.full((1, 12, 2), 0.3, dtype=torch.float64, requires_grad=True)
    assert realign(slices, shifts + 500, fill=12.0).eq(12).all()
    step = 1e-4
    loss = lambda t: (realign(slices, t, 12.0) ** 2).mean()  # noqa: E731
    loss(shifts).backward()
    numeric = (loss(shifts.detach() + step) - loss(shifts.detach() - step)) / (2 * step)
    assert float(shifts.grad.sum()) == pytest.approx(float(numeric), rel=1e-4)


def test_patches_round_trip() -> None:
    x = torch.rand(2, 3, 8, 12, 6)
    folded = fold_patches(x, (4, 2, 3))
    assert folded.shape == (2, 72, 2, 6, 2)
    assert torch.equal(unfold_patches(folded, (4, 2, 3)), x)
    assert torch.equal(folded[:, :24, 1, 2, 1].reshape(2, 4, 2, 3), x[:, 0, 4:8, 4:6, 3:6])
    assert torch.equal(upsample_nearest(x, (2, 1, 5))[:, :, 1::2, :, 4::5], x)


def test_quantiser_is_the_brute_force_nearest_code() -> None:
    quantiser = VectorQuantiser(PRESETS["compact"].vqvae).eval()
    latent = torch.randn(2, 8, 4, 3, 2) * 0.1
    flat = latent.permute(0, 2, 3, 4, 1).reshape(-1, 8)
    brute = torch.cdist(flat.double(), quantiser.codebook.double()).argmin(1).reshape(2, 4, 3, 2)
    found = quantiser(latent)
    assert torch.equal(found.codes, brute)
    assert torch.allclose(found.latent, quantiser.lookup(brute), atol=1e-6)


def test_mixed_precision_chooses_the_same_codes() -> None:
    quantiser = VectorQuantiser(PRESETS["compact"].vqvae).eval()
    latent = torch.randn(1, 8, 16, 16, 8) * 0.1
    plain = quantiser.nearest(latent)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantiser.nearest(latent), plain)


def test_gradients_of_equation_one() -> None:
    """With the gradient codebook both terms of Eq. 1 are there and the decoder's gradient passes straight through."""
    size = PRESETS["paper"].vqvae
    quantiser = VectorQuantiser(size)
    latent = torch.randn(1, 8, 2, 2, 2, requires_grad=True)
    answer = quantiser(latent)
    chosen = quantiser.lookup(answer.codes).detach()
    assert answer.loss.item() == pytest.approx(2 * (chosen - latent).square().mean().item(), rel=1e-5)
    (answer.loss + answer.latent.sum()).backward()
    expected = 2 * (latent.detach() - chosen) / latent.numel() + 1
    assert torch.allclose(latent.grad, expected, atol=1e-6)
    assert float(quantiser.codebook.grad.abs().sum()) > 0


def test_moving_average_codebook_follows_and_dead_codes_restart() -> None:
    quantiser = VectorQuantiser(PRESETS["tiny"].vqvae).train()
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(4, 8, 4, 4, 4) + 3
    quantiser.seed(latent.permute(0, 2, 3, 4, 1).flatten(0, 3), generator)
    first = float((quantiser(latent).latent - latent).square().mean())
    for _ in range(300):
        quantiser(latent)
        quantiser.restart_dead(latent, generator)
    assert float((quantiser(latent).latent - latent).square().mean()) < first
    before = quantiser.codebook.clone()
    quantiser.eval()
    quantiser(latent)
    assert torch.equal(before, quantiser.codebook)


def test_twins_become_copies_of_the_more_frequent_code() -> None:
    quantiser = VectorQuantiser(PRESETS["tiny"].vqvae)
    quantiser.codebook.data = torch.arange(32.0)[:, None].repeat(1, 8)
    quantiser.codebook.data[5] = 9.001
    quantiser.hits[9] = 7.0
    before = quantiser.codebook.clone()
    assert quantiser.merge_twins(0.1) == 1
    before[5] = before[9]
    assert torch.equal(quantiser.codebook, before)


@pytest.mark.parametrize("preset", [PRESETS["tiny"], PRESETS["compact"]], ids=lambda p: p.name)
def test_shapes_of_a_preset(preset: Preset) -> None:
    net, vq, denoiser = McsrNet(preset.mcsr).eval(), VqVae(preset.vqvae).eval(), None
    slices, pool = torch.randn(1, 1, 128, 128, 12), torch.rand(1, 12, 3) * 60
    with torch.no_grad():
        shifts = net.shifts(slices, pool)
        assert shifts.shape == (1, 12, 2)
        assert net.probability(slices, shifts).shape == (1, 1, 128, 128, 60)
        found, quantised = vq(torch.randn(1, 1, *GRID))
    assert found.shape == (1, 1, *GRID)
    assert quantised.latent.shape[1:] == vq.latent_shape(GRID) == (8, 16, 16, 8)
    denoiser = Denoiser(preset.denoiser, 8).eval()
    z = torch.randn(2, 8, 16, 16, 8)
    with torch.no_grad():
        assert denoiser(z, z, torch.tensor([0, 999])).shape == z.shape


def test_sizes_are_those_of_the_design_and_the_literature() -> None:
    compact, paper = PRESETS["compact"], PRESETS["paper"]
    nets = [McsrNet(compact.mcsr), VqVae(compact.vqvae), Denoiser(compact.denoiser, 8)]
    assert weights(nets[0]) <= 3_000_000
    assert sum(map(weights, nets)) <= 18_000_000
    with torch.device("meta"):
        published = McsrNet(paper.mcsr).motion
        assert weights(published.heads) == 12 * (49152 * 64 + 64 * 2)
        assert VqVae(paper.vqvae).latent_shape(GRID) == (8, 32, 32, 16)
    # MONAI's U-Net at 128/256/384, two blocks a level, attention on two levels: measured as 110.46 M.
    assert weights(Denoiser(paper.denoiser, 8)) == pytest.approx(110.46e6, rel=1e-3)


def test_untrained_super_resolution_is_shape_based_interpolation() -> None:
    net = DistanceSrNet(PRESETS["tiny"].mcsr).eval()
    distance = signed_distance(disc_stack(np.full((12, 2), CENTRE)), 12.0)
    with torch.no_grad():
        net.last[-1].bias.zero_()
        logits = net(torch.from_numpy(distance)[None, None])[0, 0].numpy()
    for plane in (0, 2, 3, 17, 59):
        position = np.clip((plane - 2) / 5, 0, 11)
        low = min(int(position), 10)
        part = position - low
        expected = (1 - part) * distance[:, :, low] + part * distance[:, :, low + 1]
        np.testing.assert_allclose(-logits[:, :, plane], expected, atol=1e-4)


def test_wall_centroids_against_counting() -> None:
    centres = np.array([[50.0, 70.0], [-1, -1], *[[63.5 + k, 60.0 - k / 2] for k in range(10)]])
    stack = disc_stack(centres)
    wall, area = wall_centroids(torch.from_numpy(signed_distance(stack, 12.0))[None, None])
    held = centres[:, 0] > 0
    np.testing.assert_allclose(wall[0].numpy()[held], centres[held], atol=0.05)
    np.testing.assert_allclose(wall[0, 1].numpy(), CENTRE)
    np.testing.assert_allclose(area[0].numpy(), stack.sum((0, 1)), rtol=0.01)


def test_untrained_motion_puts_the_centroids_on_one_point() -> None:
    """After centring, shifts of a stack moved as a whole differ by that move: position carries no shape."""
    net = McsrNet(PRESETS["tiny"].mcsr).eval()
    pool = torch.zeros(1, 12, 3)
    pool[..., :2], pool[..., 2] = CENTRE, 500.0
    centres = np.full((12, 2), CENTRE) + np.random.default_rng(0).normal(0, 2, (12, 2))
    moved = pool.clone()
    moved[..., :2] += torch.tensor([5.0, -3.0])
    here, there = (
        torch.from_numpy(signed_distance(disc_stack(c), 12.0))[None, None]
        for c in (centres, centres + np.array([5.0, -3.0]))
    )
    with torch.no_grad():
        found = net.shifts(there, moved)[0] - net.shifts(here, pool)[0]
    np.testing.assert_allclose(found.numpy(), np.broadcast_to([5.0, -3.0], found.shape), atol=0.35)


def test_residual_target_returns_the_same_information_as_noise() -> None:
    denoiser = Denoiser(PRESETS["tiny"].denoiser, 8).eval()
    z, zc, t = torch.randn(2, 8, 8, 8, 8), torch.randn(2, 8, 8, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        eps, clean = denoiser(z, zc, t), denoiser.clean(z, zc, t)
    signal, spread = denoiser.levels(t)
    assert torch.allclose(signal * clean + spread * eps, z, atol=1e-4)


@pytest.mark.parametrize("t", [0, 100, 400, 999])
def test_an_untrained_residual_denoiser_is_right_for_gaussian_residuals(t: int) -> None:
    """Against the regression of z_0 on z_t over many draws; its error against the spread of what is left."""
    denoiser = Denoiser(PRESETS["tiny"].denoiser, 8).eval()
    denoiser.residual.fill_(0.4)
    for weight in denoiser.unet.out.parameters():
        torch.nn.init.zeros_(weight)
    generator = torch.Generator().manual_seed(t)
    zc = torch.randn(4, 8, 8, 8, 8, generator=generator)
    clean = zc + 0.4 * torch.randn(zc.shape, generator=generator)
    levels = torch.full((4,), t)
    signal, spread = denoiser.levels(levels)
    z = signal * clean + spread * torch.randn(zc.shape, generator=generator)
    with torch.no_grad():
        error = denoiser.clean(z, zc, levels) - clean
    off, residual = (z - signal * zc).flatten(), (clean - zc).flatten()
    slope = (off @ residual) / (off @ off)
    best = (slope * off - residual).square().mean()
    assert float(error.square().mean()) == pytest.approx(float(best), rel=0.02)
    assert float(error.std()) == pytest.approx(float(denoiser.uncertainty(levels)[0]), rel=0.03)


def test_noise_levels_are_monais_linear_schedule() -> None:
    reference = DDIMScheduler(1000, schedule="linear_beta", beta_start=ddim.BETA_START, beta_end=ddim.BETA_END)
    np.testing.assert_allclose(ddim.alpha_bars(), reference.alphas_cumprod.numpy(), rtol=2e-4)


def test_leading_steps_match_monais_sampler() -> None:
    reference = DDIMScheduler(
        1000, schedule="linear_beta", clip_sample=False, beta_start=ddim.BETA_START, beta_end=ddim.BETA_END
    )
    reference.set_timesteps(10)  # the spacing that its step() assumes; the levels are ours
    noise = torch.randn(1, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    model = lambda z, t: 0.8 * z + 0.01 * t / 999  # noqa: E731
    z = noise
    for t in ddim.timesteps(10, "leading"):
        z, _ = reference.step(model(z, t), t, z, eta=0.0)
    ours = ddim.sample(lambda z, t: model(z, t), noise.numpy(), ddim.timesteps(10, "leading"), ddim.alpha_bars())
    np.testing.assert_allclose(ours, z.numpy(), rtol=2e-3, atol=2e-3)
