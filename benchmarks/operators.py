"""Which operators the CPU time of the networks goes to, as exported and as the runtime rewrites them.

    python benchmarks/operators.py --model models/compact --rounds 10 --out operators.md

CPU time, the least of all rounds; the variants take turns in every round, so that other work on the machine meets them
alike. GFLOP are those of the graph as exported. Operators are timed by the clock: on a machine that does nothing else.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from m2s.bench.work import count_graph, random_inputs
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines.base import graph_bytes
from m2s_runtime.engines.openvino import shared_core
from m2s_runtime.engines.winograd import with_fewer_products

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[], object]

SHOWN_MS = 0.5
"""Operators that take less are summed up."""


def onnx_session(model: bytes, threads: int, profile: str = "") -> Any:  # noqa: ANN401 - has no type information
    """An ONNX Runtime session on the CPU, with the profiler on where a prefix for its file is given."""
    ort = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_run(model: bytes, inputs: Arrays, threads: int) -> Run:
    """One inference of a model compiled for the shapes of `inputs`."""
    core = shared_core()
    read = core.read_model(model)
    read.reshape({name: list(array.shape) for name, array in inputs.items()})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True)


def least(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """CPU milliseconds of each, the least of `rounds` after one that does not count."""
    best = dict.fromkeys(runs, np.inf)
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number:
                best[name] = min(best[name], 1e3 * (time.process_time() - began))
    return best


def peak_gflops(threads: int, rounds: int) -> float:
    """GFLOP a CPU second of a float32 matrix product of 1024 x 1024 in NumPy."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    # With more threads CPU time counts them all, and so does this figure.
    return 2 * 1024**3 / 1e6 / least({"product": lambda: a @ a}, max(rounds, 3))["product"] * max(threads, 1)


def operators(model: bytes, inputs: Arrays, threads: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each type of operator in ONNX Runtime, the least of all rounds, the most expensive first."""
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(model, threads, str(Path(folder) / "profile"))
        for _ in range(rounds + 1):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = defaultdict[tuple[str, str], list[float]](list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    summed = defaultdict[str, float](float)
    for (operator, _), times in nodes.items():
        summed[operator] += min(times)
    return dict(sorted(summed.items(), key=lambda pair: -pair[1]))


def table(gflop: Mapping[str, float], found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a line a graph."""
    names = list(next(iter(found.values())))
    lines = [f"| graph | GFLOP | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    lines += [f"| {g} | {gflop[g]:.2f} | {' | '.join(f'{t[n]:.1f}' for n in names)} |" for g, t in found.items()]
    total = " | ".join(f"{sum(t[n] for t in found.values()):.1f}" for n in names)
    return "\n".join([*lines, f"| all | {sum(gflop.values()):.2f} | {total} |"])


def operator_text(found: Mapping[str, float]) -> str:
    """`Conv 41.2, MatMul 18.0, other 1.2`."""
    shown = {name: took for name, took in found.items() if took >= SHOWN_MS}
    rest = sum(found.values()) - sum(shown.values())
    return ", ".join(f"{name} {took:.1f}" for name, took in [*shown.items(), ("other", rest)])


@click.command()
@click.option("--model", help="Bundle folder or name.  [default: the installed one]")
@click.option("--graph", "graphs", multiple=True, default=("sr", "encode", "denoise", "decode"), show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Markdown file.")
def main(model: str | None, graphs: tuple[str, ...], rounds: int, threads: int, out: Path | None) -> None:
    """Measure the graphs of a bundle, one row at a time, in OpenVINO too where that is installed."""
    bundle = load_bundle(model)
    gflop, found, lines = dict[str, float](), dict[str, dict[str, float]](), list[str]()
    for graph in graphs:
        plain, inputs = graph_bytes(bundle, graph)[1], random_inputs(bundle.manifest.graphs[graph], 1)
        models = {"as exported": plain, "rewritten": with_fewer_products(plain)}
        runs = dict[str, Run]()
        for name, data in models.items():
            session = onnx_session(data, threads)
            runs[f"ONNX Runtime {name}, ms"] = lambda session=session, inputs=inputs: session.run(None, dict(inputs))
            if find_spec("openvino"):
                runs[f"OpenVINO {name}, ms"] = openvino_run(data, inputs, threads)
        gflop[graph], found[graph] = count_graph(plain, inputs).flops / 1e9, least(runs, rounds)
        lines += [f"- {graph}, {n}: {operator_text(operators(d, inputs, threads, rounds))}" for n, d in models.items()]
    peak = f"matrix product: {peak_gflops(threads, rounds):.0f} GFLOP a CPU second"
    text = "\n".join([peak, "", table(gflop, found), "", "ms of each operator in ONNX Runtime:", "", *lines])
    click.echo(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
