"""Fine-tuning on pairs without known shifts: it gains on a motion never seen, reads no shifts, and refuses the rest."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from m2s.baselines.registry import BASELINES, Size
from m2s.data.clinical import Pair, read_pair, write_pairs
from m2s.data.labelmaps import LabelMaps, split
from m2s.data.pair_files import PairFiles, prepare_pairs
from m2s.data.phantom import phantom
from m2s.data.shapes import stored_shapes
from m2s.data.simulate import Normal
from m2s.data.store import StoreSpec, open_store
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.train.baselines import facts_of
from m2s.train.checkpoint import load_weights, save_weights
from m2s.train.cli import main
from m2s.train.finetune import (
    FineTuneStage,
    Initial,
    PairStacks,
    keep_better,
    pair_figures,
    read_checkpoint,
    read_initial,
)
from m2s.train.job import Job
from m2s.train.loop import Batch, Facts, Figures, Recipe, fit
from m2s.train.mcsr import McsrStage, StackSource
from m2s.train.motion import MotionStage, ShapeSource, Wear
from m2s.train.stacks import selection_stacks, stack_source
from m2s_runtime.errors import NoInputs, UsageProblem

SIZE = PRESETS["tiny"].mcsr
STILL, MOVING = Normal(0.3), Normal(5.0)
PARTS = {"training": 8, "selection": 3, "validation": 4}


def invoke(*words: object) -> str:
    result = CliRunner().invoke(main, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    return result.output


def refuse(code: int, told: str, *words: object) -> None:
    result = CliRunner().invoke(main, [str(w) for w in words])
    assert result.exit_code == code, result.output
    assert told in result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of preset `tiny` whose stacks hardly moved."""
    run = tmp_path_factory.mktemp("first")
    spec = StoreSpec(None, hearts=8, seed=3)
    store = open_store(run / "hearts", spec)
    torch.manual_seed(0)
    shapes = stored_shapes(run / "hearts", spec)
    motion = MotionStage(SIZE, ShapeSource(run / "hearts", spec, 0, STILL, Wear(0, 0, 0, 0, 0)), shapes, {})
    plan = Recipe(steps=400, batch=64, rate=3e-3, schedule="cosine", validate_every=400)
    fit(motion, plan, run / "motion", quiet=True)
    facts = {"preset": "tiny", "data": "still phantoms", "data_licence": "Apache-2.0", "step_range_mm": "[10, 10]"}
    stage = McsrStage(SIZE, StackSource(run / "hearts", spec, SIZE, 0, STILL, 0.0), store, facts)
    stage.adopt_motion(*load_weights(run / "motion" / "best.safetensors"))
    plan = Recipe(steps=40, batch=2, rate=2e-3, schedule="cosine", validate_every=40)
    fit(stage, plan, run / "mcsr", quiet=True)
    return run


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of other phantoms under a motion law never trained on."""
    folder = tmp_path_factory.mktemp("pairs")
    for start, (part, count) in enumerate(PARTS.items()):
        hearts = [(subject, phantom(500 + 100 * start + k)) for k, subject in enumerate(split()[part][:count])]
        write_pairs(folder, [(subject, h.id, h.mask) for subject, h in hearts], MOVING, seed=0)
    return folder


def held_out(pairs: Path) -> list[Pair]:
    return [read_pair(LabelMaps(pairs), *case) for case in LabelMaps(pairs).pairs("validation")]


def network(run: Path) -> McsrNet:
    net = McsrNet(SIZE)
    net.load_state_dict(load_weights(run / "mcsr" / "best.safetensors")[0])
    return net.eval()


def test_fine_tuning_gains_on_the_new_motion(trained: Path, pairs: Path, tmp_path: Path) -> None:
    (trained / "vqvae").mkdir()
    save_weights(trained / "vqvae" / "best.safetensors", {"x": torch.zeros(1)}, {"stage": "vqvae"})
    options = ["--preset", "tiny", "--init", trained, "--data", pairs, "--threads", 1, "--workers", 1, "-q"]
    told = invoke("mcsr", tmp_path, *options, "--steps", 60, "--rate", "2e-3")
    assert "dice_before" in told
    before, after = (pair_figures(network(run), held_out(pairs)) for run in (trained, tmp_path))
    assert after["dice"] > before["dice"] + 0.015
    assert after["dice_slices"] > before["dice_slices"] + 0.015
    metadata = load_weights(tmp_path / "mcsr" / "best.safetensors")[1]
    assert (metadata["preset"], metadata["stage"]) == ("tiny", "mcsr")
    assert "still phantoms; then 8 pairs" in metadata["data"]
    assert str(pairs) not in json.dumps(metadata)
    copies = [run / "vqvae" / "best.safetensors" for run in (trained, tmp_path)]
    assert copies[0].read_bytes() == copies[1].read_bytes()
    # The same command goes on, which is to say that it is done.
    again = invoke("mcsr", tmp_path, *options, "--steps", 60, "--rate", "2e-3")
    assert told == again + "copied as they are: vqvae\n"
    refuse(2, "not fine-tuned from --init", "mcsr", trained, *options)


def test_no_shift_is_read(pairs: Path, tmp_path: Path) -> None:
    """None is on disk, none in a batch; and the loss needs none."""
    assert {p.name for p in pairs.glob("*/*")} == {"LR_ED.nii.gz", "HR_ED.nii.gz"}
    files = prepare_pairs(tmp_path, pairs, "selection").files
    source = PairStacks(files, SIZE, seed=0)
    arrays = source.batch(3, 2)
    assert set(arrays) == {"slices", "pool", "clean", "mask"}
    for name, array in source.batch(3, 2).items():
        np.testing.assert_array_equal(array, arrays[name])
    torch.manual_seed(0)
    net = McsrNet(SIZE)
    stage = FineTuneStage(SIZE, Initial(net.state_dict(), {}, ""), source, [], {})
    loss, _ = stage.loss({name: torch.from_numpy(a) for name, a in arrays.items()}, 0)
    loss.backward()
    # The re-alignment is soft: MC-Net learns from Dice alone.
    assert float(stage.net.motion.leave.weight.grad.abs().sum()) > 0


def test_pairs_that_are_left_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = PairFiles((tmp_path / "8-ED.npy",), {"7-ED": "subject 7: no wall"})
    monkeypatch.setattr("m2s.train.stacks.prepare_pairs", lambda *_: found)
    job = Job(tmp_path, "tiny", None, None, 8, 0, "cpu", 1, 1, True, None, None, None, None, data=tmp_path)
    assert stack_source(job)
    assert capsys.readouterr().err == "left out 7-ED: subject 7: no wall\n"


def test_first_weights_stay_where_nothing_is_gained(tmp_path: Path) -> None:
    first = {"w": torch.arange(3.0)}
    save_weights(tmp_path / "best.safetensors", {"w": torch.zeros(3)}, {"stage": "mcsr"})
    initial = Initial(first, {"stage": "mcsr", "data": "d", "step": "5"}, "abc")
    better, worse = {"dice_loss": 0.1}, {"dice_loss": 0.2}
    assert keep_better(tmp_path, initial, worse, better) == better
    assert torch.equal(load_weights(tmp_path / "best.safetensors")[0]["w"], torch.zeros(3))
    assert keep_better(tmp_path, initial, better, worse) == better
    weights, metadata = load_weights(tmp_path / "best.safetensors")
    assert torch.equal(weights["w"], first["w"])
    assert (metadata["data"], metadata["init"]) == ("d", "abc")


def test_weights_that_cannot_be_started_from(trained: Path, pairs: Path, tmp_path: Path) -> None:
    run, best = tmp_path / "run", trained / "mcsr" / "best.safetensors"
    weights, metadata = load_weights(best)
    refuse(2, "trained as preset tiny, not compact; add --preset tiny", "mcsr", run, "--init", best, "--data", pairs)
    tiny = ["mcsr", run, "--preset", "tiny", "--data", pairs, "--init"]
    refuse(3, "no such checkpoint", *tiny, tmp_path / "nowhere")
    refuse(2, "stage motion", *tiny, trained / "motion" / "best.safetensors")
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 9)
    refuse(2, "damaged, or no checkpoint", *tiny, tmp_path / "noise.safetensors")
    name = next(iter(weights))
    save_weights(tmp_path / "less.safetensors", {k: w for k, w in weights.items() if k != name}, metadata)
    with pytest.raises(UsageProblem, match="does not fit preset tiny"):
        read_initial(tmp_path / "less.safetensors", "tiny")
    with pytest.raises(NoInputs):
        read_initial(tmp_path, "tiny")
    assert not run.exists()


def test_options_that_contradict(trained: Path, pairs: Path, tmp_path: Path) -> None:
    refuse(2, "go together", "mcsr", tmp_path, "--init", trained)
    refuse(2, "go together", "mcsr", tmp_path, "--data", pairs, "--phantom")
    refuse(2, "takes the place", "mcsr", tmp_path, "--data", pairs, "--init", trained, "--phantom")
    refuse(2, "give one of", "pairs", tmp_path / "x")
    for law in ("normal:0", "normal:nan", "normal:x", "gamma:3", "normal:99"):
        refuse(2, "--motion", "pairs", tmp_path / "x", "--phantom", "--motion", law)


def test_simulated_pairs_by_command(tmp_path: Path) -> None:
    invoke("pairs", tmp_path, "--phantom", "--hearts", 2, "--held", 1, "--motion", "normal:4")
    maps = LabelMaps(tmp_path)
    assert [len(maps.pairs(part)) for part in ("training", "selection", "validation")] == [2, 1, 1]
    masks = [read_pair(maps, *case).mask for part in PARTS for case in maps.pairs(part)]
    assert len({m.tobytes() for m in masks}) == 4


class Level(nn.Module):
    """A network of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))


