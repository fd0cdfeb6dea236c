"""Half-precision graphs: the convolutions and linear layers of the large networks are cast, and nothing else.

Norms, attention, quantiser, re-alignment, the arithmetic around the denoiser, inputs and outputs stay float32, so a
graph keeps its signature. `mc` has no half-precision form: it is small, and its answer is millimetres.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from torch import Tensor, nn

from m2s_export.graphs import Graph

_BODIES: Final = {
    "sr": ("net.super_resolution",),
    "encode": ("net.encoder",),
    "denoise": ("net.unet",),
    "decode": ("net.decoder_low", "net.decoder_top"),
}
"""Graph -> the parts of its module that compute in half precision and answer in float32."""

_WIDE: Final = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm3d, SpatialAttentionBlock)
"""Statistics and softmax: sums over many numbers, which half precision would spoil or overflow."""


def half_graphs(graphs: Mapping[str, Graph]) -> dict[str, Graph]:
    """Copies, in half precision, of those graphs that have such a form; the originals stay as they are."""
    return {name: replace(g, module=_halved(g.module, _BODIES[name])) for name, g in graphs.items() if name in _BODIES}


def _halved(module: nn.Module, bodies: tuple[str, ...]) -> nn.Module:
    copied = copy.deepcopy(module)
    for name in bodies:
        body = copied.get_submodule(name)
        _cast(body)
        body.register_forward_hook(_widen_answer)
    return copied


def _cast(module: nn.Module) -> None:
    """Casts layers below `module`, down to the parts that stay wide, which take and give half all the same."""
    for child in module.children():
        if isinstance(child, _WIDE):
            child.register_forward_pre_hook(_widen_input)
            child.register_forward_hook(_narrow_answer)
        elif isinstance(child, nn.Conv3d | nn.Linear):
            child.half()
            child.register_forward_pre_hook(_narrow_input)
        else:
            _cast(child)


def _narrow_input(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (given[0].half(), *given[1:])


def _widen_input(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return (given[0].float(), *given[1:])


def _narrow_answer(_: nn.Module, __: tuple[Any, ...], answer: Tensor) -> Tensor:
    return answer.half()


def _widen_answer(_: nn.Module, __: tuple[Any, ...], answer: Tensor) -> Tensor:
    return answer.to(torch.float32)
