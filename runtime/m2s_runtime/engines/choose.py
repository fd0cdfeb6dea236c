"""Opening the engine that was asked for, or the fastest that may be trusted here.

The order of speed is measured on one CPU (docs/performance.md) and, for GPUs, taken on trust: OpenVINO is ahead of ONNX
Runtime by its bfloat16, which only the steps of the denoiser take, so that a bundle of one step has no use for it.
An engine counts when it is installed, fits the device and has passed parity on this very bundle: `manifest.parity` is
that of ONNX Runtime in float32, `manifest.proven` holds the others. ONNX Runtime on a GPU runs the same float32 graphs
without TF32 and needs no record of its own.
"""

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Union

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.cuda import cuda_index
from m2s_runtime.engines.onnx import OnnxEngine, lists_cuda
from m2s_runtime.errors import EngineError, UsageProblem

if TYPE_CHECKING:
    from m2s_runtime.engines.drawing import DrawingEngine
    from m2s_runtime.engines.onnx_bound import BoundOnnxEngine
    from m2s_runtime.engines.openvino import OpenVinoEngine
    from m2s_runtime.engines.trt import TrtEngine

Opened = Union[OnnxEngine, "BoundOnnxEngine", "OpenVinoEngine", "TrtEngine", "DrawingEngine"]

_SERVES: Final = {
    "onnx": ("float32", "float16"),
    "openvino": ("float32", "bfloat16"),
    "trt": ("float32", "float16"),
}
_NARROWEST: Final = {"trt": ("float16", "float32"), "openvino": ("bfloat16", "float32")}
"""Engines that are faster than ONNX Runtime on the same device, and their precisions, the fastest first."""

_MODULES: Final = {"trt": ("tensorrt", "tensorrt_rtx"), "openvino": ("openvino",)}


def open_named(
    bundle: Bundle, engine: str, device: str, threads: int, precision: str, folder: Path | None = None
) -> Opened:
    """This engine in this precision, or an error.

    Raises:
        UsageProblem: the engine has no such precision.
        EngineError: it cannot be had.
        BundleError: a graph is not what the manifest says, or there is none in this precision.
    """
    cuda_index(device)  # a usage problem comes before what is not installed
    if precision not in _SERVES[engine]:
        raise UsageProblem(f"--precision {precision}: --engine {engine} has {' and '.join(_SERVES[engine])}")
    if engine == "trt":
        from m2s_runtime.engines.drawing import drawing
        from m2s_runtime.engines.trt import TrtEngine

        return drawing(TrtEngine(bundle, device, threads, precision=precision, folder=folder))
    if engine == "openvino":
        from m2s_runtime.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, device, threads, precision)
    return _onnx(bundle, device, threads, precision)


def open_fastest(bundle: Bundle, device: str, threads: int, precision: str, folder: Path | None = None) -> Opened:
    """The fastest engine that is installed, proven and fits; its description says why it and not another.

    Raises:
        UsageProblem: a device that cannot mean anything, or a precision, which needs an engine by name.
        EngineError: there is none.
        BundleError: a graph is not what the manifest says.
    """
    if precision not in ("auto", "float32"):
        raise UsageProblem(f"--precision {precision}: say in which engine, such as --engine openvino")
    on_gpu, passed_over = cuda_index(device) is not None, list[str]()
    proven = partial(_proven, bundle, device, threads, precision, folder, passed_over)
    if device != "cpu" and (engine := proven("trt")):
        return engine
    # On a GPU ONNX Runtime beats whatever the CPU can do.
    usual = _onnx(bundle, device, threads) if on_gpu or (device == "auto" and lists_cuda()) else None
    if usual is None or (usual.device == "cpu" and not on_gpu):
        engine = proven("openvino")
        if engine:
            return engine
    try:
        usual = usual or _onnx(bundle, "cpu", threads)
    except EngineError as error:
        raise EngineError("; ".join([str(error), *passed_over])) from error
    return _explained(usual, ", ".join(passed_over) or "nothing faster is installed")


def _proven(
    bundle: Bundle, device: str, threads: int, precision: str, folder: Path | None, passed_over: list[str], name: str
) -> Opened | None:
    """Engine `name` in its fastest precision that has passed; None, with the reasons noted, when it cannot be had."""
    if not any(importlib.util.find_spec(module) for module in _MODULES[name]):
        return None
    if name == "openvino" and bundle.manifest.steps == 1:
        passed_over.append("openvino gains nothing in a single step")
        return None
    widths = [w for w in _NARROWEST[name] if precision in ("auto", w) and f"{name}-{w}" in bundle.manifest.proven]
    if not widths:
        passed_over.append(f"{name} is not proven on this bundle")
    for width in widths:
        try:
            return _explained(open_named(bundle, name, device, threads, width, folder), "the fastest that is proven")
        except EngineError as error:
            passed_over.append(f"{name} {width}: {error}")
    return None


def _onnx(
    bundle: Bundle, device: str, threads: int, precision: str = "float32"
) -> "OnnxEngine | BoundOnnxEngine | DrawingEngine":
    engine = OnnxEngine(bundle, device, threads, precision)
    if engine.device == "cpu" or engine.cuda is None:
        return engine
    from m2s_runtime.engines.drawing import drawing
    from m2s_runtime.engines.onnx_bound import BoundOnnxEngine

    return drawing(BoundOnnxEngine(engine, engine.cuda))


def _explained(engine: Opened, why: str) -> Opened:
    engine.description += f"; auto: {why}"
    return engine
