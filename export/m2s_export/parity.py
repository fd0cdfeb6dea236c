"""Whether the exported graphs do what the PyTorch modules do: tensor by tensor, and surface by surface."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2s_export.graphs import Graph
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines import Engine
from m2s_runtime.engines.base import Arrays, finite_outputs, fitted_inputs
from m2s_runtime.errors import BundleError, NotFinite
from m2s_runtime.manifest import GraphParity

ATOL: Final = 1e-4
RTOL: Final = 1e-3
CODES_AGREE: Final = 0.999
"""Least share of latent cells that get the same code: argmin jumps, so closeness is the wrong question there."""

SURFACE_P95_MM: Final = 0.1
BATCHES: Final = (1, 2)

Inputs = dict[str, Tensor]


class ParityError(BundleError):
    """An exported graph deviates from its module; nothing was published."""


class TorchEngine:
    """The modules behind the runtime's engine protocol, so that one pipeline runs on either."""

    def __init__(self, graphs: Mapping[str, Graph], bundle: Bundle) -> None:
        self.name, self.device, self.threads = "torch", "cpu", torch.get_num_threads()
        self.description = f"torch {torch.__version__} on cpu, {self.threads} thread(s)"
        self._modules = {name: graph.module.eval() for name, graph in graphs.items()}
        self._specs = bundle.manifest.graphs

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """See `m2s_runtime.engines.base.Engine.run`."""
        spec = self._specs[graph]
        tensors = {name: torch.from_numpy(a) for name, a in fitted_inputs(graph, spec, inputs).items()}
        with torch.inference_mode():
            answer = self._modules[graph](**tensors)
        return finite_outputs(graph, {spec.outputs[0].name: answer.numpy()})


def check_graph(
    graph: str,
    reference: Engine,
    exported: Engine,
    samples: Sequence[Inputs],
    batches: Sequence[int] = BATCHES,
) -> GraphParity:
    """Compares one graph on samples of any batch size, whose rows are repeated or cut to each size in `batches`.

    Raises:
        ParityError: beyond `ATOL` + `RTOL`, too few codes agree, or a number that is none.
    """
    worst, agree = 0.0, 1.0
    for sample in samples:
        for batch in batches:
            inputs = {name: _rows(tensor, batch) for name, tensor in sample.items()}
            found, wanted = _output(exported, graph, inputs), _output(reference, graph, inputs)
            worst = max(worst, float(np.abs(found - wanted).max()))
            same = np.abs(found - wanted) <= ATOL + RTOL * np.abs(wanted)
            if graph == "encode":
                agree = min(agree, float(same.all(axis=1).mean()))
            elif not same.all():
                raise ParityError(
                    f"graph {graph} deviates from PyTorch by up to {worst:.3g} at batch {batch} "
                    f"({np.count_nonzero(~same)} of {same.size} numbers beyond {ATOL} + {RTOL:.0e} relative)"
                )
    if agree < CODES_AGREE:
        raise ParityError(f"graph {graph}: only {agree:.4%} of the codes are PyTorch's, not {CODES_AGREE:.1%}")
    return GraphParity(worst, tuple(batches), agree if graph == "encode" else None)


def _rows(tensor: Tensor, batch: int) -> NDArray[Any]:
    return tensor[torch.arange(batch) % len(tensor)].numpy()


def _output(engine: Engine, graph: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    try:
        return next(iter(engine.run(graph, inputs).values()))
    except NotFinite as error:
        raise ParityError(f"graph {graph} on {engine.description}: {error}") from error
