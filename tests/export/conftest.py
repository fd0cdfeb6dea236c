"""Networks of preset `tiny` with random weights, and what becomes of them, made once for all tests of the exporter."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tiny_run import save_checkpoint  # noqa: E402

from m2s.nets.denoiser import Denoiser  # noqa: E402
from m2s.nets.mcsr import McsrNet  # noqa: E402
from m2s.nets.presets import PRESETS  # noqa: E402
from m2s.nets.vqvae import VqVae  # noqa: E402
from m2s_export.bundle import Plan, publish_run  # noqa: E402
from m2s_export.training_run import read_training_run  # noqa: E402


@pytest.fixture(scope="session")
def nets():
    """Weights that start at zero are drawn too: a residual that adds nothing would hide what follows it."""
    torch.manual_seed(0)
    size = PRESETS["tiny"]
    made = {
        "mcsr": McsrNet(size.mcsr),
        "vqvae": VqVae(size.vqvae),
        "diffusion": Denoiser(size.denoiser, size.vqvae.dim),
    }
    for net in made.values():
        for weight in net.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.02)
    return made


@pytest.fixture(scope="session")
def run_folder(nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for stage, net in nets.items():
        save_checkpoint(folder, stage, net.state_dict())
    return folder


@pytest.fixture(scope="session")
def training_run(run_folder):
    return read_training_run(run_folder)


@pytest.fixture(scope="session")
def bundle(training_run, tmp_path_factory):
    """In float32, with float16 graphs beside."""
    out = tmp_path_factory.mktemp("models") / "tiny"
    training, notes = training_run.training("random numbers", "CC0-1.0"), "## Accuracy\n\nNone."
    plan = Plan("tiny", training, notes=notes, float16=True, surface_cases=0)
    return publish_run(training_run, out, plan)
