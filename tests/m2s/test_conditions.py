"""Mask and slices as conditions: both train on the same pairs, the encoder learns, nothing else of the run changes."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from in_threads import no_processes
from tiny_run import save_checkpoint
from torch import nn

from m2s.baselines.condition.method import load
from m2s.baselines.condition.net import SIZES, ConditionedDenoiser
from m2s.baselines.condition.train import CONDITIONS, ConditionStage
from m2s.baselines.front import open_mcsr, open_vqvae
from m2s.baselines.latent_pairs import LatentPairs
from m2s.data.phantom import phantom
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.data.store import HeartStore, StoreSpec
from m2s.nets.denoiser import Denoiser
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import load_weights
from m2s.train.cli import main
from m2s.train.condition_pairs import ConditionSource, make_conditions, repeated, unpacked_masks
from m2s.train.diffusion import sampled
from m2s.train.pairs import SHARD, training_maker
from m2s_runtime.errors import EmptyWall, UsageProblem
from m2s_runtime.grid import GRID, SPACING

TINY = ["--preset", "tiny", "--phantom", "--hearts", "2", "--threads", "1", "--workers", "1", "--size", "tiny", "-q"]
STEP = (1.0, 1.0, 10.0)


class Ball(nn.Module):
    """Decodes a latent to a ball of 20 mm plus its mean: a surface, whatever the networks have learnt."""

    def decode(self, latent):
        x, y, z = np.meshgrid(*((np.arange(n) - n / 2) * s for n, s in zip(GRID, SPACING, strict=True)), indexing="ij")
        ball = torch.from_numpy(np.sqrt(x**2 + y**2 + z**2) - 20).float()
        return ball[None, None] + latent.mean().clamp(-5, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_checkpoint(folder, "mcsr", McsrNet(PRESETS["tiny"].mcsr).state_dict())
    save_checkpoint(folder, "vqvae", VqVae(PRESETS["tiny"].vqvae).state_dict())
    before = {p: p.read_bytes() for p in folder.glob("*/best.safetensors")}
    made = []
    for name in CONDITIONS:
        with no_processes():
            result = CliRunner().invoke(main, ["baseline", name, str(folder), *TINY, "--steps", "2", "--batch", "2"])
        assert result.exit_code == 0, result.output
        made.append({p: p.stat().st_mtime_ns for p in folder.glob("*/pairs-*.npy")})
    assert len(made[0]) == 2
    assert made[0] == made[1]  # the second ablation reads what the first had made
    assert {p: p.read_bytes() for p in before} == before
    return folder


@pytest.fixture(scope="module")
def maker(run):
    hearts = HeartStore(run / "hearts" / "training-distances", StoreSpec(None, hearts=2, seed=1, distances=True))
    return training_maker(hearts, open_mcsr(run), open_vqvae(run), seed=0, threads=1)


@pytest.fixture(scope="module")
def stack():
    return simulate_stack(phantom(3).mask, draw_rng("h", 0, 0)).slices


@pytest.mark.parametrize("name", CONDITIONS)
def test_the_command_leaves_weights_and_a_learning_curve(name, run):
    weights, told = load_weights(run / name / "diffusion" / "best.safetensors")
    assert {key.split(".")[0] for key in weights} == {"encoder", "denoiser"}
    assert (told["size"], told["condition"]) == ("tiny", CONDITIONS[name])
    rows = list(csv.DictReader((run / name / "diffusion" / "log.csv").open()))
    assert np.isfinite(float(rows[-1]["loss"]))
    assert float(rows[-1]["assd_zc"]) > 0


@pytest.mark.parametrize("condition", CONDITIONS.values())
def test_a_latent_is_shown_with_the_masks_of_its_own_pair(condition, run, maker):
    batch = ConditionSource(run / "pairs", run / "conditions", condition, 0, 2.0).batch(3, 3)
    latents = np.load(run / "pairs" / "pairs-00000.npy").astype(np.float32)
    for zs, mask in zip(batch["zs"], batch["mask"], strict=True):
        # The same heart under the same symmetry may have come with two stacks.
        same = [k for k in range(SHARD) if np.array_equal(2 * latents[k, 1], zs)]
        shown = [maker.wall(k)[0] if condition == "mask" else repeated(maker.slices(k), 10.0) for k in same]
        assert any(np.array_equal(mask[0], one) for one in shown)


def test_masks_are_made_where_they_are_missing_and_of_one_maker(run, maker, tmp_path):
    shutil.copytree(run / "conditions", tmp_path / "masks")
    first = tmp_path / "masks" / "pairs-00000.npy"
    before = first.stat().st_mtime_ns
    with no_processes():
        make_conditions(tmp_path / "masks", maker, SHARD + 1)
    assert first.stat().st_mtime_ns == before
    wall, slices = unpacked_masks(np.load(tmp_path / "masks" / "pairs-00001.npy")[2])
    np.testing.assert_array_equal(wall, maker.wall(SHARD + 2)[0])
    np.testing.assert_array_equal(slices, maker.slices(SHARD + 2))
    with pytest.raises(UsageProblem, match="another seed"):
        make_conditions(tmp_path / "masks", replace(maker, seed=5), 1)


def test_the_encoder_gets_a_gradient_and_the_vqvae_none(run, maker):
    vqvae = open_vqvae(run)
    source = ConditionSource(run / "pairs", run / "conditions", "mask", 0, 2.0)
    stage = ConditionStage("tiny", "mask", source, LatentPairs(source, 2.0, maker, maker, 0), vqvae, {})
    stage.loss({name: torch.from_numpy(a) for name, a in source.batch(0, 4).items()}, 0)[0].backward()
    encoder = [m for m in stage.conditioned.encoder if isinstance(m, nn.Conv3d)]
    assert all(m.weight.grad.abs().max() > 1e-6 for m in encoder)
    assert all(p.grad is None for p in vqvae.parameters())


def test_an_untrained_denoiser_hands_the_encoders_answer_on():
    denoiser = Denoiser(PRESETS["tiny"].denoiser, 8).eval()
    for weight in list(denoiser.unet.out.parameters()):
        nn.init.zeros_(weight)
    zc = torch.randn(1, 8, 16, 16, 8)
    with torch.no_grad():
        torch.testing.assert_close(sampled(denoiser, zc, "0"), zc, atol=1e-3, rtol=0)


def test_the_encoder_is_the_vqvaes():
    """Paper, section 3.3: the encoder is trained anew, not another one."""
    with torch.device("meta"):
        for size, preset in (("published", "paper"), ("tiny", "tiny")):
            vqvae = VqVae(PRESETS[preset].vqvae)
            net = ConditionedDenoiser(Denoiser(PRESETS["tiny"].denoiser, 8), SIZES[size].of(vqvae.size))
            shapes = {name: t.shape for name, t in vqvae.encoder.state_dict().items()}
            assert {name: t.shape for name, t in net.encoder.state_dict().items()} == shapes
        vqvae = VqVae(PRESETS["compact"].vqvae)
        net = ConditionedDenoiser(Denoiser(PRESETS["tiny"].denoiser, 8), SIZES["cpu"].of(vqvae.size))
        assert sum(p.numel() for p in net.encoder.parameters()) == 291_064
        assert net.condition(torch.zeros(1, 1, *GRID)).shape[1:] == vqvae.latent_shape(GRID)


def test_slices_fill_their_blocks():
    slices = np.zeros((128, 128, 12), np.bool_)
    slices[60, 60, 2:6] = True
    slices[60, 60, 4] = False  # missing within the stack: filled from its neighbours
    filled = np.flatnonzero(repeated(slices, 10.0)[60, 60])
    assert filled.tolist() == list(range(12, 32))
    assert np.count_nonzero(repeated(slices, 5.0)[60, 60]) == 10  # 20 mm of wall, planes 2 mm apart
    assert not repeated(slices, 10.0)[61].any()


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_stack_always_gives_the_same_surface(name, run, stack):
    method = replace(load(run / name, "cpu"), vqvae=Ball())
    one, two = (method.predict(stack, STEP) for _ in range(2))
    assert one.level.shape == GRID
    np.testing.assert_array_equal(one.level, two.level)
    assert (one.shifts is None) == (name == "slice-condition")


def test_nothing_cannot_be_a_condition(run):
    with pytest.raises(EmptyWall):
        replace(load(run / "slice-condition", "cpu"), vqvae=Ball()).predict(np.zeros((128, 128, 12), np.bool_), STEP)


def test_other_hearts_than_the_pairs_are_refused_before_they_are_made(run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.npy")}
    result = CliRunner().invoke(main, ["baseline", "mask-condition", str(run), *TINY, "--hearts", "26"])
    assert (result.exit_code, "give --hearts" in result.output) == (2, True)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.npy")} == before


def test_a_run_without_mcsr_net_is_told_how_to_get_one(run, tmp_path):
    (tmp_path / "vqvae").symlink_to(run / "vqvae")
    result = CliRunner().invoke(main, ["baseline", "slice-condition", str(tmp_path), *TINY])
    assert (result.exit_code, "m2s-train mcsr" in result.output) == (2, True)
    assert not (tmp_path / "hearts").exists()


def test_slices_need_no_mcsr_net_and_the_mask_does(run, stack, tmp_path):
    for name in ("vqvae", *CONDITIONS):
        (tmp_path / name).symlink_to(run / name)
    alone, whole = (replace(load(at / "slice-condition", "cpu"), vqvae=Ball()) for at in (tmp_path, run))
    np.testing.assert_array_equal(alone.predict(stack, STEP).level, whole.predict(stack, STEP).level)
    with pytest.raises(FileNotFoundError, match="m2s-train mcsr`"):
        load(tmp_path / "mask-condition", "cpu")
    with pytest.raises(FileNotFoundError, match="m2s-train baseline slice-condition`"):
        load(tmp_path / "empty" / "slice-condition", "cpu")
