"""What the pipeline needs of an engine, and the checks that every engine shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.onnx_file import keeps_data_elsewhere
from m2s_runtime.errors import BundleError, EmptyWall, NotFinite
from m2s_runtime.manifest import FLAVOURS, GraphSpec

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]


class Engine(Protocol):
    """Runs the graphs of one bundle.

    Attributes:
        name: `onnx`, `openvino` or `trt`.
        device: what was really bound: `cpu` or `cuda:N`.
        threads: cores per inference.
        description: one line for people: engine, version and precision, then ` on `, device, threads.
    """

    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> str: ...  # noqa: D102
    @property
    def threads(self) -> int: ...  # noqa: D102

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Runs one graph of the bundle.

        Args:
            graph: one of `m2s_runtime.manifest.GRAPHS`.
            inputs: by name, of the dtypes and shapes in the manifest, all of one batch size. `mc` of a published-style
                bundle takes no `pool` and leaves it aside.

        Returns:
            Outputs by name.

        Raises:
            ValueError: inputs that do not fit the signature.
            NotFinite: NaN or infinity in an output.
        """
        ...


@runtime_checkable
class Generates(Protocol):
    """An engine that keeps everything from the C-SDG to the decoded SDG on its device."""

    def generate(self, csdg: Floats, noise: Floats, levels: Sequence[int], bars: NDArray[np.float64]) -> Floats:
        """Encode, denoise along `levels`, decode, blend as the bundle says; what the host's loop gives, up to rounding.

        Args:
            csdg: (1 or N, 1, X, Y, Z) mm; one condition is shared by all samples.
            noise: (N, D, X', Y', Z') to start from.
            levels: from `ddim.timesteps`.
            bars: from `ddim.alpha_bars`.

        Returns:
            (N, 1, X, Y, Z) mm.

        Raises:
            NotFinite: NaN or infinity in what came out.
        """
        ...


@dataclass(frozen=True)
class Drawn:
    """What an engine that `Draws` makes of H stacks, with M samples.

    Attributes:
        walls: (H, X, Y, Z) float32, probability of wall on the grid.
        sdgs: (M, X, Y, Z) float32 mm; zeros where the stack is at fault.
        states: (H, 2) int32: 1 where there is wall; 1 where super-resolution returned NaN or infinity.
    """

    walls: Floats
    sdgs: Floats
    states: NDArray[np.int32]

    @property
    def faulty(self) -> NDArray[np.bool_]:
        """(H,) which stacks `check` would refuse."""
        return (self.states[:, 0] == 0) | (self.states[:, 1] != 0)

    def check(self) -> None:
        """Refuse the first stack that is at fault.

        Raises:
            NotFinite: super-resolution returned NaN or infinity.
            EmptyWall: it left nothing.
        """
        for wall, spoilt in self.states:
            if spoilt:
                raise _not_finite("sr", "prob")
            if not wall:
                raise EmptyWall.after_networks()


class GeneratingEngine(Engine, Generates, Protocol):
    """Both."""


@runtime_checkable
class Draws(Protocol):
    """An engine that keeps everything from super-resolution to the decoded SDG on its device, the C-SDG too."""

    def draw(
        self,
        slices: Floats,
        shifts: Floats,
        steps_mm: NDArray[np.float64],
        noise: Floats,
        levels: Sequence[int],
        bars: NDArray[np.float64],
    ) -> Drawn:
        """Super-resolve, measure the C-SDG, encode, denoise along `levels`, decode.

        One stack without wall, or with NaN, is told in `Drawn.states` and leaves the others as they are.

        Args:
            slices: (1 or M, 1, 128, 128, 12), what the graph `sr` takes; one stack is shared by all samples.
            shifts: (as many, 12, 2) mm, centred.
            steps_mm: (as many,) effective distances between the slices.
            noise: (M, D, X', Y', Z') to start from.
            levels: from `ddim.timesteps`.
            bars: from `ddim.alpha_bars`.

        Raises:
            NotFinite: NaN or infinity in what was decoded.
        """
        ...


def graph_bytes(bundle: Bundle, graph: str, precision: str = "float32") -> tuple[str, bytes]:
    """Where a graph comes from, for messages, and its verified bytes, which name no data outside themselves.

    Raises:
        BundleError: no graph of this precision in the bundle, altered, or with weights outside the file.
    """
    manifest = bundle.manifest
    if precision in FLAVOURS and precision not in manifest.flavours:
        raise BundleError(
            f"{bundle.path}: holds no {precision} graphs; export it anew with --precision {precision}, or take float32"
        )
    file = manifest.graph_file(graph, precision)
    model = bundle.read(file)
    try:
        external = keeps_data_elsewhere(model)
    except ValueError as error:
        raise BundleError(f"{bundle.path / file}: not an ONNX file ({error}); export the bundle anew") from error
    if external:
        raise BundleError(f"{bundle.path / file}: names weights outside the file; export it without external data")
    return str(bundle.path / file), model


def first_line(error: Exception) -> str:
    """What a library's error says, fit for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def fitted_inputs(graph: str, spec: GraphSpec, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inputs that the graph takes, checked against its signature and made contiguous.

    Raises:
        ValueError: one is missing, or of another dtype, shape or batch size.
    """
    fitted: Arrays = {}
    batch: int | None = None
    for tensor in spec.inputs:
        if tensor.name not in inputs:
            raise ValueError(f"graph {graph}: input {tensor.name} is missing")
        array = np.ascontiguousarray(inputs[tensor.name])
        batch = len(array) if batch is None and array.ndim else batch
        if array.dtype != tensor.dtype or array.shape != (batch, *tensor.shape[1:]) or not batch:
            raise ValueError(
                f"graph {graph}: input {tensor.name} is {array.dtype}{array.shape}, "
                f"not {tensor.dtype}{(batch or 'batch', *tensor.shape[1:])}"
            )
        fitted[tensor.name] = array
    return fitted


def finite_outputs(graph: str, outputs: Arrays) -> Arrays:
    """The outputs, when every number in them is one.

    Raises:
        NotFinite: else.
    """
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise _not_finite(graph, name)
    return outputs


def _not_finite(graph: str, name: str) -> NotFinite:
    return NotFinite(f"network {graph} returned NaN or infinity in {name}: try --device cpu, and report the case")
