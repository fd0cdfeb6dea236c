"""Both codebooks against hand counts: Eq. 1's gradients, the moving average, restarts, perplexity, dead codes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

from m2s.data.phantom import phantom
from m2s.data.sdg import signed_distance_grid
from m2s.data.store import StoreSpec, open_store
from m2s.nets.presets import PRESETS, VqVaeSize
from m2s.nets.vqvae import DEAD, VectorQuantiser
from m2s.train.checkpoint import load_weights
from m2s.train.cli import main
from m2s.train.vqvae import NEAR_MM, GridSource, VqVaeStage, near_cells, perplexity

FOUR = replace(PRESETS["tiny"].vqvae, codes=4, dim=2)
CODES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])


def quantiser(mode: str) -> VectorQuantiser:
    made = VectorQuantiser(replace(FOUR, codebook=mode))
    made.codebook.data = CODES.clone()
    made.sums.copy_(CODES)
    return made


def latents(rows: list[list[float]]) -> torch.Tensor:
    """(1, 2, n, 1, 1) from n vectors."""
    return torch.tensor(rows).T.reshape(1, 2, -1, 1, 1)


def test_a_moving_average_step_by_hand() -> None:
    made = quantiser("ema").train()
    answer = made(latents([[0.2, 0.0], [-0.4, 0.2], [1.2, 0.0]]))
    assert answer.codes.flatten().tolist() == [0, 0, 1]
    # hits: 0.99 * 1 + 0.01 * (2, 1, 0, 0); sums: 0.99 * code + 0.01 * (sum of the latents that took it)
    hits, sums = [1.01, 1.0, 0.99, 0.99], [[-0.002, 0.002], [1.002, 0.0], [0.0, 0.99], [8.91, 8.91]]
    np.testing.assert_allclose(made.hits, hits, rtol=1e-6)
    np.testing.assert_allclose(made.sums, sums, atol=1e-6)
    np.testing.assert_allclose(made.codebook.detach(), np.array(sums) / np.array(hits)[:, None], atol=1e-6)
    # A quarter of the mean square of (0.2, 0), (-0.4, 0.2), (0.2, 0).
    assert float(answer.loss) == pytest.approx(0.25 * (0.04 + 0.16 + 0.04 + 0.04) / 6, rel=1e-6)
    assert not answer.loss.requires_grad
    assert not made.codebook.requires_grad


def test_equation_one_by_hand() -> None:
    """d|sg[z] - c|^2/dc moves the codes that were taken, d|sg[c] - z|^2/dz the latents, neither the other."""
    made = quantiser("gradient").train()
    z = latents([[0.2, 0.0], [-0.4, 0.2], [1.2, 0.0]]).requires_grad_()
    answer = made(z)
    assert float(answer.loss.detach()) == pytest.approx(2 * (0.04 + 0.16 + 0.04 + 0.04) / 6, rel=1e-6)
    answer.loss.backward()
    # Means over six numbers: gradient 2 (c - z) / 6, summed over the latents of a code.
    expected = np.array([[0.2, -0.2], [-0.2, 0.0], [0.0, 0.0], [0.0, 0.0]]) / 3
    np.testing.assert_allclose(made.codebook.grad, expected, atol=1e-7)
    np.testing.assert_allclose(z.grad[0, :, :, 0, 0].T, np.array([[0.2, 0.0], [-0.4, 0.2], [0.2, 0.0]]) / 3, atol=1e-7)
    np.testing.assert_allclose(made.hits, [1.01, 1.0, 0.99, 0.99], rtol=1e-6)
    assert torch.equal(made.codebook.detach(), CODES)


@pytest.mark.parametrize("mode", ["ema", "gradient"])
def test_dead_codes_restart_on_what_is_badly_quantised(mode: str) -> None:
    made = quantiser(mode).train()
    near, far = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [5.0, -5.0]
    z = latents([*near, far])
    steps = 0
    while len(made.dead()) == 0:
        made(z)
        steps += 1
    # 0.99^n falls under the threshold
    assert steps == int(np.ceil(np.log(DEAD) / np.log(0.99)))
    assert made.dead().tolist() == [3]
    error = (made.lookup(made.nearest(z)) - z).square().sum(1).flatten()
    assert made.restart_dead(z, torch.Generator().manual_seed(0)) == 1
    # Onto a latent, drawn in proportion to its error; those that sit on their code have none.
    taken = [row for row, bad in zip([*near, far], error.tolist(), strict=True) if bad > 1e-3]
    assert made.codebook[3].tolist() in taken
    assert far in taken
    assert len(made.dead()) == 0
    assert made.restart_dead(z, torch.Generator().manual_seed(0)) == 0


def test_counting_stops_outside_training() -> None:
    for mode in ("ema", "gradient"):
        made = quantiser(mode).eval()
        made(latents([[0.2, 0.0]]))
        assert torch.equal(made.hits, torch.ones(4))


def test_perplexity() -> None:
    assert perplexity(torch.tensor([3, 3, 3]), 8) == pytest.approx(1.0)
    assert perplexity(torch.arange(8).repeat(5), 8) == pytest.approx(8.0)
    counts = np.array([1, 3])
    entropy = -(counts / 4 * np.log(counts / 4)).sum()
    assert perplexity(torch.tensor([0, 1, 1, 1]), 8) == pytest.approx(np.exp(entropy))


def test_cells_near_the_surface() -> None:
    """Against a loop over the cells of a real grid."""
    heart = phantom(0)
    grid = signed_distance_grid(heart.grid_vertices, heart.faces).astype(np.float32)
    size = PRESETS["tiny"].vqvae
    found = near_cells(torch.from_numpy(grid)[None, None], size)[0].numpy()
    least = ndimage.minimum_filter(np.abs(grid), size.stride, origin=[-(s // 2) for s in size.stride])
    expected = least[tuple(slice(0, None, s) for s in size.stride)] < NEAR_MM
    np.testing.assert_array_equal(found, expected)
    assert 0.02 < found.mean() < 0.5


@pytest.mark.parametrize("mode", ["ema", "gradient"])
def test_figures_of_log_and_validation(mode: str, tmp_path: Path) -> None:
    """An untrained network with four codes planted: what the figures say is what its codes are."""
    spec = StoreSpec(None, hearts=2, seed=5, distances=True)
    store = open_store(tmp_path, spec)
    torch.manual_seed(0)
    size: VqVaeSize = replace(PRESETS["tiny"].vqvae, codebook=mode)
    stage = VqVaeStage(size, GridSource(tmp_path, spec, 0, 64), store, {}, warm_up=0)
    batch = {name: torch.from_numpy(a) for name, a in stage.source.batch(0, 1).items()}
    loss, log = stage.loss(batch, 0)
    assert torch.isfinite(loss)
    assert 1 < log["batch_perplexity"] <= 32
    assert log["hardly_used"] == 0
    stage.net.eval()
    with torch.no_grad():
        found = stage.validate(stage.net, tmp_path)
        grids = torch.stack([torch.from_numpy(store.distance(k))[None] for k in range(2)])
        codes = stage.net.quantise(grids).codes
    assert found["dead_codes"] == 32 - len(np.unique(codes))
    share = np.bincount(codes.numpy().ravel(), minlength=32) / codes.numel()
    assert found["perplexity"] == pytest.approx(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()), rel=1e-6)
    near = codes.numpy()[near_cells(grids, size).numpy()]
    assert found["perplexity_near"] == pytest.approx(perplexity(torch.from_numpy(near), 32))
    assert np.isfinite(found["validation_loss"])
    assert stage.metadata()["codebook"] == mode


def test_equation_one_is_not_rescaled(tmp_path: Path) -> None:
    """Preset `paper`: plain L1 in units of the clamp, plus the quantiser's terms at weight one."""
    spec = StoreSpec(None, hearts=1, seed=5, distances=True)
    store = open_store(tmp_path, spec)
    torch.manual_seed(0)
    size = replace(PRESETS["tiny"].vqvae, codebook="gradient")
    stage = VqVaeStage(size, GridSource(tmp_path, spec, 0), store, {}, near_weight=0.0, balanced=False)
    stage.net.eval()
    with torch.no_grad():
        found = stage.validate(stage.net, tmp_path)["validation_loss"]
        sdg = torch.from_numpy(store.distance(0))[None, None]
        reconstruction, quantised = stage.net(sdg)
        latent = stage.net.encode(sdg)
    l1 = (reconstruction - sdg.clamp(-10, 10)).abs().mean() / 10
    terms = 2 * (stage.net.quantiser.lookup(quantised.codes) - latent).square().mean()
    assert found == pytest.approx(float((l1 + terms).detach()), rel=1e-5)


def test_the_codebook_is_chosen_on_the_command_line_once(tmp_path: Path) -> None:
    words = ["vqvae", str(tmp_path), "--preset", "tiny", "--phantom", "--hearts", "1", "--steps", "2", "--batch", "1"]
    words += ["--threads", "1", "--workers", "1", "-q", "--codebook"]
    done = CliRunner().invoke(main, [*words, "gradient"])
    assert done.exit_code == 0, done.output
    assert "dead_codes" in done.output
    assert load_weights(tmp_path / "vqvae" / "best.safetensors")[1]["codebook"] == "gradient"
    other = CliRunner().invoke(main, [*words, "ema"])
    assert other.exit_code == 2
    assert "began with --codebook gradient" in other.output
