"""OpenVINO: the same ONNX files on the CPU, faster than ONNX Runtime, in float32 or bfloat16.

Graphs are compiled for one row at a time: kernels for a fixed shape are the faster ones (the super-resolution by 1.6),
larger batches gain nothing on a CPU, and so no result depends on the size of its batch.

In bfloat16 only `denoise` and `decode` are narrow. The others answer with what jumps: `encode` with codes, of which two
thirds would be others, `sr` with probabilities that are cut at 0.5 (surfaces 0.1 mm off), `mc` with shifts.
"""

import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Arrays, finite_outputs, first_line, fitted_inputs, graph_bytes
from m2s_runtime.engines.winograd import with_fewer_products
from m2s_runtime.errors import BundleError, EngineError
from m2s_runtime.machine import usable_cores
from m2s_runtime.manifest import BATCH, GRAPHS, TensorSpec

_INSTALL: Final = 'pip install "mask2surface[openvino]"'
_NARROW: Final = {"float32": (), "bfloat16": ("denoise", "decode")}
"""Precision -> graphs that compute in bfloat16."""

_DTYPES: Final = {"f32": "float32", "i64": "int64"}


class OpenVinoEngine:
    """One compiled graph and request each, on the CPU."""

    def __init__(self, bundle: Bundle, device: str, threads: int, precision: str = "float32") -> None:
        """Verify, read, check and compile.

        Args:
            bundle: from `load_bundle`.
            device: `auto` or `cpu`.
            threads: cores that one inference may use; 0 means those that this process may use.
            precision: `float32`, or `bfloat16` on CPUs that compute in it.

        Raises:
            EngineError: OpenVINO is not installed, or cannot do this here.
            BundleError: a graph is not what the manifest says.
        """
        if device not in ("auto", "cpu"):
            raise EngineError(f"--device {device}: --engine openvino runs on the CPU; use --device cpu")
        openvino = _load()
        self.name: Final = "openvino"
        self.device: Final = "cpu"
        self.threads: Final = threads or usable_cores()
        self._specs = bundle.manifest.graphs
        self._core = shared_core()
        if precision == "bfloat16" and not computes_bfloat16():
            raise EngineError("--precision bfloat16: this CPU has no bfloat16 arithmetic; use --precision float32")
        self._requests = {g: self._request(bundle, g, narrow=g in _NARROW[precision]) for g in GRAPHS}
        version = str(openvino.__version__).partition("-")[0]
        named = "" if precision == "float32" else f" {precision}"
        self.description = f"openvino {version}{named} on cpu, {self.threads} thread(s)"

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        spec = self._specs[graph]
        fitted = fitted_inputs(graph, spec, inputs)
        rows = len(next(iter(fitted.values())))
        answers = [self._row(graph, {n: a[k : k + 1] for n, a in fitted.items()}) for k in range(rows)]
        return finite_outputs(graph, {t.name: np.concatenate([a[t.name] for a in answers]) for t in spec.outputs})

    def _row(self, graph: str, inputs: Arrays) -> Arrays:
        request = self._requests[graph]
        try:
            request.infer(inputs, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(
                f"network {graph} failed in openvino ({_reason(error)}); with too little memory, ask for fewer --jobs"
            ) from error
        return {t.name: request.get_tensor(t.name).data.copy() for t in self._specs[graph].outputs}

    def _request(self, bundle: Bundle, graph: str, *, narrow: bool) -> Any:  # noqa: ANN401 - imported when needed
        where, data = graph_bytes(bundle, graph)
        spec = self._specs[graph]
        try:
            # bfloat16 has too few digits for the transforms.
            model = self._core.read_model(data if narrow else with_fewer_products(data))
            if not (_agree(model.inputs, spec.inputs) and _agree(model.outputs, spec.outputs)):
                raise BundleError(
                    f"{where}: its inputs or outputs are not those in the manifest; export the bundle anew"
                )
            model.reshape({tensor.name: [1, *tensor.shape[1:]] for tensor in spec.inputs})
            return self._core.compile_model(model, "CPU", self._settings(narrow=narrow)).create_infer_request()
        except (RuntimeError, ValueError) as error:
            raise BundleError(
                f"{where}: openvino cannot load it ({_reason(error)}); use --engine onnx or export the bundle anew"
            ) from error

    def _settings(self, *, narrow: bool) -> dict[str, str | int | bool]:
        return {
            # Without a hint OpenVINO takes bfloat16 wherever the CPU has it.
            "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # several processes would all be pinned to the same cores
        }


@cache
def shared_core() -> Any:  # noqa: ANN401 - an `openvino.Core`
    """The one `openvino.Core` of this process, which is never let go.

    Each core of its own gives the thread another stack for signals (OpenVINO 2026.4), and of several that end in
    another order than the reverse one that stack is left in memory that is no more: the next signal that Python
    handles, such as Ctrl-C, is then a segmentation fault.

    Raises:
        EngineError: OpenVINO is not installed.
    """
    return _load().Core()


def computes_bfloat16() -> bool:
    """Whether this CPU has bfloat16 arithmetic, in the eyes of OpenVINO.

    Raises:
        EngineError: OpenVINO is not installed.
    """
    return "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _load() -> ModuleType:
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:
        raise EngineError(f"openvino cannot be loaded ({first_line(error)}); run `{_INSTALL}`") from error


def _reason(error: Exception) -> str:
    """The last line: those before it name places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _agree(ports: Sequence[Any], tensors: tuple[TensorSpec, ...]) -> bool:
    found = [(p.any_name, _shape(p.partial_shape), _DTYPES.get(p.element_type.get_type_name())) for p in ports]
    return found == [(t.name, t.shape, t.dtype) for t in tensors]


def _shape(partial: Any) -> tuple[str | int, ...]:  # noqa: ANN401
    return tuple(BATCH if side.is_dynamic else side.get_length() for side in partial)
