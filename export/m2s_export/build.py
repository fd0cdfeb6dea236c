"""One ONNX graph to one TensorRT engine, in memory.

The same calls for both modules, `tensorrt` and `tensorrt_rtx`. Networks are strongly typed: the precision is that of
the graph, and TF32 stays off. `tensorrt_rtx` needs no card to build for one; but without that card an engine cannot be
deserialised again, and what is known of it is what the builder told.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from m2s_runtime.errors import BundleError, EngineError
from m2s_runtime.manifest import BatchProfile, GraphSpec, TensorSpec

_DTYPES: Final = {"FLOAT": "float32", "INT64": "int64"}
_LAYERS: Final = "Layers:\n"
_SCRATCH: Final = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True)
class Built:
    """A serialised engine.

    Attributes:
        engine: its bytes.
        layers: a line for each layer of the engine, with inputs, outputs, shapes and dtypes; where the builder keeps
            that to itself, the names of the network's layers.
        seconds: what it took.
        scratch_bytes: GPU memory for activations at the largest batch, beside weights; None where not told.
        timing: timing cache for the next build; empty where the module has none.
    """

    engine: bytes
    layers: tuple[str, ...]
    seconds: float
    scratch_bytes: int | None
    timing: bytes


def build(
    where: str,
    model: bytes,
    spec: GraphSpec,
    profiles: Sequence[BatchProfile],
    *,
    module: ModuleType,
    target: str | None = None,
    timing: bytes = b"",
) -> Built:
    """Builds the engine of one graph.

    Args:
        where: file of the graph, for messages.
        model: serialised ONNX, verified.
        spec: signature that it must have.
        profiles: batch sizes, one optimisation profile each, in this order.
        module: `tensorrt` or `tensorrt_rtx`.
        target: architecture such as `sm89`, `tensorrt_rtx` only; None builds for the card that is here.
        timing: timing cache of an earlier build.

    Raises:
        BundleError: TensorRT cannot parse it, or it has another signature.
        EngineError: the build failed.
    """
    began, log = time.monotonic(), _log(module)
    builder = module.Builder(log)
    network = builder.create_network(_strongly_typed(module))
    parser = module.OnnxParser(network, log)
    if not parser.parse(model):
        told = parser.get_error(0).desc() if parser.num_errors else log.last
        raise BundleError(f"{where}: {module.__name__} cannot parse it ({_short(told)}); export it anew")
    wrong = network_faults(network, spec)
    if wrong:
        raise BundleError(f"{where}: {'; '.join(wrong)}; export the bundle anew")
    config = _config(module, builder, spec, profiles, target)
    cache = _timing(module, config, timing)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(
            f"{where}: {module.__name__} could not build it ({_short(log.last)}); try --precision float32"
        )
    layers = log.layers or tuple(str(network.get_layer(n).name) for n in range(network.num_layers))
    kept = bytes(config.get_timing_cache().serialize()) if cache is not None else b""
    return Built(bytes(engine), layers, time.monotonic() - began, log.scratch, kept)


def network_faults(network: Any, spec: GraphSpec) -> list[str]:  # noqa: ANN401 - TensorRT has no type information
    """Where a parsed `INetworkDefinition` differs from the signature of its graph; empty when nowhere."""
    inputs = [network.get_input(n) for n in range(network.num_inputs)]
    outputs = [network.get_output(n) for n in range(network.num_outputs)]
    return [*_faults("inputs", inputs, spec.inputs), *_faults("outputs", outputs, spec.outputs)]


def _faults(kind: str, tensors: Sequence[Any], specs: tuple[TensorSpec, ...]) -> list[str]:
    found = [(t.name, _DTYPES.get(str(t.dtype).rpartition(".")[2]), tuple(t.shape)[1:]) for t in tensors]
    wanted = [(t.name, t.dtype, t.shape[1:]) for t in specs]
    return [] if found == wanted else [f"its {kind} are {found}, not {wanted}"]


def _strongly_typed(module: ModuleType) -> int:
    """From TensorRT 11 on there is no other kind, and the flag may go."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _config(
    module: ModuleType,
    builder: Any,  # noqa: ANN401
    spec: GraphSpec,
    profiles: Sequence[BatchProfile],
    target: str | None,
) -> Any:  # noqa: ANN401
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED  # names of layers, which the runtime then ignores
    if hasattr(module.BuilderFlag, "TF32"):  # would cost three decimal digits on the distances
        config.clear_flag(module.BuilderFlag.TF32)
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # else the sampling loop could not be recorded
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            shapes = [(rows, *tensor.shape[1:]) for rows in (sizes.min, sizes.opt, sizes.max)]
            profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{module.__name__} refuses batches of {sizes.min} to {sizes.max}: shorten the profiles")
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(module.ComputeCapability, target.upper()), 0)
    return config


def _timing(module: ModuleType, config: Any, timing: bytes) -> Any:  # noqa: ANN401
    """A timing cache in the configuration, or None: `tensorrt_rtx` measures nothing while it builds."""
    if module.__name__ == "tensorrt_rtx":
        return None
    cache = config.create_timing_cache(timing)
    config.set_timing_cache(cache, False)
    return cache


def _log(module: ModuleType) -> Any:  # noqa: ANN401
    """Keeps what of the builder's report matters here, in place of printing it."""

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.last = ""
            self.layers: tuple[str, ...] = ()
            self.scratch: int | None = None

        def log(self, severity: object, message: str) -> None:
            if severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR):
                self.last = message
            elif message.startswith(_LAYERS):
                self.layers = tuple(message.removeprefix(_LAYERS).strip().splitlines())
            elif told := _SCRATCH.search(message):
                self.scratch = int(told[1])

    return Log()


def _short(told: str) -> str:
    return (told.strip().splitlines() or ["no reason given"])[0][:300]
