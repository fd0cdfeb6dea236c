"""`m2s-export --check`: every parity gate of a bundle once more, on this machine, with the engines that are here."""

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from m2s_export.judge import Judge, candidates
from m2s_export.parity import ATOL, CODES_AGREE, RELATIVE, RTOL, SURFACE_P95_MM, ParityError
from m2s_export.references import NumpyEngine, TorchEngine
from m2s_export.surfaces import as_drawn
from m2s_runtime.atomic import write_text
from m2s_runtime.bundle import MANIFEST, Bundle
from m2s_runtime.engines import Engine, open_engine
from m2s_runtime.errors import EngineError, UsageProblem
from m2s_runtime.manifest import GraphParity, Parity
from m2s_runtime.strict_json import dumps

_LOG: Final = logging.getLogger(__name__)
_GATES: Final = {"float32": f"{ATOL:g} + {RTOL:g} relative", "float16": f"{RELATIVE:g} relative L2"}
_CODES: Final = f"codes {CODES_AGREE:.1%}"
_SURFACES: Final = f"p95 {SURFACE_P95_MM:g} mm"


@dataclass(frozen=True)
class Finding:
    """One gate: what was looked at, on what, what was found, what is allowed; `passed` None where nothing is asked."""

    what: str
    engine: str
    found: str
    gate: str
    passed: bool | None


@dataclass(frozen=True)
class Verdict:
    """All findings, what they were compared with, and the parity of the engines that passed, by `engine-precision`."""

    reference: str
    findings: tuple[Finding, ...]
    proven: dict[str, Parity]

    @property
    def failed(self) -> int:
        """How many gates do not hold."""
        return sum(finding.passed is False for finding in self.findings)


def check_bundle(bundle: Bundle, run: Path | None, cases: int, engine_dir: Path | None = None) -> Verdict:
    """Judges every engine that is here.

    Args:
        bundle: verified, which is the first finding.
        run: training run that it was exported from, for the comparison with PyTorch; without it the graphs are
            evaluated in NumPy, which finds a faulty engine but not a faulty export.
        cases: procedural hearts for the comparison of surfaces.
        engine_dir: cache of TensorRT engines.

    Raises:
        UsageProblem: the run is of other networks than the bundle.
        EngineError: what the reference needs is not installed.
    """
    reference = _torch(bundle, run) if run else NumpyEngine(bundle)
    _LOG.info("comparing with %s", reference.description)
    judge, proven = Judge(bundle, reference, cases), dict[str, Parity]()
    files = Finding("files", "", f"{len(bundle.manifest.files)} as listed", "size and sha256", passed=True)
    findings = [files, *_recorded(bundle)]
    for name, precision, engine in _engines(bundle, engine_dir):
        _LOG.info("judging %s", engine.description)
        judged, parity = _judged(judge, engine, precision)
        findings += judged
        if parity is not None:
            proven[f"{name}-{precision}"] = parity
    return Verdict(reference.description, tuple(findings), proven)


def record(bundle: Bundle, verdict: Verdict) -> None:
    """Puts the engines that passed into the manifest, in place of those recorded before.

    Raises:
        OutputError: it cannot be written.
    """
    proven = {name: parity for name, parity in verdict.proven.items() if name != "onnx-float32"}
    write_text(bundle.path / MANIFEST, dumps(replace(bundle.manifest, proven=proven)))


def _recorded(bundle: Bundle) -> Iterator[Finding]:
    """What was measured when the bundle was exported."""
    manifest = bundle.manifest
    told = {"": manifest.parity} | {f" {n}": f.parity for n, f in manifest.flavours.items() if f.parity}
    for named, parity in told.items():
        worst = max((graph.max_abs for graph in parity.graphs.values()), default=0.0)
        codes = parity.graphs["encode"].codes_agree if "encode" in parity.graphs else None
        found = f"{worst:.2g}" if codes is None else f"{worst:.2g}, codes {codes:.3%}"
        passed = codes is not None and codes >= CODES_AGREE
        yield Finding(f"recorded{named}", f"{parity.engine}, PyTorch {parity.torch}", found, _CODES, passed)


def _torch(bundle: Bundle, run: Path) -> Engine:
    from m2s_export.graphs import graphs
    from m2s_export.precision import rounded
    from m2s_export.training_run import read_training_run

    nets, manifest = read_training_run(run).nets, bundle.manifest
    if nets.preset.name != manifest.preset or nets.latent_shape != manifest.latent_shape:
        raise UsageProblem(
            f"{run}: preset {nets.preset.name}, but {bundle.path} is of preset {manifest.preset}; give the run that "
            "the bundle was exported from"
        )
    return TorchEngine(graphs(rounded(nets) if manifest.stored_weights == "float16" else nets), bundle)


def _engines(bundle: Bundle, engine_dir: Path | None) -> Iterator[tuple[str, str, Engine]]:
    """Name, precision and engine of everything that can be had here; what cannot, and why, is said."""
    for name, precision in candidates(bundle):
        on_gpu = name == "trt" or (name == "onnx" and importlib.util.find_spec("cupy"))
        for device in ("cpu",) * (name != "trt") + ("cuda:0",) * bool(on_gpu):
            try:
                opened = open_engine(as_drawn(bundle), name, device, precision=precision, engine_dir=engine_dir)
            except EngineError as error:
                _LOG.info("not compared: %s %s on %s: %s", name, precision, device, error)
            else:
                yield name, precision, opened


def _judged(judge: Judge, engine: Engine, precision: str) -> tuple[list[Finding], Parity | None]:
    """A finding for each graph and one for the surfaces; the parity where all passed.

    bfloat16 has no gate but the surfaces, so without hearts it does not pass.
    """
    graphs, findings = dict[str, GraphParity](), list[Finding]()
    gate = _GATES.get(precision, "surfaces only")
    for graph in judge.bundle.manifest.graphs:
        allowed = _CODES if graph == "encode" and precision in _GATES else gate
        try:
            graphs[graph] = found = judge.graph(graph, engine, precision)
        except ParityError as error:
            findings.append(Finding(graph, engine.description, str(error), allowed, passed=False))
        else:
            codes = "" if found.codes_agree is None else f", codes {found.codes_agree:.3%}"
            passed = True if precision in _GATES else None
            findings.append(Finding(graph, engine.description, f"{found.max_abs:.2g}{codes}", allowed, passed))
    p95 = None
    try:
        p95 = judge.surface_p95(engine)
    except ParityError as error:
        findings.append(Finding("surfaces", engine.description, str(error), _SURFACES, passed=False))
    if p95 is not None:
        found = f"p95 {p95:.2g} mm, {judge.cases} hearts"
        findings.append(Finding("surfaces", engine.description, found, _SURFACES, passed=True))
    good = all(f.passed is not False for f in findings) and any(f.passed for f in findings)
    parity = Parity(engine.description, judge.reference.description, graphs, p95, judge.cases)
    return findings, parity if good else None
