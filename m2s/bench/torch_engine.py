"""The networks in PyTorch behind the runtime's engine protocol: eager or compiled, on the CPU or a GPU."""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from m2s.bench.weights import Nets
from m2s.bench.work import random_inputs
from m2s_runtime import ddim
from m2s_runtime.blend import Blend
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import Arrays, Floats, finite_outputs, first_line, fitted_inputs
from m2s_runtime.engines.cuda import cuda_index
from m2s_runtime.engines.onnx import OnnxEngine
from m2s_runtime.errors import EngineError
from m2s_runtime.machine import usable_cores

ATOL: Final = 1e-4
RTOL: Final = 1e-3
CODES_AGREE: Final = 0.999
"""Share of latent cells with the same code; where two codes are equally near, rounding decides."""


class TorchEngine:
    """Modules in eval mode, float32, without TF32."""

    def __init__(
        self, nets: Nets, bundle: Bundle, mode: Literal["eager", "compile"], device: str, threads: int
    ) -> None:
        """Move the modules to the device and, if asked, compile them for batches of one.

        Raises:
            UsageProblem: a device that cannot mean anything.
            EngineError: no such GPU, or the compiler cannot be had.
        """
        index = cuda_index(device)
        if index is not None and index >= torch.cuda.device_count():
            raise EngineError(
                f"{device}: this PyTorch sees {torch.cuda.device_count()} NVIDIA GPU(s); check "
                "nvidia-smi, and install a build of PyTorch for CUDA"
            )
        self.name: Final = f"torch-{mode}"
        self.device: Final = "cpu" if index is None else f"cuda:{index}"
        self.threads: Final = threads or usable_cores()
        self.description: Final = f"PyTorch {torch.__version__} {mode} on {self.device}, {self.threads} thread(s)"
        # PyTorch's own default lets convolutions use TF32, with which no graph would agree to 1e-4.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # shapes are fixed
        self._specs = bundle.manifest.graphs
        self._blend = Blend.of(bundle.manifest)
        self._modules: dict[str, Any] = {g: m.to(self.device) for g, m in nets.modules().items()}
        if mode == "compile":
            self._compile()

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`; the copy to the host waits for the device."""
        spec = self._specs[graph]
        fitted = fitted_inputs(graph, spec, inputs)
        with torch.inference_mode(), torch_threads(self.threads):
            tensors = {name: torch.from_numpy(array).to(self.device) for name, array in fitted.items()}
            answer = self._modules[graph](**tensors).cpu().numpy()
        return finite_outputs(graph, {spec.outputs[0].name: answer})

    def _compile(self) -> None:
        self._modules = {g: torch.compile(m, dynamic=False) for g, m in self._modules.items()}
        for graph, spec in self._specs.items():
            try:
                self.run(graph, random_inputs(spec, 1))
            except Exception as error:  # the compiler's errors are many
                raise EngineError(
                    f"graph {graph} does not compile ({first_line(error)}); install a C++ compiler (g++)"
                ) from error


class TorchLoopEngine(TorchEngine):
    """The same for a GPU: its sampling loop stays there, as in anybody's script."""

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[np.float64]) -> Floats:
        """See `m2s_runtime.engines.base.Generates`."""
        encode, denoise, decode = (self._modules[graph] for graph in ("encode", "denoise", "decode"))
        with torch.inference_mode(), torch_threads(self.threads):
            z = torch.from_numpy(noise).to(self.device)
            zc = encode(csdg=torch.from_numpy(csdg).to(self.device)).expand_as(z).contiguous()
            for level, (a, b) in zip(levels, ddim.coefficients(levels, bars), strict=True):
                z = a * z + b * denoise(z=z, zc=zc, t=torch.full((len(z),), level, device=self.device))
            sdg = decode(z=z).cpu().numpy()
        return self._blend.mixed(finite_outputs("decode", {"sdg": sdg})["sdg"], csdg)


@contextlib.contextmanager
def torch_threads(threads: int) -> Generator[None]:
    """PyTorch uses so many threads inside; they are of the whole process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def verify(engine: TorchEngine, bundle: Bundle) -> None:
    """Compare the modules with the bundle's own graphs, run by ONNX Runtime in float32 on the CPU.

    Raises:
        EngineError: one differs by more than 1e-4 + 1e-3 relative, or a code in a thousand of `encode`.
    """
    exact = OnnxEngine(bundle, "cpu", engine.threads)
    for graph, spec in bundle.manifest.graphs.items():
        for seed in range(2):
            inputs = random_inputs(spec, 1, seed)
            (wanted,), (got,) = exact.run(graph, inputs).values(), engine.run(graph, inputs).values()
            close = np.isclose(got, wanted, RTOL, ATOL)
            if not (close.all(axis=1).mean() >= CODES_AGREE if graph == "encode" else close.all()):
                raise EngineError(
                    f"bundle {bundle.name}, graph {graph}: PyTorch differs from it by {abs(got - wanted).max():.2g}; "
                    "the weights could not be told from the graph: give the training run that it was exported from "
                    "with --run"
                )