class LevelStage:
    """Learns the number that it is told; `wanted` is what selection finds right."""

    name, monitor = "level", "off"

    def __init__(self, job: Job, size: Size, told: float, wanted: float) -> None:
        self.model: nn.Module = Level()
        self.source = stack_source(job)
        self._facts, self._told, self._wanted = facts_of(job, size), told, wanted
        assert len(selection_stacks(job)) == PARTS["selection"]

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, Figures]:  # noqa: ARG002
        assert batch["slices"].shape[1:] == (1, 128, 128, 12)
        assert "shifts" not in batch
        return (self.model.level - self._told) ** 2, {}

    def validate(self, model: nn.Module, folder: Path) -> Figures:  # noqa: ARG002
        return {"off": abs(float(model.level) - self._wanted)}

    def metadata(self) -> Facts:
        return self._facts


@dataclass
class LevelTraining:
    """A competing method of one stage."""

    wanted: float

    STAGES: ClassVar = {"level": 1.0}

    def stage_of(self, name: str, job: Job, size: Size, folder: Path) -> LevelStage:  # noqa: ARG002
        return LevelStage(job, size, 1.0, self.wanted)

    def recipe_of(self, name: str, size: Size) -> Recipe:  # noqa: ARG002
        return Recipe(steps=30, batch=1, rate=0.3, validate_every=10)


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    """Where `first_weights` puts a run."""
    return tmp_path / "first"


