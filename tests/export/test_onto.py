"""A bundle's own MCSR-Net as the start of a fine-tuning, and a fine-tuned one put in its place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from exporting import export
from toy import TOY

import m2s_export.bundle as publishing
from m2s.evaluate.dice_model import Fitted
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.train.checkpoint import load_weights, save_weights
from m2s.train.cli import main
from m2s.train.finetune import read_initial
from m2s.train.provenance import by_stage, joined
from m2s.train.shipped import bundle_at, mcsr_weights
from m2s_export import onto as under_test
from m2s_export.onto import publish_onto
from m2s_export.precision import round_weights
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines import open_engine
from m2s_runtime.errors import UsageProblem
from m2s_runtime.expected_dice import TRAITS, DiceModel

TUNED = {"stage": "mcsr", "preset": "tiny", "data": "noise; then 8 pairs", "data_licence": "CC0-1.0", "step": "60"}
OTHERS = ("encode.onnx", "denoise.onnx", "decode.onnx")


@pytest.fixture(scope="module")
def tuned(nets, tmp_path_factory):
    """A run that holds nothing but an MCSR-Net, whose weights are a little off those of the bundle."""
    run, net = tmp_path_factory.mktemp("tuned"), McsrNet(PRESETS["tiny"].mcsr)
    torch.manual_seed(1)
    net.load_state_dict(
        {n: w + 0.05 * w.abs().mean() * torch.randn_like(w) for n, w in nets["mcsr"].state_dict().items()}
    )
    (run / "mcsr").mkdir()
    save_weights(run / "mcsr" / "best.safetensors", net.state_dict(), TUNED)
    return run, net.eval()


@pytest.fixture(scope="module")
def made(bundle, tuned, tmp_path_factory):
    out = tmp_path_factory.mktemp("onto") / "ours"
    told = {"surface_cases": 0, "spread_scale": 1.3, "licence": "CC0-1.0"}
    return publish_onto(bundle, tuned[0], out, told)


def test_weights_come_out_of_a_bundle_as_they_went_in(bundle, nets):
    found = read_initial(bundle.path, "tiny")
    wanted = round_weights(nets["mcsr"]).state_dict()
    assert found.weights.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found.weights[name], tensor), name
    told = {"stage": "mcsr", "preset": "tiny", "data": "random numbers", "data_licence": "CC0-1.0", "step": "10"}
    assert told.items() <= found.metadata.items()


def test_a_bundle_onto_itself_is_the_same_to_the_byte(bundle, tmp_path):
    weights, metadata, _ = mcsr_weights(bundle)
    (tmp_path / "mcsr").mkdir()
    save_weights(tmp_path / "mcsr" / "best.safetensors", weights, metadata)
    same = publish_onto(bundle, tmp_path, tmp_path / "tiny", {"surface_cases": 0})
    graphs = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    assert {n: same.manifest.files[n] for n in graphs} == {n: bundle.manifest.files[n] for n in graphs}
    assert same.manifest.training == bundle.manifest.training


def test_only_mcsr_net_is_new(bundle, made, tuned):
    before, after = bundle.manifest, made.manifest
    assert [before.files[n] == after.files[n] for n in OTHERS] == [True, True, True]
    assert [before.files[n] == after.files[n] for n in ("mc.onnx", "sr.onnx", "sr.float16.onnx")] == [False] * 3
    assert after.flavours["float16"].files == before.flavours["float16"].files
    assert after.flavours["float16"].parity is not None
    rng = np.random.default_rng(0)
    slices = 6 * rng.standard_normal((2, 1, 128, 128, 12)).astype(np.float32)
    shifts = rng.standard_normal((2, 12, 2)).astype(np.float32)
    answer = open_engine(made, "onnx", "cpu").run("sr", {"slices": slices, "shifts": shifts})["prob"]
    with torch.inference_mode():
        wanted = round_weights(tuned[1]).probability(torch.from_numpy(slices), torch.from_numpy(shifts)).numpy()
    np.testing.assert_allclose(answer, wanted, atol=1e-4)


def test_the_manifest_tells_both_origins(bundle, made):
    manifest = made.manifest
    assert (manifest.name, manifest.licence, manifest.spread_scale) == ("ours", "CC0-1.0", 1.3)
    assert manifest.training.data == ("mcsr: noise; then 8 pairs; vqvae: random numbers; diffusion: random numbers")
    assert manifest.training.data_licence == "CC0-1.0"
    assert manifest.training.stages["mcsr"].steps == 60
    assert manifest.training.stages["vqvae"] == bundle.manifest.training.stages["vqvae"]
    assert (manifest.steps, manifest.scale_factor) == (bundle.manifest.steps, bundle.manifest.scale_factor)
    # What other engines were found to do with other weights says nothing of these.
    assert manifest.proven == {}
    assert "encode, denoise, decode: onnx" in manifest.parity.torch
    assert set(manifest.parity.graphs) == {"mc", "sr", "encode", "denoise", "decode"}


def test_rounds_of_fine_tuning_are_told_of_mcsr_alone(made):
    """A second round starts from what the first says of MCSR-Net, and leaves what it says of the others."""
    _, metadata, _ = mcsr_weights(made)
    assert metadata["data"] == "noise; then 8 pairs"
    stages = tuple(made.manifest.training.stages)
    told = by_stage(made.manifest.training.data, stages) | {"mcsr": f"{metadata['data']}; then 3 pairs"}
    again = by_stage(joined(told), stages)
    assert again == {"mcsr": "noise; then 8 pairs; then 3 pairs"} | dict.fromkeys(stages[1:], "random numbers")
    assert by_stage("all the same", stages) == dict.fromkeys(stages, "all the same")
    assert joined(dict.fromkeys(stages, "all the same")) == "all the same"


def test_licences_of_both_are_told(bundle):
    net = {"stage": "mcsr", "licence": "CC-BY-NC-4.0"}
    draft = under_test._draft(bundle.manifest, net, "new", {})
    assert (bundle.manifest.licence, draft.licence) == ("not stated", "mcsr: CC-BY-NC-4.0; the rest: not stated")
    assert under_test._draft(draft, net, "newer", {}).licence == draft.licence
    assert under_test._draft(draft, net | {"licence": "not stated"}, "newer", {}).licence == "not stated"


def test_by_command(bundle, made, tuned, tmp_path, monkeypatch, capsys):
    # The graphs are those of `made`: converting them again would double the time of these tests.
    monkeypatch.setattr(publishing, "to_onnx", lambda graph: graph)
    monkeypatch.setattr(publishing, "write_graph", lambda path, *_, **__: path.write_bytes(made.read(path.name)))
    words = [tuned[0], "--onto", bundle.path, "--out", tmp_path / "new"]
    fitted = Fitted({"expected_dice": 0.87}, DiceModel(-2.5, dict.fromkeys(TRAITS, 0.1)))
    fitted.write(tmp_path / "fitted.json")
    more = ("--surfaces", 0, "--temperature", 0.5, "--fitted", tmp_path / "fitted.json", "--flag-limit", "few_slices=4")
    assert export(monkeypatch, *words, *more) == 0
    assert "spread calibrated as in tiny" in capsys.readouterr().out
    new = load_bundle(tmp_path / "new")
    assert new.manifest.dice_model == fitted.dice_model
    assert new.manifest.flag_limits == bundle.manifest.flag_limits | {"expected_dice": 0.87, "few_slices": 4}
    assert "from 26 traits of a stack, is below 0.870" in (new.path / "MODEL_CARD.md").read_text()
    found = load_bundle(tmp_path / "new").manifest
    assert (found.temperature, found.steps, found.spread_scale) == (0.5, bundle.manifest.steps, 1.0)
    again = [tuned[0], "--onto", new.path, "--out", tmp_path / "again", "--surfaces", 0]
    assert export(monkeypatch, *again) == 0
    assert "Dice expected as of new: m2s-eval flags" in capsys.readouterr().out
    assert load_bundle(tmp_path / "again").manifest.dice_model == fitted.dice_model
    assert export(monkeypatch, *again[:-2], "--overwrite", "--fitted", tmp_path / "none.json") == 2
    assert "none.json" in capsys.readouterr().err
    assert export(monkeypatch, *words) == 6
    assert "--overwrite" in capsys.readouterr().err
    assert export(monkeypatch, *words, "--store", "float32") == 2
    assert "--store: means nothing with --onto" in capsys.readouterr().err
    assert export(monkeypatch, *words, "--engine", "trt") == 2
    assert "leave --engine trt out" in capsys.readouterr().err
    assert export(monkeypatch, tuned[0], "--out", tmp_path / "newer") == 3
    assert "or add --onto BUNDLE" in capsys.readouterr().err


def test_a_bundle_is_fine_tuned(bundle, tmp_path):
    def train(*words):
        done = CliRunner().invoke(main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    train("pairs", tmp_path / "pairs", "--phantom", "--hearts", 2, "--held", 1)
    run, options = tmp_path / "run", ("--data", tmp_path / "pairs", "--threads", 1, "--workers", 1, "--steps", 2, "-q")
    told = train("mcsr", run, "--preset", "tiny", "--init", bundle.path, *options)
    weights, metadata = load_weights(run / "mcsr" / "best.safetensors")
    same = all(weights[name].equal(tensor) for name, tensor in mcsr_weights(bundle)[0].items())
    assert ("nothing gained" if same else f"now: m2s-export {run} --onto {bundle.path}") in told
    assert metadata["init"] == mcsr_weights(bundle)[2]
    assert metadata["data"].startswith("random numbers")


def test_a_bundle_goes_by_its_name_too(bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("M2S_HOME", str(bundle.path.parent))
    monkeypatch.chdir(tmp_path)
    assert bundle_at(Path("tiny")) == bundle.path
    assert bundle_at(Path("nowhere")) is None
    assert bundle_at(tmp_path) is None
    done = CliRunner().invoke(main, ["baseline", "mcsr-ete", "run", "--init", "tiny", "--data", str(tmp_path)])
    assert done.exit_code == 2
    assert "a bundle holds no mcsr-ete" in done.output


def test_what_does_not_fit_is_refused(bundle, tuned, tmp_path, monkeypatch, capsys):
    stranger = replace(bundle, manifest=replace(bundle.manifest, preset="compact"))
    with pytest.raises(UsageProblem, match=r"preset tiny, but .* is of preset compact"):
        publish_onto(stranger, tuned[0], tmp_path / "new", {})
    with pytest.raises(UsageProblem, match=r"do not keep .* weights as they are trained"):
        mcsr_weights(stranger)
    with pytest.raises(UsageProblem, match="preset 'toy' is not one of"):
        mcsr_weights(load_bundle(TOY))
    clipped = replace(bundle, manifest=replace(bundle.manifest, clip_mm=9.0))
    with pytest.raises(UsageProblem, match="takes slices otherwise"):
        publish_onto(clipped, tuned[0], tmp_path / "new", {})
    assert export(monkeypatch, tmp_path / "none", "--onto", bundle.path, "--out", tmp_path / "new") == 3
    assert "missing; SOURCE is the folder of a training run" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
