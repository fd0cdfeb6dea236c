"""Inference engines behind one protocol; `open_engine` picks one and tells the truth about what was bound."""

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Engine
from m2s_runtime.errors import UsageProblem

__all__ = ["Engine", "open_engine"]


def open_engine(bundle: Bundle, engine: str = "auto", device: str = "auto", threads: int = 0) -> Engine:
    """Loads the five graphs of a bundle.

    Args:
        bundle: from `load_bundle`.
        engine: `auto` or `onnx`.
        device: `auto`, `cpu`, or `cuda:N`.
        threads: cores that one inference may use; 0 means those that this process may use.

    Raises:
        UsageProblem: an engine, device or number of threads that cannot mean anything.
        EngineError: the engine is not installed, or the device that was asked for by name cannot be had.
        BundleError: a graph is not what the manifest says.
    """
    if engine not in ("auto", "onnx"):
        raise UsageProblem(f"--engine {engine}: choose auto or onnx")
    if threads < 0:
        raise UsageProblem(f"--threads {threads}: give a positive number, or 0 for all cores")
    from m2s_runtime.engines.onnx import OnnxEngine  # onnxruntime belongs to an extra

    return OnnxEngine(bundle, device, threads)
