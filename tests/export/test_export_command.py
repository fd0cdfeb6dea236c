"""`m2s-export`: a training run in, a bundle out, and one clear line where the run is not what it should be."""

import re
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from exporting import export
from tiny_run import save_checkpoint
from toy import TOY

import m2s_export.bundle as publishing
from m2s.nets.presets import PRESETS
from m2s_export import cli
from m2s_export.card import model_card
from m2s_export.judge import Judge
from m2s_export.parity import ParityError
from m2s_export.training_run import read_training_run
from m2s_runtime.bundle import load_bundle
from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.manifest import Manifest
from m2s_runtime.strict_json import dumps, loads


@pytest.fixture
def spoilt(run_folder, tmp_path):
    """A copy of the run that a test may spoil."""
    return shutil.copytree(run_folder, tmp_path / "run")


def test_a_run_becomes_a_bundle(run_folder, tmp_path, monkeypatch, capsys, bundle):
    # The graphs are those of the session's bundle: converting them again would double the time of these tests.
    def copy_graph(path, graph, *, half):
        assert half
        path.write_bytes(bundle.read(f"{graph.name}.onnx"))

    monkeypatch.setattr(publishing, "to_onnx", lambda graph: graph)
    monkeypatch.setattr(publishing, "write_graph", copy_graph)
    monkeypatch.setattr(Judge, "surface_p95", lambda *_: 0.05)
    (tmp_path / "notes.md").write_text("## Accuracy\n\nDice 12.3 %\n")
    words = (run_folder, "--out", tmp_path / "new", "--data", "noise", "--notes", tmp_path / "notes.md")
    words += ("--licence", "CC-BY-4.0")
    assert export(monkeypatch, *words) == 0
    assert str(tmp_path / "new") in capsys.readouterr().out
    made = load_bundle(tmp_path / "new")
    assert (made.name, made.manifest.preset, made.manifest.training.data) == ("new", "tiny", "noise")
    assert made.manifest.parity.surface_p95_mm == 0.05
    assert made.manifest.licence == "CC-BY-4.0"
    assert "CC-BY-4.0" in made.read("MODEL_CARD.md").decode()
    assert "12.3 %" in made.read("MODEL_CARD.md").decode()
    assert export(monkeypatch, *words) == 6
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--check nowhere --engine trt", "--engine: means nothing with --check, only with --engine trt"),
        ("--check nowhere --out there", "--out: means nothing with --check"),
        ("--check nowhere --target sm89", "--target: means nothing with --check, only with --engine trt"),
        ("run --out there --target sm89", "--target: means nothing with --engine onnx, only with --engine trt"),
        ("run --out there --engine-dir here", "only with --check or --engine trt"),
        ("--record", "--record: means nothing with --engine onnx, only with --check"),
        ("--engine trt --preset tiny", "--preset: .* only with --import-monai-generative"),
        ("run --import-monai-generative file --out there", "SOURCE: means nothing with --import-monai-generative"),
        (f"{TOY} --engine trt --target sm89 --out there", "--out: .* --engine-dir"),
    ],
)
def test_options_that_do_not_go_together_are_a_usage_error(words, told, monkeypatch, capsys):
    assert export(monkeypatch, *words.split()) == 2
    assert re.search(told, capsys.readouterr().err)


def test_options_that_equal_their_default_by_chance_are_no_error(monkeypatch):
    assert export(monkeypatch, "nowhere", "--out", "there", "--engine", "onnx", "--precision", "float32") == 3


def test_metadata_of_the_checkpoints_reach_the_manifest(training_run):
    told = training_run.training()
    assert told.data == "not recorded"
    assert {n: (s.steps, s.seed, s.seconds) for n, s in told.stages.items()} == dict.fromkeys(
        ("mcsr", "vqvae", "diffusion"), (10, 3, 7.5)
    )
    assert training_run.nets.scale_factor == 1.7
    assert training_run.nets.latent_shape == (8, 16, 16, 8)


