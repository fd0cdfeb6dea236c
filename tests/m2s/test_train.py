"""All three stages on phantoms with preset `tiny`: they learn, resume exactly, and refuse what they cannot use."""

import csv
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

from m2s.data.labelmaps import split
from m2s.data.phantom import phantom
from m2s.data.store import HeartStore, StoreSpec, open_store
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.nets.vqvae import VqVae
from m2s.train import loop
from m2s.train.checkpoint import Average, load_state, load_weights, save_state, save_weights
from m2s.train.cli import main
from m2s.train.decoder import SurfaceSource
from m2s.train.loop import Recipe
from m2s.train.mcsr import soft_dice, symmetry
from m2s.train.pairs import read_shards, training_maker
from m2s.train.vqvae import weighted_l1
from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.slices import pool_features

TINY = ["--preset", "tiny", "--phantom", "--hearts", "6", "--threads", "1", "--workers", "1", "-q"]


def train(stage: str, run: Path, *more: str) -> str:
    result = CliRunner().invoke(main, [stage, str(run), *TINY, *more])
    assert result.exit_code == 0, result.output
    return result.output


def refused(stage: str, run: Path, *more: str) -> str:
    result = CliRunner().invoke(main, [stage, str(run), *TINY, *more])
    assert result.exit_code == 2, result.output
    assert result.exc_info is None or result.exc_info[0] is SystemExit
    return result.output


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    for stage in ("mcsr", "vqvae", "diffusion"):
        train(stage, run, "--steps", "6", *([] if stage == "diffusion" else ["--batch", "1"]))
    return run


def test_every_stage_leaves_weights_a_log_and_what_export_needs(tiny_run: Path) -> None:
    for stage in ("mcsr", "vqvae", "diffusion"):
        weights, metadata = load_weights(tiny_run / stage / "best.safetensors")
        assert all(torch.isfinite(t).all() for t in weights.values() if t.is_floating_point())
        assert metadata["preset"] == "tiny"
        assert metadata["stage"] == stage
        rows = list(csv.DictReader((tiny_run / stage / "log.csv").open()))
        assert rows[-1]["step"] == "6"
        assert np.isfinite(float(rows[-1]["loss"]))
    assert float(load_weights(tiny_run / "diffusion" / "best.safetensors")[1]["scale_factor"]) > 0
    assert (tiny_run / "diffusion" / "validation.png").stat().st_size > 1000


