"""The VAE in place of the VQ-VAE: the same networks, its divergence, means as latents, resumed as undisturbed."""

import csv

import numpy as np
import pytest
import torch
from asked import asked_twice
from click.testing import CliRunner
from in_threads import no_processes, whole_and_resumed
from tiny_run import save_checkpoint
from torch.distributions import Normal
from torch.distributions import kl_divergence as divergence

from m2s.baselines.registry import open_baseline
from m2s.baselines.vae.net import SIZES, Vae, kl_divergence
from m2s.baselines.vae.train import KL_WEIGHT, VaeStage, open_vae, recipe_of
from m2s.data.phantom import phantom
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.data.store import HeartStore, StoreSpec
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import load_weights
from m2s.train.cli import main
from m2s.train.vqvae import GridSource
from m2s_runtime.grid import GRID

TINY = ["--phantom", "--hearts", "2", "--threads", "1", "--workers", "1", "--size", "tiny", "--device", "cpu", "-q"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_checkpoint(folder, "mcsr", McsrNet(PRESETS["tiny"].mcsr).state_dict())
    with no_processes():
        result = CliRunner().invoke(main, ["baseline", "vae", str(folder), *TINY, "--steps", "2", "--batch", "2"])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def stage(run):
    return make_stage(run)


def make_stage(run):
    folder, spec = run / "hearts" / "training-distances", StoreSpec(None, hearts=2, seed=1, distances=True)
    torch.manual_seed(0)
    source = GridSource(folder, spec, 0, 64)
    return VaeStage(SIZES["tiny"], source, HeartStore(folder, spec), {}, near_weight=4.0, monitor="assd")


def test_the_command_leaves_both_trainings_and_pairs_of_its_own(run):
    for name in ("autoencoder", "diffusion"):
        weights, told = load_weights(run / "vae" / name / "best.safetensors")
        assert all(torch.isfinite(t).all() for t in weights.values())
        assert (told["stage"], told["size"]) == (name, "tiny")
        assert list(csv.DictReader((run / "vae" / name / "log.csv").open()))[-1]["step"] == "2"
    assert (run / "vae" / "pairs" / "pairs-00000.npy").is_file()
    assert not (run / "pairs").exists()
    zs = np.load(run / "vae" / "pairs" / "pairs-00000.npy")[:, 1].astype(np.float64)
    assert float(told["scale_factor"]) == pytest.approx(1 / zs.std(), rel=1e-3)


def test_the_divergence_is_the_text_books():
    mean, log_variance = torch.randn(2, 3, 8, 4, 4, 2, dtype=torch.float64)
    known = divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), known)
    assert not kl_divergence(torch.zeros(1, 8), torch.zeros(1, 8)).any()


@pytest.mark.parametrize(("size", "preset"), [("published", "paper"), ("cpu", "compact"), ("tiny", "tiny")])
def test_only_the_bottleneck_is_another(size, preset):
    with torch.device("meta"):
        vae, vqvae = Vae(SIZES[size]), VqVae(PRESETS[preset].vqvae)
    last = f"encoder.{len(vae.encoder) - 1}"
    expected = {name: t.shape for name, t in vqvae.state_dict().items() if not name.startswith("quantiser")}
    found = {name: t.shape for name, t in vae.state_dict().items()}
    for name in (f"{last}.weight", f"{last}.bias"):
        outputs, *rest = expected[name]
        expected[name] = torch.Size([2 * outputs, *rest])
    assert found == expected
    assert vae.latent_shape(GRID) == vqvae.latent_shape(GRID)


def test_rates_are_ours():
    assert [recipe_of(name, "published").rate for name in ("autoencoder", "diffusion")] == [1e-4, 1e-5]  # the paper's
    assert recipe_of("autoencoder", "published").steps == 800 * 1024 // 4
    assert [recipe_of(name, "cpu").rate for name in ("autoencoder", "diffusion")] == [1e-3, 4e-4]


def test_the_loss_is_reconstruction_and_weighted_divergence_of_a_draw_that_the_step_decides(stage):
    batch = {name: torch.from_numpy(a) for name, a in stage.source.batch(0, 2).items()}
    with torch.no_grad():
        loss, figures = stage.loss(batch, 7)
        torch.randn(5)
        again, other = (float(stage.loss(batch, step)[0]) for step in (7, 8))
    assert again == float(loss) != other
    numbers = stage.net.latent(batch["sdg"])[0].numel()
    told = figures["l1_mm"] / stage.size.clamp_mm + KL_WEIGHT * numbers * figures["nats_a_number"]
    assert float(loss) == pytest.approx(told, rel=1e-5)


def test_a_resumed_training_ends_where_an_undisturbed_one_does(run, tmp_path):
    whole, parted = whole_and_resumed(lambda: make_stage(run), tmp_path)
    assert whole.keys() == parted.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parted[name], tensor, rtol=0, atol=0)


def test_a_stack_always_gives_the_same_surface(run, monkeypatch):
    stack = simulate_stack(phantom(3).mask, draw_rng("h", 0, 0)).slices
    method = open_baseline("vae", run)
    csdg, _ = method.front.csdg(stack, (1.0, 1.0, 10.0))
    seen = asked_twice(method, method.vae, monkeypatch, stack)
    # Two steps of training hardly move a denoiser that starts as the identity.
    mean = open_vae(run / "vae").latent(torch.from_numpy(csdg)[None, None]).detach()
    assert float((seen[0] - mean).square().mean() / mean.square().mean()) < 0.1
