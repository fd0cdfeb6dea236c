"""Weights under the names of the MONAI Generative package: the same function comes out, or a typed error."""

from dataclasses import replace

import pytest
import torch
from exporting import export
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from safetensors.torch import save_file

from m2s.nets.presets import PRESETS, DenoiserSize
from m2s.train.checkpoint import load_weights
from m2s_export.old_monai import import_denoiser, load_old_denoiser
from m2s_runtime.errors import NoInputs, OutputError, UsageProblem

SMALL = replace(
    PRESETS["tiny"], name="small", denoiser=DenoiserSize((8, 16, 24), 2, (False, True, True), 8, 8, "noise")
)


@pytest.fixture(scope="module")
def network():
    """What the old package computes: MONAI core's network without the projection that the old one never applied."""
    torch.manual_seed(0)
    net = DiffusionModelUNet(
        spatial_dims=3, in_channels=16, out_channels=8, channels=(8, 16, 24), num_res_blocks=2,
        attention_levels=(False, True, True), num_head_channels=8, norm_num_groups=8, include_fc=False,
    )  # fmt: skip
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return net.eval()


@pytest.fixture(scope="module")
def old(network):
    """Its state dict as the old package names it, unused projections and all."""
    weights = {k.replace(".attn.", ".").replace(".postconv.", ".conv."): v for k, v in network.state_dict().items()}
    for name in [k for k in weights if k.endswith(".to_q.weight")]:
        width = len(weights[name])
        weights[name.replace("to_q", "proj_attn")] = torch.randn(width, width)
        weights[name.replace("to_q.weight", "proj_attn.bias")] = torch.randn(width)
    assert "down_blocks.1.attentions.0.proj_attn.weight" in weights
    assert "up_blocks.0.upsampler.conv.conv.weight" in weights
    return weights


def saved(tmp_path, weights, name="old.pt"):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    return path


@pytest.mark.parametrize("form", ["old.pt", "old.safetensors", "nested.pt", "parallel.pt"])
def test_the_same_function_comes_out(form, network, old, tmp_path):
    wrapped = {"nested.pt": {"epoch": 3, "state_dict": old}, "parallel.pt": {f"module.{k}": v for k, v in old.items()}}
    made = load_old_denoiser(saved(tmp_path, wrapped.get(form, old), form), SMALL)
    z, zc = torch.randn(2, 2, 8, 8, 8, 8)
    t = torch.tensor([999, 3])
    with torch.no_grad():
        torch.testing.assert_close(made(z, zc, t), network(torch.cat([z, zc], 1), t), atol=1e-5, rtol=1e-5)


def test_the_checkpoint_is_one_that_the_exporter_reads(old, tmp_path):
    path = import_denoiser(saved(tmp_path, old), tmp_path / "run", SMALL, 0.7)
    assert path == tmp_path / "run" / "diffusion" / "best.safetensors"
    weights, facts = load_weights(path)
    assert (facts["preset"], facts["scale_factor"]) == ("small", "0.7")
    assert "MONAI Generative" in facts["note"]
    assert torch.equal(weights["unet.conv_in.conv.weight"], old["conv_in.conv.weight"])
    with pytest.raises(OutputError, match="--overwrite"):
        import_denoiser(saved(tmp_path, old), tmp_path / "run", SMALL, 0.7)


def less(weights):
    return {k: v for k, v in weights.items() if k != "time_embed.0.weight"}


def no_query(weights):
    return {k: v for k, v in weights.items() if k != "down_blocks.1.attentions.0.to_q.weight"}


def more(weights):
    return weights | {"down_blocks.3.resnets.0.conv1.conv.weight": torch.zeros(1)}


def wider(weights):
    return weights | {"conv_in.conv.weight": torch.zeros(16, 16, 3, 3, 3)}


def not_finite(weights):
    return weights | {"conv_in.conv.bias": torch.full((8,), torch.nan)}


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (less, "time_embed.0.weight is missing"),
        (no_query, "to_q"),
        (more, "down_blocks.3.resnets.0.conv1.conv.weight has no place"),
        (wider, "conv_in.conv.weight"),
        (not_finite, "conv_in.conv.bias is missing or not finite"),
        (lambda _: {}, "holds no state dict"),
        (lambda _: [1, 2], "holds no state dict"),
    ],
)
def test_misfits_are_named(spoil, word, old, tmp_path):
    with pytest.raises(UsageProblem, match=word):
        load_old_denoiser(saved(tmp_path, spoil(old)), SMALL)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch, capsys):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    words = ("--import-monai-generative", tmp_path / "trap.pt", "--out", tmp_path / "run")
    assert export(monkeypatch, *words) == 2
    assert "tensors alone" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert export(monkeypatch, "--import-monai-generative", tmp_path / "junk.safetensors", "--out", tmp_path / "r") == 2
    assert export(monkeypatch, "--import-monai-generative", tmp_path / "none.pt", "--out", tmp_path / "r") == 3
    assert export(monkeypatch, "--import-monai-generative", tmp_path / "trap.pt") == 2


def test_a_denoiser_that_estimates_something_else_is_refused(old, tmp_path):
    with pytest.raises(UsageProblem, match="--preset paper"):
        load_old_denoiser(saved(tmp_path, old), PRESETS["compact"])


def test_a_missing_file_is_no_input(tmp_path):
    with pytest.raises(NoInputs):
        load_old_denoiser(tmp_path / "none.pt", SMALL)
