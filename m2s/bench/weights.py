"""The networks of a bundle as PyTorch modules again, with the very weights of its graphs.

Most weights keep their names in a graph. Those that the exporter folded (attention's matrices, norms' scales, the
codebook) have lost them; these are taken in the order in which the graph uses them, which is the order in which the
modules run. Nothing rests on that being right: what comes out is compared with the graphs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from m2s.nets.denoiser import Denoiser
from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.nets.vqvae import VqVae
from m2s.train.checkpoint import load_weights
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import graph_bytes
from m2s_runtime.errors import EngineError, UsageProblem
from m2s_runtime.grid import SLICES
from m2s_runtime.manifest import GRAPHS, Manifest

_STORED: Final = ".half"
"""Ending of weights that are stored in half precision."""

_PREFIX: Final = "net."

_NO_WEIGHTS: Final = ("Cast", "InstanceNormalization")
"""A cast widens what another node uses; a group norm's own scale follows its instance norm."""


@dataclass(frozen=True)
class Nets:
    """The networks of one bundle."""

    mcsr: McsrNet
    vqvae: VqVae
    denoiser: Denoiser
    scale_factor: float

    def modules(self) -> dict[str, nn.Module]:
        """Graph to the module that it was exported from, signatures as in the manifest."""
        made = (_Motion(self), _SuperResolution(self), _Encode(self), _Denoise(self), _Decode(self))
        return {graph: module.eval() for graph, module in zip(GRAPHS, made, strict=True)}


class _Motion(nn.Module):
    def __init__(self, nets: Nets) -> None:
        super().__init__()
        self.motion = nets.mcsr.motion

    def forward(self, slices: Tensor, pool: Tensor | None = None) -> Tensor:
        unseen = slices[:, 0, 0, :SLICES, :3]  # the published MC-Net looks at the slices alone
        return self.motion(slices, unseen if pool is None else pool)


class _SuperResolution(nn.Module):
    def __init__(self, nets: Nets) -> None:
        super().__init__()
        self.net = nets.mcsr

    def forward(self, slices: Tensor, shifts: Tensor) -> Tensor:
        return self.net.probability(slices, shifts)


class _Encode(nn.Module):
    def __init__(self, nets: Nets) -> None:
        super().__init__()
        self.net, self.scale_factor = nets.vqvae, nets.scale_factor

    def forward(self, csdg: Tensor) -> Tensor:
        return self.net.quantiser.lookup(self.net.quantiser.nearest(self.net.encode(csdg))) * self.scale_factor


class _Denoise(nn.Module):
    def __init__(self, nets: Nets) -> None:
        super().__init__()
        self.net = nets.denoiser

    def forward(self, z: Tensor, zc: Tensor, t: Tensor) -> Tensor:
        return self.net(z, zc, t)


class _Decode(nn.Module):
    def __init__(self, nets: Nets) -> None:
        super().__init__()
        self.net, self.scale_factor = nets.vqvae, nets.scale_factor

    def forward(self, z: Tensor) -> Tensor:
        return self.net.decode(z / self.scale_factor)


def nets_of_bundle(bundle: Bundle) -> Nets:
    """The networks of the bundle's preset, filled from its float32 graphs.

    Raises:
        UsageProblem: the bundle is of a preset that this version does not know.
        EngineError: the package onnx is missing, or the graphs hold other networks than the preset says.
        BundleError: a graph is altered.
    """
    nets = _empty(bundle.manifest)
    parts: dict[str, nn.Module] = {
        "mc": nets.mcsr, "sr": nets.mcsr, "encode": nets.vqvae, "denoise": nets.denoiser, "decode": nets.vqvae,
    }  # fmt: skip
    for graph, module in nets.modules().items():
        part, stored = parts[graph], _stored(bundle, graph)
        known = part.state_dict()
        found = {name: tensor for name, tensor in stored.items() if name in known}
        nameless = [tensor for name, tensor in stored.items() if name not in known]
        missing = {name: known[name] for name in _order_of_use(module, part, bundle, graph) if name not in found}
        try:
            part.load_state_dict(found | dict(_by_order(missing, nameless)), strict=False)
        except (RuntimeError, LookupError) as error:
            raise _misfit(bundle, f"{graph}: {str(error).splitlines()[-1].strip()}") from error
    return nets