def test_the_decoder_learns_and_nothing_else_changes(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert "assd_zc" in train("decoder", run, "--steps", "6")
    before, after = (load_weights(run / stage / "best.safetensors")[0] for stage in ("vqvae", "decoder"))
    changed = {name.split(".")[0] for name, tensor in before.items() if not tensor.equal(after[name])}
    assert changed == {"decoder_low", "decoder_top"}


def test_the_decoder_goes_on_with_the_denoiser_that_taught_it_alone(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    train("decoder", run, "--steps", "2")
    train(
        "vqvae", run, "--steps", "6", "--batch", "1"
    )  # done already: its file is written anew, its weights are the same
    train("diffusion", run, "--steps", "6")
    train("decoder", run, "--steps", "3")
    weights, told = load_weights(run / "diffusion" / "best.safetensors")
    save_weights(
        run / "diffusion" / "best.safetensors", {name: 1.01 * tensor for name, tensor in weights.items()}, told
    )
    assert "trained further since: remove" in refused("decoder", run, "--steps", "4")
    shutil.rmtree(run / "decoder")
    assert "two at least" in refused("decoder", run, "--batch", "1")
    train("decoder", run, "--steps", "2")


def test_what_a_run_holds_decides_what_it_can_go_on_with(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    options = ["--phantom", "--hearts", "6", "-q", "--preset", "compact"]
    other = CliRunner().invoke(main, ["vqvae", str(run), *options])
    assert (other.exit_code, "begun with --preset tiny" in other.output) == (2, True)
    best = run / "vqvae" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:1000])
    assert f"{best}: damaged" in refused("vqvae", run)
    masks = run / "hearts" / "training" / "masks-0000.npy"
    masks.write_bytes(masks.read_bytes()[:50])
    best.unlink()
    assert f"{masks}: damaged" in refused("mcsr", run)


def test_a_best_that_is_gone_is_made_anew(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    best = run / "vqvae" / "best.safetensors"
    told = load_weights(best)[0]
    best.unlink()
    train("vqvae", run, "--steps", "6", "--batch", "1")
    assert all(tensor.equal(told[name]) for name, tensor in load_weights(best)[0].items())
    best.unlink()
    train("vqvae", run, "--steps", "7", "--batch", "1", "--rate", "1e-12")  # no better than what is gone
    assert best.is_file()
    (run / "motion" / "best.safetensors").unlink()
    train("mcsr", run, "--steps", "6", "--batch", "1")
    assert (run / "motion" / "best.safetensors").is_file()


@pytest.mark.parametrize(
    "wrong", [("--device", "banana"), ("--device", "meta"), ("--rate", "nan"), ("--minutes", "0"), ("--minutes", "inf")]
)
def test_options_that_mean_nothing(wrong: tuple[str, str], tmp_path: Path) -> None:
    assert wrong[0] in refused("vqvae", tmp_path, *wrong)
    assert not list(tmp_path.iterdir())


def test_the_decoder_is_shown_the_truth_of_its_pairs(tiny_run: Path) -> None:
    spec = StoreSpec(None, hearts=6, seed=1, distances=True)
    store = HeartStore(tiny_run / "hearts" / "training-distances", spec)
    nets = McsrNet(PRESETS["tiny"].mcsr), VqVae(PRESETS["tiny"].vqvae)
    maker = replace(training_maker(store, *nets, seed=0, threads=1), no_apex=0.5)
    source = SurfaceSource(tiny_run / "pairs", maker, 0, 2.0)
    batch = source.batch(3, 4)
    latents = np.concatenate(list(read_shards(tiny_run / "pairs"))).astype(np.float32)
    for zs, sdg in zip(batch["zs"], batch["sdg"], strict=True):
        (index,) = [k for k in range(len(latents)) if np.array_equal(2 * latents[k, 1], zs)]
        np.testing.assert_array_equal(sdg[0], maker.grids(index)[1])


def test_the_published_decoder_stays_as_published(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["decoder", str(tmp_path), "--preset", "paper", "--phantom", "-q"])
    assert result.exit_code == 2
    assert "decodes as published" in result.output


@pytest.mark.parametrize("stage", ["mcsr", "vqvae"])
def test_a_resumed_training_ends_where_an_undisturbed_one_does(stage: str, tmp_path: Path, tiny_run: Path) -> None:
    for name in ("whole", "parted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hearts").symlink_to(tiny_run / "hearts")
    plan = ["--batch", "1", "--steps", "20"]
    train(stage, tmp_path / "whole", *plan)
    child = subprocess.Popen(
        [sys.executable, "-c", "from m2s.train.cli import main; main()", stage, str(tmp_path / "parted"), *TINY, *plan],
        start_new_session=True,
    )
    last = tmp_path / "parted" / stage / "last.safetensors"
    deadline = time.monotonic() + 120
    while not last.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 0 < load_state(last)[1]["step"] < 20
    train(stage, tmp_path / "parted", *plan)
    whole, parted = (load_state(tmp_path / n / stage / "last.safetensors")[0] for n in ("whole", "parted"))
    assert {"model", "average", "optimiser"} <= whole.keys()
    torch.testing.assert_close(parted, whole, rtol=0, atol=0)
    steps = [row.split(",")[0] for row in (tmp_path / "parted" / stage / "log.csv").read_text().splitlines()]
    assert len(set(steps)) == len(steps)


def test_a_batch_system_s_signal_ends_a_training_in_order(tmp_path: Path, tiny_run: Path) -> None:
    (tmp_path / "hearts").symlink_to(tiny_run / "hearts")
    words = ["vqvae", str(tmp_path), *TINY, "--batch", "1", "--steps", "5000"]
    child = subprocess.Popen(
        [sys.executable, "-c", "from m2s.train.cli import main; main()", *words], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "vqvae" / "last.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    told = child.communicate(timeout=60)[1]
    assert child.returncode == 143, told
    assert "the same command goes on" in told


def test_a_newer_mc_net_reaches_an_mcsr_net_that_was_done(tmp_path: Path) -> None:
    """Nothing is left to train in it, so the weights that were put in have to be judged and kept all the same."""
    train("mcsr", tmp_path, "--steps", "2", "--batch", "1")
    for held in ("best", "last"):
        (tmp_path / "motion" / f"{held}.safetensors").unlink()
    train("mcsr", tmp_path, "--steps", "2", "--batch", "1", "--motion-hearts", "3")
    motion, told = load_weights(tmp_path / "motion" / "best.safetensors")
    assert told["hearts"] == "3"
    mcsr = load_weights(tmp_path / "mcsr" / "best.safetensors")[0]
    assert all(mcsr[f"motion.{name}"].equal(tensor) for name, tensor in motion.items())
    assert "already, on 3 hearts" in train("mcsr", tmp_path, "--steps", "2", "--batch", "1", "--motion-hearts", "4")


def test_a_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2s.train.vqvae.VqVaeStage.validate", lambda *_: {"assd": float("nan")})
    done = CliRunner().invoke(main, ["vqvae", str(tmp_path), *TINY, "--steps", "1"])
    assert done.exit_code == 2
    assert "diverged, assd is nan at step 1" in done.output
    assert not (tmp_path / "vqvae" / "best.safetensors").exists()


def test_a_state_is_resumed_where_the_weights_are(tmp_path: Path) -> None:
    """The device that keeps no numbers stands in for a GPU: nothing may be left on the CPU."""
    net = torch.nn.Linear(2, 2)
    stage = SimpleNamespace(model=net, name="x")
    recipe = Recipe(steps=2, batch=1, rate=0.1, average=0.9)
    begun = loop._Run(stage, recipe, tmp_path, "cpu")
    begun._checkpoint()
    resumed = loop._Run(SimpleNamespace(model=torch.nn.Linear(2, 2), name="x"), recipe, tmp_path, "meta")
    resumed.resume()
    assert {t.device.type for t in resumed.average.state.values()} == {"meta"}


def test_an_mc_net_that_was_trained_on_is_the_one_that_is_kept(tmp_path: Path) -> None:
    """Of both networks trained on, MCSR-Net holds the newer MC-Net and its validation counts, better or not."""
    train("mcsr", tmp_path, "--steps", "2", "--batch", "1")
    first = load_weights(tmp_path / "motion" / "best.safetensors")[0]
    # As a version left it that judged by other hearts, and found less to correct in them.
    tensors, at = load_state(tmp_path / "motion" / "last.safetensors")
    save_state(tmp_path / "motion" / "last.safetensors", tensors, at | {"best": 1e-6})
    weights, told = load_weights(tmp_path / "motion" / "best.safetensors")
    save_weights(tmp_path / "motion" / "best.safetensors", weights, told | {"judged_by": "others"})
    train("mcsr", tmp_path, "--steps", "4", "--batch", "1")
    motion, told = load_weights(tmp_path / "motion" / "best.safetensors")
    assert told["step"] == "4"
    assert any(not motion[name].equal(tensor) for name, tensor in first.items())
    mcsr, about = load_weights(tmp_path / "mcsr" / "best.safetensors")
    assert all(mcsr[f"motion.{name}"].equal(tensor) for name, tensor in motion.items())
    assert "MC-Net before it, alone: 4 steps on 6 hearts" in about["note"]


def test_a_finished_mc_net_needs_no_hearts(tmp_path: Path) -> None:
    train("mcsr", tmp_path, "--steps", "2", "--batch", "1")
    shutil.rmtree(tmp_path / "hearts" / "motion")
    train("mcsr", tmp_path, "--steps", "2", "--batch", "1")
    assert not (tmp_path / "hearts" / "motion").exists()


def test_pairs_of_other_networks_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("mcsr", "vqvae", "hearts"):
        (tmp_path / name).symlink_to(tiny_run / name)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "pairs.sha256").write_text("0" * 64)
    result = CliRunner().invoke(main, ["diffusion", str(tmp_path), *TINY])
    assert result.exit_code == UsageProblem.exit_code
    assert "other networks" in result.output


def test_usage_problems_are_one_line(tmp_path: Path) -> None:
    runner = CliRunner()
    neither = runner.invoke(main, ["mcsr", str(tmp_path / "a"), "--preset", "tiny"])
    assert neither.exit_code == UsageProblem.exit_code
    assert "--atlas" in neither.output
    nothing = runner.invoke(main, ["mcsr", str(tmp_path / "c"), "--preset", "tiny", "--label-maps", str(tmp_path)])
    assert nothing.exit_code == NoInputs.exit_code
    assert "HR_ED.nii.gz" in nothing.output
    early = runner.invoke(main, ["diffusion", str(tmp_path / "b"), *TINY])
    assert early.exit_code == UsageProblem.exit_code
    assert "m2s-train mcsr" in early.output


def test_training_on_the_papers_layout(tmp_path: Path) -> None:
    parts = split()
    for k, subject in enumerate((parts["training"][0], parts["selection"][0])):
        path = tmp_path / "maps" / str(subject) / "HR_ED.nii.gz"
        path.parent.mkdir(parents=True)
        labels = 2 * phantom(k).mask.astype(np.int16)
        labels[np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(labels > 0, 2, 0)], -1) & (labels == 0)] = 1
        nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1.0, 2.0, 1.0])), path)
    options = ["--preset", "tiny", "--label-maps", str(tmp_path / "maps"), "--steps", "2", "--batch", "1", "-q"]
    result = CliRunner().invoke(main, ["mcsr", str(tmp_path / "run"), *options, "--workers", "1"])
    assert result.exit_code == 0, result.output
    metadata = load_weights(tmp_path / "run" / "mcsr" / "best.safetensors")[1]
    assert "label maps" in metadata["data"]