def test_what_the_checkpoint_of_mcsr_says_is_passed_on(spoilt, nets, training_run):
    assert (training_run.licence, training_run.step_range_mm) == ("not stated", (10, 10))
    told = {"licence": "GPL-3.0", "step_range_mm": "[5.0, 14]", "note": "MC-Net before it, alone: 600 steps"}
    save_checkpoint(spoilt, "mcsr", nets["mcsr"].state_dict(), **told)
    run = read_training_run(spoilt)
    assert (run.licence, run.step_range_mm) == ("GPL-3.0", (5, 14))
    plan = publishing.Plan("noted", run.training(), run.licence, run.step_range_mm)
    draft = publishing.draft_manifest(plan, run.nets.preset, run.nets.latent_shape, 1.0, pool=True)
    assert loads(Manifest, dumps(draft)) == draft
    card = model_card(draft)
    assert "mcsr: MC-Net before it, alone: 600 steps." in card
    assert "5 to 14 mm" in card


def test_hardware_codebook_and_data_of_each_stage_reach_the_card(spoilt, nets):
    save_checkpoint(spoilt, "mcsr", nets["mcsr"].state_dict(), data="hearts; then 8 pairs", note="MC-Net before it")
    facts = {"hardware": "Some CPU, 2 threads", "torch": "2.13.0", "codebook": "gradient", "data": "hearts"}
    save_checkpoint(spoilt, "vqvae", nets["vqvae"].state_dict(), **facts)
    save_checkpoint(spoilt, "diffusion", nets["diffusion"].state_dict(), data="hearts")
    run = read_training_run(spoilt)
    told = run.training()
    assert told.data == "mcsr: hearts; then 8 pairs; vqvae: hearts; diffusion: hearts"
    assert run.training("mine").data == "mine"
    plan = publishing.Plan("noted", told)
    card = model_card(publishing.draft_manifest(plan, run.nets.preset, run.nets.latent_shape, 1.0, pool=True))
    assert "vqvae: codebook by gradient (Eq. 1); on Some CPU, 2 threads, PyTorch 2.13.0." in card
    assert "mcsr: MC-Net before it." in card


@pytest.mark.parametrize("told", ["5 to 14", "[5]", "[14, 5]", "[0, 5]", "7", '["a", "b"]', "[5, NaN]"])
def test_a_step_range_that_cannot_be_is_refused(training_run, told):
    metadata = training_run.metadata | {"mcsr": training_run.metadata["mcsr"] | {"step_range_mm": told}}
    with pytest.raises(UsageProblem, match="step_range_mm"):
        _ = replace(training_run, metadata=metadata).step_range_mm


@pytest.mark.parametrize("stage", ["mcsr", "vqvae", "diffusion"])
def test_a_missing_checkpoint_is_named(spoilt, stage):
    (spoilt / stage / "best.safetensors").unlink()
    with pytest.raises(NoInputs, match=rf"{stage}.best\.safetensors"):
        read_training_run(spoilt)


def test_a_file_that_is_no_checkpoint_is_refused(spoilt):
    (spoilt / "vqvae" / "best.safetensors").write_bytes(b"\x80\x04pickled, or so it says")
    with pytest.raises(UsageProblem, match="vqvae"):
        read_training_run(spoilt)


@pytest.mark.parametrize(
    ("stage", "changes", "word"),
    [
        ("mcsr", {"preset": "compact"}, "different presets"),
        ("diffusion", {"scale_factor": "0"}, "scale_factor"),
        ("diffusion", {"scale_factor": "nan"}, "scale_factor"),
        ("diffusion", {"scale_factor": ""}, "scale_factor"),
    ],
)
def test_metadata_that_cannot_be_are_refused(spoilt, nets, stage, changes, word):
    save_checkpoint(spoilt, stage, nets[stage].state_dict(), **changes)
    with pytest.raises(UsageProblem, match=word):
        read_training_run(spoilt)


def test_an_unknown_preset_is_refused(spoilt, nets):
    for stage, net in nets.items():
        save_checkpoint(spoilt, stage, net.state_dict(), preset="gigantic")
    with pytest.raises(UsageProblem, match="gigantic"):
        read_training_run(spoilt)


def test_weights_of_another_network_are_refused(spoilt, nets):
    save_checkpoint(spoilt, "mcsr", nets["vqvae"].state_dict())
    with pytest.raises(UsageProblem, match=r"mcsr.*does not fit"):
        read_training_run(spoilt)


