"""Weights of the old MONAI Generative package's `DiffusionModelUNet` as the denoiser of a training run.

MONAI core maps its names. One thing it gets wrong: the old attention had a last projection, `proj_attn`, that it never
applied (MONAI issue 7991), so those weights are as they were drawn, and MONAI core would apply them. The identity takes
their place, which makes the new network compute what the old one did.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from m2s.nets.denoiser import Denoiser
from m2s.nets.presets import Preset
from m2s.train.checkpoint import load_weights, save_weights
from m2s_export.training_run import CHECKPOINT
from m2s_runtime.errors import NoInputs, OutputError, UsageProblem

_INSIDE: Final = ("state_dict", "model_state_dict", "model")
"""Where training scripts keep the state dict in their checkpoints."""

_OLD: Final = ".proj_attn.weight"
_NEW: Final = ".attn.out_proj.weight"


def import_denoiser(file: Path, run: Path, preset: Preset, scale_factor: float, *, overwrite: bool = False) -> Path:
    """Writes `run/diffusion/best.safetensors`, which `m2s-export run` takes beside the other two stages.

    Args:
        file: state dict, safetensors or `torch.save`d; only tensors are unpickled.
        run: folder of the training run.
        preset: whose denoiser it has to be; that of the paper is `paper`.
        scale_factor: what the latents were multiplied by before the diffusion.
        overwrite: whether a checkpoint that is there may go.

    Raises:
        NoInputs: no such file.
        UsageProblem: no state dict, or not of this network.
        OutputError: the checkpoint exists or cannot be written.
    """
    target = run / "diffusion" / CHECKPOINT
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; add --overwrite to replace it, or choose another --out")
    net = load_old_denoiser(file, preset)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    facts = {
        "preset": preset.name, "stage": "diffusion", "step": "0", "seed": "0", "seconds": "0",
        "scale_factor": repr(scale_factor), "note": f"weights imported from MONAI Generative, file sha256 {digest}",
    }  # fmt: skip
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{run}: cannot be written ({error.strerror or error}); choose another --out") from error
    save_weights(target, net.state_dict(), facts)
    return target


def load_old_denoiser(file: Path, preset: Preset) -> Denoiser:
    """The denoiser of `preset` with the weights of `file`; errors as of `import_denoiser`."""
    if preset.denoiser.target != "noise":
        raise UsageProblem(f"--preset {preset.name}: its denoiser is not MONAI's as it stands; take --preset paper")
    weights = _read(file)
    net = Denoiser(preset.denoiser, preset.vqvae.dim)
    with torch.no_grad():
        for parameter in net.unet.parameters():  # what the file does not fill stays recognisable
            parameter.fill_(torch.nan)
    try:
        if any(name.endswith(_OLD) for name in weights):
            left = _load_old(net, weights)
        else:
            left = dict[str, Tensor]()
            net.unet.load_state_dict(weights)
    except KeyError as error:
        raise UsageProblem(f"{file}: does not fit the denoiser of preset {preset.name} (no {error.args[0]})") from error
    except RuntimeError as error:
        first = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
        raise UsageProblem(f"{file}: does not fit the denoiser of preset {preset.name} ({first})") from error
    broken = [name for name, tensor in net.unet.state_dict().items() if not tensor.isfinite().all()]
    if left or broken:
        fault = f"{next(iter(left))} has no place in it" if left else f"{broken[0]} is missing or not finite"
        raise UsageProblem(f"{file}: does not fit the denoiser of preset {preset.name} ({fault})")
    return net.eval()


def _load_old(net: Denoiser, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fills the U-Net; what is left over comes back."""
    left = dict(weights)
    net.unet.load_old_state_dict(left)
    with torch.no_grad():
        for name, parameter in net.unet.named_parameters():
            if name.endswith(_NEW):
                parameter.copy_(torch.eye(len(parameter)))
                net.unet.get_parameter(name.removesuffix("weight") + "bias").zero_()
    return left


def _read(file: Path) -> dict[str, Tensor]:
    """The state dict in a file, without the prefix that data-parallel training leaves."""
    if not file.is_file():
        raise NoInputs(f"{file}: no such file; --import-monai-generative takes a state dict")
    try:
        found: Any = load_weights(file)[0] if file.suffix == ".safetensors" else _unpickled(file)
    except Exception as error:  # of two libraries, one of them in Rust
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageProblem(
            f"{file}: neither safetensors nor a PyTorch file of tensors alone ({first}); save it anew with "
            "torch.save(model.state_dict(), FILE)"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()) or not found:
        raise UsageProblem(f"{file}: holds no state dict; save it anew with torch.save(model.state_dict(), FILE)")
    weights = cast(Mapping[str, Tensor], found)
    return {str(name).removeprefix("module."): tensor.float() for name, tensor in weights.items()}


def _unpickled(file: Path) -> Any:  # noqa: ANN401 - whatever somebody saved
    found: Any = torch.load(file, map_location="cpu", weights_only=True)
    inside = [found[name] for name in _INSIDE if isinstance(found, Mapping) and isinstance(found.get(name), Mapping)]
    return inside[0] if inside else found