def test_a_store_is_the_same_whoever_makes_it_and_keeps_to_its_options(tmp_path: Path) -> None:
    spec = StoreSpec(None, hearts=3, seed=4, distances=True)
    one, two = (open_store(tmp_path / name, spec) for name in ("one", "two"))
    for k in range(3):
        assert one.id(k) == two.id(k)
        assert np.array_equal(one.mask(k), two.mask(k))
        distance = one.distance(k)
        assert np.array_equal(distance, two.distance(k))
        inside = distance[:, :, 2:62] < 0
        assert np.mean(inside != one.mask(k)) < 1e-4
    grown = open_store(tmp_path / "one", StoreSpec(None, hearts=5, seed=4, distances=True))
    assert np.array_equal(grown.mask(1), two.mask(1))
    assert grown.mask(4).any()
    with pytest.raises(UsageProblem, match="other options"):
        open_store(tmp_path / "one", StoreSpec(None, hearts=3, seed=5, distances=True))


def test_symmetries_keep_the_pool_centred(tmp_path: Path) -> None:
    mask = open_store(tmp_path / "s", StoreSpec(None, hearts=1, seed=0)).mask(0)[:, :, 2::5]
    before = pool_features(mask)
    seen = {symmetry(mask, k).tobytes() for k in range(8)}
    assert len(seen) == 8
    for k in range(8):
        after = pool_features(symmetry(mask, k))
        offset = np.abs(after[:, :2] - 63.5), np.abs(before[:, :2] - 63.5)
        np.testing.assert_allclose(np.sort(offset[0], 1), np.sort(offset[1], 1), atol=1e-3)


