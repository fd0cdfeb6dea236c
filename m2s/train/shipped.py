"""MCSR-Net's weights out of a bundle, for users who have the bundle and not the run that it was exported from."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from m2s.nets.mcsr import McsrNet
from m2s.nets.presets import PRESETS
from m2s.train.checkpoint import Metadata
from m2s.train.provenance import by_stage
from m2s_runtime.bundle import MANIFEST, Bundle, find_bundle
from m2s_runtime.errors import BundleError, EngineError, UsageProblem
from m2s_runtime.manifest import Manifest, NotedStage

if TYPE_CHECKING:
    from onnx import ModelProto

_GRAPHS: Final = {"mc": "", "sr": "net."}
"""Graphs of MCSR-Net, and what stands before the names of its weights in each."""
LICENSED: Final = ("mcsr", "the rest")
"""Parts of a bundle whose weights may have licences of their own."""
_HALF: Final = ".half"
"""Ending of a weight stored as float16, see `m2s_export.precision.store_half`."""


def mcsr_weights(bundle: Bundle) -> tuple[dict[str, Tensor], Metadata, str]:
    """State dict of MCSR-Net in float32, what its checkpoint would say of itself, and half a sha256 of both graphs.

    Weights are as the bundle stores them: rounded to float16 where its manifest says so.

    Raises:
        EngineError: the package onnx is not installed.
        BundleError: a graph is no ONNX.
        UsageProblem: its preset is unknown, or its graphs do not keep every weight under its name: of preset `paper`
            they do not, whose batch norms are folded into the convolutions before them.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise EngineError(f'onnx is not installed ({error}); run `pip install "mask2surface[train]"`') from error
    preset = PRESETS.get(bundle.manifest.preset)
    if preset is None:
        raise UsageProblem(f"{bundle.path}: preset {bundle.manifest.preset!r} is not one of {', '.join(PRESETS)}")
    with torch.device("meta"):
        wanted = McsrNet(preset.mcsr).state_dict()
    files = {graph: bundle.read(bundle.manifest.graph_file(graph)) for graph in _GRAPHS}
    found: dict[str, Tensor] = {}
    for graph, prefix in _GRAPHS.items():
        try:
            model = onnx.load_from_string(files[graph])
        except DecodeError as error:
            file = bundle.path / bundle.manifest.graph_file(graph)
            raise BundleError(f"{file}: not an ONNX file (truncated?); install or export the bundle anew") from error
        found |= _weights(model, prefix)
    weights = {name: found[name] for name, like in wanted.items() if name in found and found[name].shape == like.shape}
    if missing := [name for name in wanted if name not in weights]:
        raise UsageProblem(
            f"{bundle.path}: its graphs do not keep {len(missing)} of MCSR-Net's {len(wanted)} weights as they are "
            f"trained ({missing[0]}); give the run that the bundle was exported from"
        )
    return weights, _metadata(bundle.manifest), hashlib.sha256(b"".join(files.values())).hexdigest()[:32]


def _weights(model: "ModelProto", prefix: str) -> dict[str, Tensor]:
    """The floating-point constants of a graph by the names they have in the network."""
    from onnx import numpy_helper

    arrays = {i.name.removesuffix(_HALF): numpy_helper.to_array(i) for i in model.graph.initializer}
    return {
        name.removeprefix(prefix): torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if name.startswith(prefix) and np.issubdtype(array.dtype, np.floating)
    }


def _metadata(manifest: Manifest) -> Metadata:
    stages = ("mcsr", *manifest.training.stages)
    told = {
        "stage": "mcsr",
        "preset": manifest.preset,
        "licence": by_stage(manifest.licence, LICENSED)["mcsr"],
        "data": by_stage(manifest.training.data, stages)["mcsr"],
        "data_licence": by_stage(manifest.training.data_licence, stages)["mcsr"],
        "step_range_mm": json.dumps(manifest.step_range_mm),
    }
    stage = manifest.training.stages.get("mcsr")
    if stage is not None:
        told |= {"step": str(stage.steps), "seed": str(stage.seed), "seconds": f"{stage.seconds:g}"}
    return told | ({"note": stage.note} if isinstance(stage, NotedStage) else {})


def bundle_at(path: Path) -> Path | None:
    """The folder of the bundle that a path or a bare name stands for; None where it is something else, or nothing."""
    if (path / MANIFEST).is_file():
        return path
    if path.exists() or len(path.parts) != 1:
        return None
    try:
        return find_bundle(path.name)
    except BundleError:
        return None
