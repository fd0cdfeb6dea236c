"""Whether one engine does what another does: tensor by tensor; `surfaces` goes on to the meshes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.engines import Engine
from m2s_runtime.errors import BundleError, NotFinite
from m2s_runtime.manifest import GraphParity

ATOL: Final = 1e-4
RTOL: Final = 1e-3
RELATIVE: Final = 1e-2
"""Largest relative L2 deviation of a graph in float16, where single numbers may stray further."""

CODES_AGREE: Final = 0.999
"""Least share of latent cells that get the same code: argmin jumps, so closeness is the wrong question there."""

SURFACE_P95_MM: Final = 0.1
BATCHES: Final = (1, 2)

Sample = Mapping[str, Any]
"""Inputs by name, as arrays or tensors of one batch size."""


class ParityError(BundleError):
    """An exported graph deviates from what it was made from."""


def check_graph(
    graph: str,
    reference: Engine,
    exported: Engine,
    samples: Sequence[Sample],
    batches: Sequence[int] = BATCHES,
    precision: str = "float32",
) -> GraphParity:
    """Compares one graph on samples of any batch size, whose rows are repeated or cut to each size in `batches`.

    The gate is `ATOL` + `RTOL` for float32, `RELATIVE` for float16, and `CODES_AGREE` for the codes of either. Of
    bfloat16 only the surfaces are judged: its codes flip by the hundred, mostly between near-equal ones.

    Raises:
        ParityError: beyond the gate, or a number that is none.
    """
    worst, agree = 0.0, 1.0
    for sample in samples:
        for batch in batches:
            inputs = {name: _rows(array, batch) for name, array in sample.items()}
            found, wanted = _output(exported, graph, inputs), _output(reference, graph, inputs)
            worst = max(worst, float(np.abs(found - wanted).max()))
            if graph == "encode":
                agree = min(agree, float(_close(found, wanted).all(axis=1).mean()))
            elif fault := _fault(found, wanted, precision):
                raise ParityError(
                    f"graph {graph} on {exported.description} deviates from {reference.description} by up to "
                    f"{worst:.3g} at batch {batch} ({fault})"
                )
    if agree < CODES_AGREE and precision != "bfloat16":
        raise ParityError(
            f"graph {graph} on {exported.description}: only {agree:.4%} of the codes are those of "
            f"{reference.description}, not {CODES_AGREE:.1%}"
        )
    return GraphParity(worst, tuple(batches), agree if graph == "encode" else None)


def _fault(found: NDArray[Any], wanted: NDArray[Any], precision: str) -> str:
    """Where a result is beyond its gate; empty when it is not."""
    if precision == "float32":
        off = np.count_nonzero(~_close(found, wanted))
        return f"{off} of {found.size} numbers beyond {ATOL} + {RTOL:.0e} relative" if off else ""
    relative = float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12))
    beyond = precision == "float16" and relative > RELATIVE
    return f"relative L2 {relative:.2g}, not {RELATIVE}" if beyond else ""


def _close(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.bool_]:
    return np.abs(found - wanted) <= ATOL + RTOL * np.abs(wanted)


def _rows(array: object, batch: int) -> NDArray[Any]:
    rows = np.asarray(array)
    return rows[np.arange(batch) % len(rows)]


def _output(engine: Engine, graph: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    try:
        return next(iter(engine.run(graph, inputs).values()))
    except NotFinite as error:
        raise ParityError(f"graph {graph} on {engine.description}: {error}") from error