def first_weights(run: Path, size: Size) -> None:
    """A trained `mcsr-ete` of one number, 0.5."""
    told = {"size": size, "data": "an atlas", "data_licence": "GPL-3.0", "step": "7", "seconds": "3"}
    stage = run / "mcsr-ete" / "level"
    stage.mkdir(parents=True)
    save_weights(stage / "best.safetensors", {"level": torch.tensor(0.5)}, told)


@pytest.mark.parametrize(("size", "wanted", "steps"), [("published", 1.0, 2 * PARTS["training"]), ("tiny", 0.5, 30)])
def test_competing_methods_are_fine_tuned(
    baseline: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: Size, wanted: float, steps: int
) -> None:
    """From the first weights, which stay where the selection pairs gain nothing; `published` counts epochs (here 2)."""
    first_weights(baseline, size)
    monkeypatch.setattr("m2s.train.recipes.TUNED_EPOCHS", 2)
    monkeypatch.setattr("m2s.train.baselines.training_of", lambda _: LevelTraining(wanted))
    options = ["--size", size, "--init", baseline, "--data", pairs, "--threads", 1, "--workers", 1, "-q"]
    told = invoke("baseline", "mcsr-ete", tmp_path / "run", *options)
    assert f"off_before       {abs(0.5 - wanted):.4f}" in told
    folder = tmp_path / "run" / "mcsr-ete" / "level"
    weights, metadata = load_weights(folder / "best.safetensors")
    assert (metadata["size"], metadata["data_licence"]) == (size, "GPL-3.0")
    assert metadata["init"] == read_checkpoint(baseline / "mcsr-ete" / "level" / "best.safetensors").digest
    assert (folder / "log.csv").read_text().splitlines()[-1].startswith(f"{steps},")
    if wanted == 1.0:
        assert float(weights["level"]) > 0.55
        assert metadata["data"] == "an atlas; then low- and high-resolution label maps"
        assert json.loads(metadata["recipe"])["rate"] == pytest.approx(0.03)
    else:
        assert (float(weights["level"]), metadata["data"]) == (0.5, "an atlas")


def test_competing_methods_that_cannot_be_fine_tuned(baseline: Path, pairs: Path, tmp_path: Path) -> None:
    first_weights(baseline, "tiny")
    options = ["--init", baseline, "--data", pairs, "--threads", 1, "--workers", 1, "-q"]
    for name in ("srheart", "mask-condition", "slice-condition", "vae", "gan"):
        assert not BASELINES[name].tunable
        refuse(2, f"{name} learns nothing from pairs", "baseline", name, tmp_path / "run", *options)
    refuse(3, "no mcsr-ms in this run", "baseline", "mcsr-ms", tmp_path / "run", *options)
    refuse(3, "finish its training first", "baseline", "mcsr-ete", tmp_path / "run", *options)
    refuse(2, "go together", "baseline", "mcsr-ete", tmp_path / "run", "--init", baseline)


def test_another_size_is_not_fine_tuned(
    baseline: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_weights(baseline, "tiny")
    monkeypatch.setattr("m2s.train.baselines.training_of", lambda _: LevelTraining(1.0))
    told = "mcsr-ete was trained at --size tiny, not cpu; add --size tiny"
    refuse(2, told, "baseline", "mcsr-ete", tmp_path / "run", "--init", baseline, "--data", pairs, "-q")
    assert not (tmp_path / "run").exists()