def test_losses_against_hand_counts() -> None:
    truth = torch.zeros(1, 1, 4, 4, 4)
    truth[..., :2] = 1
    half = truth.clone()
    half[:, :, :2] = 0
    assert float(soft_dice(half, truth)) == pytest.approx(1 - 2 * 16 / (16 + 32), rel=1e-4)
    sdg = torch.linspace(-20, 20, 64).reshape(1, 1, 4, 4, 4)
    assert float(weighted_l1(sdg.clamp(-10, 10) + 1, sdg, 10.0, 0.0)) == pytest.approx(0.1, rel=1e-5)
    at, wrong = torch.tensor([[[[[0.0, 2.0, 9.0]]]]]), torch.tensor([[[[[1.0, 2.0, 12.0]]]]])
    near = (1 + 4, 1 + 4 * math.exp(-0.5), 1 + 4 * math.exp(-0.5 * 4.5**2))  # NEAR_MM is 2 mm
    wanted = (near[0] * 1 + near[2] * 3) / (10 * sum(near))
    assert float(weighted_l1(wrong, at, 10.0, 4.0)) == pytest.approx(wanted, rel=1e-5)


def test_checkpoints_round_trip_and_survive_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    tree = {"model": {"a": torch.arange(3.0)}, "optimiser": {"0": {"step": torch.tensor(1.0)}}}
    save_state(path, tree, {"step": 3})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_state(path, {"model": {"a": torch.zeros(3)}}, {"step": 4})
    found, metadata = load_state(path)
    assert metadata == {"step": 3}
    assert torch.equal(found["model"]["a"], torch.arange(3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_average_is_the_exponential_mean() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = Average(layer, 0.9)
    expected = 0.0
    for k in range(1, 200):
        layer.weight.data.fill_(float(k))
        average.update(layer)
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * k
    assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-5)
