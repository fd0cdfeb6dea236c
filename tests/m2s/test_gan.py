"""The conditional GAN: two networks in one stage, each with gradients of its own, resumed as undisturbed."""

import csv
import math
from pathlib import Path

import pytest
import torch
from asked import asked_twice
from click.testing import CliRunner
from in_threads import no_processes, whole_and_resumed
from tiny_run import save_checkpoint
from torch import nn

from m2s.baselines.front import open_mcsr, open_vqvae
from m2s.baselines.gan.net import SIZES, Discriminator, Gan, generated
from m2s.baselines.gan.train import L1_WEIGHT, GanStage, recipe_of
from m2s.baselines.latent_pairs import LatentPairs
from m2s.baselines.registry import open_baseline
from m2s.data.phantom import phantom
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.data.store import HeartStore, StoreSpec
from m2s.nets.denoiser import Denoiser
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import load_weights
from m2s.train.cli import main
from m2s.train.pairs import PairSource, selection_maker

TINY = ["--phantom", "--hearts", "2", "--threads", "1", "--workers", "1", "--size", "tiny", "--device", "cpu", "-q"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_checkpoint(folder, "mcsr", McsrNet(PRESETS["tiny"].mcsr).state_dict())
    save_checkpoint(folder, "vqvae", VqVae(PRESETS["tiny"].vqvae).state_dict())
    with no_processes():
        result = CliRunner().invoke(main, ["baseline", "gan", str(folder), *TINY, "--steps", "2", "--batch", "2"])
    assert result.exit_code == 0, result.output
    return folder


def make_stage(run: Path) -> GanStage:
    store = HeartStore(run / "hearts" / "training-distances", StoreSpec(None, hearts=2, seed=1, distances=True))
    vqvae = open_vqvae(run)
    judge = selection_maker(store, open_mcsr(run), vqvae, 1)
    torch.manual_seed(0)
    return GanStage(SIZES["tiny"], LatentPairs(PairSource(run / "pairs", 0, 2.0), 2.0, judge, judge, 1), vqvae, {})


@pytest.fixture
def stage(run):
    return make_stage(run)


@pytest.fixture
def batch(stage):
    return {name: torch.from_numpy(a) for name, a in stage.source.batch(0, 2).items()}


def test_the_command_leaves_both_networks_and_a_learning_curve(run):
    weights, told = load_weights(run / "gan" / "gan" / "best.safetensors")
    assert {name.split(".")[0] for name in weights} == {"generator", "discriminator"}
    assert (told["stage"], told["size"]) == ("gan", "tiny")
    assert float(told["scale_factor"]) > 0
    row = list(csv.DictReader((run / "gan" / "gan" / "log.csv").open()))[-1]
    assert float(row["loss"]) == pytest.approx(float(row["generator"]) + float(row["discriminator"]), rel=1e-3)
    assert float(row["discriminator"]) == pytest.approx(math.log(2), abs=0.2)


def test_each_loss_leaves_the_other_network_alone(stage, batch):
    zs, zc = batch["zs"], batch["zc"]
    both = dict(stage.gan.named_parameters())
    optimiser = torch.optim.Adam(both.values(), 1e-3)
    for own in ("generator", "discriminator"):
        before = {name: p.detach().clone() for name, p in both.items()}
        found = generated(stage.gan.generator, batch["noise"], zc)
        optimiser.zero_grad()
        (stage.making(found, zs, zc) if own == "generator" else stage.judging(found.detach(), zs, zc)).backward()
        optimiser.step()
        changed = {name.split(".")[0] for name, p in both.items() if not p.equal(before[name])}
        assert changed == {own}


def test_the_adversarial_part_reaches_the_generator(stage, batch):
    found = batch["zs"].clone().requires_grad_()  # nothing is left for the L1 term
    stage.making(found, batch["zs"], batch["zc"]).backward()
    assert found.grad is not None
    assert found.grad.abs().max() > 0


def test_losses_of_a_discriminator_that_cannot_tell(stage, batch):
    for parameter in stage.gan.discriminator.parameters():
        nn.init.zeros_(parameter)
    zs, zc = batch["zs"], batch["zc"]
    assert stage.judging(zc, zs, zc).item() == pytest.approx(math.log(2))
    assert stage.making(zs + 0.25, zs, zc).item() == pytest.approx(0.25 + math.log(2) / L1_WEIGHT, rel=1e-5)


def test_an_untrained_generator_hands_the_condition_on(stage, batch):
    with torch.no_grad():
        found = generated(stage.gan.generator.eval(), batch["noise"], batch["zc"])
    torch.testing.assert_close(found, batch["zc"], atol=0.1, rtol=0)


@pytest.mark.parametrize(("size", "preset"), [("published", "paper"), ("cpu", "compact"), ("tiny", "tiny")])
def test_the_generator_is_the_denoiser(size, preset):
    with torch.device("meta"):
        generator, denoiser = (Denoiser(s, 8) for s in (SIZES[size].preset.denoiser, PRESETS[preset].denoiser))
    shapes = [{name: t.shape for name, t in net.state_dict().items()} for net in (generator, denoiser)]
    assert shapes[0] == shapes[1]
    if size == "published":  # widths of the paper's section 3.1
        assert sum(p.numel() for p in generator.parameters()) == pytest.approx(110.5e6, abs=0.1e6)


def test_a_patch_is_eleven_cells_wide():
    net, field, jump = Discriminator(8, 4), 1, 1
    for layer in (m for m in net.modules() if isinstance(m, nn.Conv3d)):
        field, jump = field + (layer.kernel_size[0] - 1) * jump, jump * layer.stride[0]
    assert (field, jump) == (11, 2)
    assert net(*torch.zeros(2, 1, 8, 16, 16, 8)).shape == (1, 1, 8, 8, 4)


def test_constants_are_of_their_sources():
    assert L1_WEIGHT == 100  # pix2pix, section 3.3
    assert recipe_of("gan", "cpu").rate == 4e-4  # of our diffusion
    assert recipe_of("gan", "published").rate == 1e-5


def test_a_resumed_training_ends_where_an_undisturbed_one_does(run, tmp_path):
    whole, parted = whole_and_resumed(lambda: make_stage(run), tmp_path)
    assert isinstance(make_stage(run).model, Gan)
    for name, tensor in whole.items():
        torch.testing.assert_close(parted[name], tensor, rtol=0, atol=0)


def test_a_stack_always_gives_the_same_surface(run, monkeypatch):
    stack = simulate_stack(phantom(3).mask, draw_rng("h", 0, 0)).slices
    method = open_baseline("gan", run)
    seen = asked_twice(method, method.vqvae, monkeypatch, stack)
    method.predict(stack[::-1].copy(), (1.0, 1.0, 10.0))
    assert not seen[2].equal(seen[0])