def nets_of_run(bundle: Bundle, run: Path) -> Nets:
    """The same from the checkpoints of the training run that the bundle was exported from.

    Raises:
        UsageProblem: a checkpoint is missing or does not fit the bundle's preset.
    """
    nets = _empty(bundle.manifest)
    vqvae = "decoder" if (run / "decoder" / "best.safetensors").is_file() else "vqvae"
    for stage, net in (("mcsr", nets.mcsr), (vqvae, nets.vqvae), ("diffusion", nets.denoiser)):
        path = run / stage / "best.safetensors"
        try:
            net.load_state_dict(load_weights(path)[0])
        except Exception as error:  # the Rust reader's errors are its own
            raise UsageProblem(f"--run {path}: no checkpoint of preset {bundle.manifest.preset} ({error})") from error
        if bundle.manifest.stored_weights == "float16":
            _round(net)
    return nets


def _round(net: nn.Module) -> None:
    """As the exporter does before it stores weights in half precision."""
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim >= 2 and not name.endswith("codebook"):
                weight.copy_(weight.half().float())


def _empty(manifest: Manifest) -> Nets:
    if manifest.preset not in PRESETS:
        raise UsageProblem(f"lines with PyTorch need a bundle of preset {', '.join(PRESETS)}, not {manifest.preset}")
    size = PRESETS[manifest.preset]
    nets = (McsrNet(size.mcsr), VqVae(size.vqvae), Denoiser(size.denoiser, size.vqvae.dim))
    for net in nets:
        net.eval().requires_grad_(requires_grad=False)
    return Nets(*nets, manifest.scale_factor)


def _stored(bundle: Bundle, graph: str) -> dict[str, Tensor]:
    """Weights of a graph in the order of use, by their names in the module where they still have them.

    The second operand of a matrix product is turned round: a linear layer keeps it so.
    """
    try:
        onnx: Any = import_module("onnx")
    except ImportError as error:
        raise EngineError(f'lines with PyTorch need onnx ({error}); run `pip install "mask2surface[bench]"`') from error
    model = onnx.load_from_string(graph_bytes(bundle, graph)[1]).graph
    arrays = {t.name.removesuffix(_STORED): onnx.numpy_helper.to_array(t) for t in model.initializer}
    ordered: dict[str, Tensor] = {}
    for node in model.node:
        for place, name in enumerate(node.input):
            array = arrays.get(name)
            if node.op_type in _NO_WEIGHTS or array is None or array.dtype.kind != "f":
                continue
            turned = node.op_type == "MatMul" and place == 1 and array.ndim == 2
            ordered.setdefault(name.removeprefix(_PREFIX), torch.tensor(array.T if turned else array).float())
    return ordered


def _order_of_use(module: nn.Module, part: nn.Module, bundle: Bundle, graph: str) -> list[str]:
    """Names of the parameters in `part` that the module uses, in the order in which it does."""
    from m2s.bench.work import random_inputs

    used: list[str] = []
    names = {id(child): name for name, child in part.named_modules()}

    def note(child: nn.Module, _: object) -> None:
        prefix = names.get(id(child))
        if prefix is not None:
            used.extend(f"{prefix}.{name}".lstrip(".") for name, _ in child.named_parameters(recurse=False))

    hooks = [child.register_forward_pre_hook(note) for child in part.modules()]
    inputs = random_inputs(bundle.manifest.graphs[graph], 1)
    with torch.inference_mode():
        module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    for hook in hooks:
        hook.remove()
    # The quantiser is called by its methods, which no hook hears of.
    return list(dict.fromkeys([*used, *(["quantiser.codebook"] if graph == "encode" else [])]))


def _by_order(missing: Mapping[str, Tensor], nameless: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """To each missing parameter the next nameless tensor of its shape, axes of length one aside.

    Raises:
        LookupError: there is none.
    """
    left = list(nameless)
    for name, wanted in missing.items():
        for k, tensor in enumerate(left):
            if [n for n in tensor.shape if n > 1] == [n for n in wanted.shape if n > 1]:
                yield name, left.pop(k).reshape(wanted.shape)
                break
        else:
            raise LookupError(f"no weights for {name}")


def _misfit(bundle: Bundle, why: str) -> EngineError:
    return EngineError(
        f"bundle {bundle.name}, graph {why}; its graphs are not those of preset {bundle.manifest.preset} as this "
        "version exports them: give the training run with --run"
    )