def test_weights_that_are_no_numbers_are_refused(spoilt, nets):
    weights = {name: t.clone() for name, t in nets["vqvae"].state_dict().items()}
    weights["encoder.0.weight"][0] = torch.nan
    save_checkpoint(spoilt, "vqvae", weights)
    with pytest.raises(UsageProblem, match="not finite"):
        read_training_run(spoilt)


def test_exit_codes(tmp_path, run_folder, monkeypatch, capsys):
    assert export(monkeypatch, tmp_path / "nothing", "--out", tmp_path / "b") == 3
    assert "m2s-train" in capsys.readouterr().err
    assert export(monkeypatch, run_folder) == 2
    assert export(monkeypatch, run_folder, "--out", tmp_path / "b", "--engine", "magic") == 2
    assert export(monkeypatch, "--help") == 0
    capsys.readouterr()
    for error, code in ((ParityError("graph sr deviates"), 4), (KeyboardInterrupt(), 130)):
        monkeypatch.setattr(publishing, "publish_run", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        assert export(monkeypatch, run_folder, "--out", tmp_path / "b") == code
        told = capsys.readouterr().err
        assert len(told.strip().splitlines()) == 1
        assert "Traceback" not in told
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("fault", ["notes", "junk", "empty", "step", "huge"])
def test_what_is_wrong_with_the_inputs_is_said_in_one_line(fault, spoilt, nets, tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.md").write_bytes(b"\xff\xfe Dice" if fault == "notes" else b"Dice")
    if fault in ("junk", "empty"):
        (spoilt / "mcsr" / "best.safetensors").write_bytes(b"junk!" if fault == "junk" else b"")
    if fault == "step":
        save_checkpoint(spoilt, "vqvae", nets["vqvae"].state_dict(), step="many")
    if fault == "huge":
        weights = {name: t.clone() for name, t in nets["vqvae"].state_dict().items()}
        weights["encoder.0.weight"][0] = 1e5
        save_checkpoint(spoilt, "vqvae", weights)
    words = (spoilt, "--out", tmp_path / "b", "--notes", tmp_path / "notes.md")
    assert export(monkeypatch, *words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_an_out_that_is_taken_is_refused_before_any_work(run_folder, bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("m2s_export.training_run.read_training_run", lambda _: pytest.fail("read"))
    assert export(monkeypatch, run_folder, "--out", bundle.path) == 6
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    assert export(monkeypatch, run_folder, "--out", tmp_path / "mine", "--overwrite") == 6
    assert "is no bundle" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years"


def test_sources_that_do_not_go_with_the_engine_are_refused(bundle, run_folder, tmp_path, monkeypatch, capsys):
    assert export(monkeypatch, bundle.path, "--out", tmp_path / "b") == 2
    assert "--engine trt" in capsys.readouterr().err
    assert export(monkeypatch, "--out", tmp_path / "b") == 2
    assert export(monkeypatch, run_folder, "--engine", "trt") == 2
    assert export(monkeypatch, tmp_path / "none", "--engine", "trt") == 4
    assert export(monkeypatch, "--check", tmp_path / "none") == 4


def test_a_bug_is_told_as_one(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publishing, "publish_run", lambda *_, **__: 1 / 0)
    assert export(monkeypatch, run_folder, "--out", tmp_path / "b") == 1
    assert "this is a bug" in capsys.readouterr().err


def test_without_the_extra_the_pip_line_is_told(tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if n.startswith("m2s_export.") and n != "m2s_export.cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(monkeypatch, tmp_path, "--out", tmp_path / "b") == 5
    assert 'pip install "mask2surface[export]"' in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["few_slices", "few_slices=many", "nonsense=3"])
def test_a_limit_that_no_flag_has_is_refused(tmp_path, limit):
    result = CliRunner().invoke(cli.export, [str(tmp_path), "--out", str(tmp_path / "b"), "--flag-limit", limit])
    assert isinstance(result.exception, UsageProblem)


def test_how_to_sample_reaches_the_manifest(training_run):
    plan = publishing.Plan("p", training_run.training(), temperature=0.0, steps=1, spread_scale=1.5,
                           flag_limits={"few_slices": 4})  # fmt: skip
    preset, shape = training_run.nets.preset, training_run.nets.latent_shape
    draft = publishing.draft_manifest(plan, preset, shape, 1.0, pool=True)
    assert loads(Manifest, dumps(draft)) == draft
    assert (draft.temperature, draft.steps, draft.sample_steps, draft.spread_scale) == (0.0, 1, 10, 1.5)
    assert draft.flag_limits == {"few_slices": 4}
    assert "from noise times 0; 10 steps for several samples" in model_card(draft)


@pytest.mark.parametrize(
    ("preset", "asked", "share", "told"),
    [
        ("paper", None, 0.0, "| Surface | what the diffusion draws |"),
        ("compact", None, 0.6, "| Surface | 40 % what the diffusion draws, 60 % C-SDG, smoothed by 0.7 mm |"),
        ("compact", 0.0, 0.0, "| Surface | what the diffusion draws |"),
        ("paper", 0.25, 0.25, "| Surface | 75 % what the diffusion draws, 25 % C-SDG, smoothed by 0.7 mm |"),
    ],
)
def test_the_share_of_the_csdg_is_the_presets_unless_told(training_run, preset, asked, share, told):
    plan = publishing.Plan("p", training_run.training(), csdg_share=asked)
    draft = publishing.draft_manifest(plan, PRESETS[preset], training_run.nets.latent_shape, 1.0, pool=True)
    assert draft.csdg_share == share
    assert told in model_card(draft)


def test_the_share_on_the_command_line_reaches_the_plan(monkeypatch, run_folder, tmp_path):
    plans = []

    def publish(_run, _out, plan, **_options):
        plans.append(plan)
        raise UsageProblem("that is all")

    monkeypatch.setattr(publishing, "publish_run", publish)
    for given in ([], ["--csdg-share", "0.3"], ["--csdg-share", "0"]):
        CliRunner().invoke(cli.export, [str(run_folder), "--out", str(tmp_path / "b"), *given])
    assert [plan.csdg_share for plan in plans] == [None, 0.3, 0.0]


@pytest.mark.parametrize("option", ["--spread-scale", "--csdg-share", "--temperature"])
def test_what_is_no_number_is_refused(run_folder, tmp_path, option):
    done = CliRunner().invoke(cli.export, [str(run_folder), "--out", str(tmp_path / "b"), option, "nan"])
    assert done.exit_code == 2
    assert "not a finite number" in done.output


@pytest.mark.parametrize(
    "wrong", ["--shift-error=-1,0,0,0,0", "--shift-error=nan,0,0,0,0", "--flag-limit=few_slices=nan"]
)
def test_lists_of_what_is_no_number_are_refused(run_folder, tmp_path, wrong):
    done = CliRunner().invoke(cli.export, [str(run_folder), "--out", str(tmp_path / "b"), wrong])
    assert isinstance(done.exception, UsageProblem)
    assert wrong.split("=")[0] in str(done.exception)
    assert not (tmp_path / "b").exists()


def test_what_a_person_says_stands_first_in_the_card(training_run):
    plan, shape = publishing.Plan("p", training_run.training()), training_run.nets.latent_shape
    draft = publishing.draft_manifest(plan, training_run.nets.preset, shape, 1.0, pool=True)
    headings = [line for line in model_card(draft, "## It does not pay\n\nBut why.").splitlines() if line[:2] == "##"]
    assert headings[:2] == ["## It does not pay", "## The bundle"]


def test_a_run_with_a_decoder_stage_decodes_with_it_and_encodes_as_before(spoilt, nets):
    weights = {name: tensor.clone() for name, tensor in nets["vqvae"].state_dict().items()}
    weights["decoder_low.0.bias"] += 1
    save_checkpoint(spoilt, "decoder", weights)
    run = read_training_run(spoilt)
    assert set(run.training().stages) == {"mcsr", "vqvae", "diffusion", "decoder"}
    found = run.nets.vqvae.state_dict()
    assert all(found[name].equal(tensor) for name, tensor in weights.items())
    weights["quantiser.codebook"] += 1
    save_checkpoint(spoilt, "decoder", weights)
    with pytest.raises(UsageProblem, match="another encoder"):
        read_training_run(spoilt)
