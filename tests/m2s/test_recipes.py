"""Preset `paper` has what the paper states, and its losses are those of the literature, against hand counts."""

import numpy as np
import pytest
import torch

from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.train.published import WEIGHT_PENALTY, micro_dice, weight_penalty
from m2s.train.recipes import recipe
from m2s_runtime import ddim


def test_what_the_paper_states() -> None:
    paper = PRESETS["paper"]
    assert (paper.vqvae.codes, paper.vqvae.dim, paper.vqvae.codebook) == (1024, 8, "gradient")
    assert paper.denoiser.channels == (128, 256, 384)
    assert paper.denoiser.target == "noise"
    assert paper.mcsr.motion_channels == (16, 32, 64, 64)
    assert (ddim.BETA_START, ddim.BETA_END, ddim.TRAIN_STEPS, ddim.DEFAULT_STEPS) == (0.0015, 0.0195, 1000, 10)
    np.testing.assert_allclose(ddim.alpha_bars(), np.cumprod(1 - np.linspace(0.0015, 0.0195, 1000)), rtol=1e-6)
    vqvae, diffusion = recipe("paper", "vqvae", 1024), recipe("paper", "diffusion", 1024)
    assert (vqvae.rate, vqvae.schedule, vqvae.steps * vqvae.batch) == (1e-4, "plateau", 800 * 1024)
    assert (diffusion.rate, diffusion.schedule, diffusion.steps * diffusion.batch) == (1e-5, "plateau", 3000 * 1024)
    mcsr = recipe("paper", "mcsr", 12 * 1024)
    assert (mcsr.rate, mcsr.batch, mcsr.steps) == (1e-4, 1, 200 * 12 * 1024)


def test_options_change_a_recipe() -> None:
    assert recipe("paper", "vqvae", 100, batch=8).steps == 800 * 100 // 8
    assert recipe("paper", "vqvae", 100, steps=7, rate=None).steps == 7


def test_micro_dice_counts_both_classes_of_the_whole_batch() -> None:
    rng = np.random.default_rng(0)
    p, t = rng.uniform(size=(2, 1, 3, 4, 5)), rng.integers(0, 2, (2, 1, 3, 4, 5))
    ours = float(micro_dice(torch.from_numpy(p), torch.from_numpy(t)))
    hot = np.stack([t == 0, t == 1]).astype(float)
    soft = np.stack([1 - p, p])
    assert ours == pytest.approx(1 - (2 * (hot * soft).sum() + 1e-5) / (hot.sum() + soft.sum() + 1e-5), rel=1e-6)


def test_weight_penalty_is_on_convolutions_only() -> None:
    net = McsrNet(PRESETS["tiny"].mcsr)
    told = sum(
        float((p.detach().double() ** 2).sum())
        for name, p in net.named_parameters()
        if p.dim() == 5 and "weight" in name
    )
    assert float(weight_penalty(net).detach()) == pytest.approx(WEIGHT_PENALTY * told, rel=1e-5)
