"""Inference engines behind one protocol; `open_engine` picks one and tells the truth about what was bound."""

from pathlib import Path

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Engine
from m2s_runtime.engines.choose import open_fastest, open_named
from m2s_runtime.errors import UsageProblem
from m2s_runtime.options import ENGINES, PRECISIONS

__all__ = ["Engine", "open_engine"]


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    device: str = "auto",
    threads: int = 0,
    *,
    precision: str = "auto",
    engine_dir: Path | None = None,
) -> Engine:
    """Loads the five graphs of a bundle.

    Args:
        bundle: from `load_bundle`.
        engine: `auto`, `onnx`, `openvino` or `trt`.
        device: `auto`, `cpu`, or `cuda:N`.
        threads: cores that one inference may use; 0 means those that this process may use.
        precision: `auto`, `float32`, `float16` or `bfloat16`; `auto` is float32 unless the engine is `auto` too and
            another one has passed parity.
        engine_dir: folder of built TensorRT engines; None means `cache.default_folder()`.

    Raises:
        UsageProblem: an engine, device, precision or number of threads that cannot mean anything.
        EngineError: the engine is not installed, or the device that was asked for by name cannot be had.
        BundleError: a graph is not what the manifest says.
    """
    if engine not in ENGINES:
        raise UsageProblem(f"--engine {engine}: choose {' or '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise UsageProblem(f"--precision {precision}: choose {' or '.join(PRECISIONS)}")
    if threads < 0:
        raise UsageProblem(f"--threads {threads}: give a positive number, or 0 for all cores")
    if engine == "auto":
        return open_fastest(bundle, device, threads, precision, engine_dir)
    return open_named(bundle, engine, device, threads, "float32" if precision == "auto" else precision, engine_dir)
