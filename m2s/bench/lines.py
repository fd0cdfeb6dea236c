"""The ways of reconstructing a heart that can be compared, each from file to files."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from m2s.bench.timed import Timed, timed
from m2s_runtime.bundle import Bundle, load_bundle
from m2s_runtime.ddim import DEFAULT_STEPS
from m2s_runtime.engines import Engine, open_engine
from m2s_runtime.errors import CaseError, EngineError, UsageProblem
from m2s_runtime.inputs import Source
from m2s_runtime.options import PRECISIONS, Options
from m2s_runtime.task import Task, TaskSpec

Kind = Literal["auto", "onnx", "openvino", "trt", "torch-eager", "torch-compile", "reference"]

RUNTIME: Final = ("auto", "onnx", "openvino", "trt")
"""Lines that `m2s-run` has, by the name of its `--engine`."""

TORCH: Final = ("torch-eager", "torch-compile", "reference")
"""Lines that need PyTorch."""

_SPEC: Final = re.compile(r"(?P<kind>[a-z-]+)(?::(?P<what>[a-z0-9]+))?(?:@(?P<device>[a-z0-9:]+))?")


@dataclass(frozen=True)
class LineSpec:
    """One word of `--compare`, such as `onnx`, `openvino:bfloat16`, `onnx@cuda`, `torch-eager@cuda:1`, `reference:10`.

    Attributes:
        name: as typed.
        kind: what does it.
        precision: of the networks.
        device: as in `m2s-run --device`.
        steps: of a `reference`; None elsewhere.
    """

    name: str
    kind: Kind
    precision: str = "auto"
    device: str = "auto"
    steps: int | None = None


@dataclass(frozen=True)
class Setup:
    """What all lines share; picklable."""

    model: str | None
    labels: str
    threads: int
    steps: int | None
    run: Path | None
    engine_dir: Path | None
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Heart:
    """One file on one line: seconds a case of it; `failure` is code and message when there are none."""

    wall: float = 0.0
    cpu: float = 0.0
    networks: float = 0.0
    stages: dict[str, float] | None = None
    failure: tuple[str, str] | None = None


class Line(Protocol):
    """A line that is open.

    Attributes:
        spec: what it was opened for.
        engine: its networks.
        steps: DDIM steps of a heart.
    """

    @property
    def spec(self) -> LineSpec: ...  # noqa: D102
    @property
    def engine(self) -> Timed: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102

    def heart(self, source: Source) -> Heart:
        """Reconstruct one file, files included."""
        ...


@dataclass(frozen=True)
class Facts:
    """What an open line was bound to; fields as in `result.LineResult`."""

    name: str
    description: str
    device: str
    precision: str
    threads: int
    steps: int


def facts(line: Line) -> Facts:
    """What a line was bound to; `auto` finds its precision itself and tells it in its description.

    Why it took this engine and not another stays out of results: that names folders.
    """
    engine, precision = line.engine, line.spec.precision
    description = engine.description.partition("; auto: ")[0]
    if precision == "auto":
        bound = description.partition(" on ")[0].split()
        precision = next((word for word in bound if word in ("float16", "bfloat16")), "float32")
    return Facts(line.spec.name, description, engine.device, precision, engine.threads, line.steps)


def parse(text: str) -> tuple[LineSpec, ...]:
    """The lines named in `--compare`.

    Raises:
        UsageProblem: a word that names none, or one twice.
    """
    specs = tuple(_parsed(word.strip()) for word in text.split(",") if word.strip())
    if not specs or len({spec.name for spec in specs}) < len(specs):
        raise UsageProblem(f"--compare {text}: name lines, each once, with commas between")
    return specs


def expanded(specs: Sequence[LineSpec], bundle_steps: int) -> tuple[LineSpec, ...]:
    """Plain `reference` as the paper's ten steps, and once more with the bundle's own number."""
    made: dict[str, LineSpec] = {}
    for spec in specs:
        plain = spec.kind == "reference" and spec.steps is None
        for steps in (DEFAULT_STEPS, bundle_steps) if plain else (spec.steps,):
            name = f"reference:{steps}" + spec.name.removeprefix("reference") if plain else spec.name
            made.setdefault(name, replace(spec, name=name, steps=steps))
    return tuple(made.values())


def open_line(spec: LineSpec, setup: Setup, out: Path, *, verify: bool = True) -> Line:
    """Load bundle and networks; results of its hearts go to `out`.

    Raises:
        EngineError: it cannot be had; the message says what would help.
        UsageProblem: precision, device or preset that do not go together.
        BundleError: the bundle is missing or altered.
    """
    out.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(setup.model)
    if spec.kind in RUNTIME:
        engine = open_engine(
            bundle, spec.kind, spec.device, setup.threads, precision=spec.precision, engine_dir=setup.engine_dir
        )
        return _RuntimeLine(spec, setup, bundle, engine, out)
    mode = "compile" if spec.kind == "torch-compile" else "eager"
    engine = _torch_engine(spec, setup, bundle, mode, verify=verify)
    if spec.kind == "reference":
        return _ReferenceLine(spec, setup, bundle, engine, out)
    return _RuntimeLine(spec, setup, bundle, engine, out)


class _RuntimeLine:
    """What a process of `m2s-run` does for each file, with these networks."""

    def __init__(self, spec: LineSpec, setup: Setup, bundle: Bundle, engine: Engine, out: Path) -> None:
        self.spec, self.engine = spec, timed(engine)
        self.steps = setup.steps or bundle.manifest.steps
        options = Options(labels=setup.labels, steps=setup.steps, overwrite=True)
        task = TaskSpec(out, options, setup.sources, threads=engine.threads, opener=self._opened)
        self._bundle = bundle
        self._task = Task(task)

    def heart(self, source: Source) -> Heart:
        """See `Line.heart`."""
        self.engine.clear()
        began, cpu = time.perf_counter(), time.process_time()
        outcomes = self._task.run(source)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        failed = next((o.row for o in outcomes if o.state == "failed"), None)
        done = [o.seconds for o in outcomes if o.state == "done"]
        if failed or not done:
            return Heart(failure=(failed.error or "", failed.message or "") if failed else ("empty", "no wall"))
        return _heart(wall, cpu, self.engine, done)

    def _opened(self, spec: TaskSpec) -> tuple[Bundle, Engine, Any]:
        from m2s_runtime.pipeline import Pipeline

        pipeline = Pipeline(self._bundle, self.engine, steps=spec.options.steps, threads=spec.threads)
        return self._bundle, self.engine, pipeline


class _ReferenceLine:
    """See `m2s.bench.reference`."""

    def __init__(self, spec: LineSpec, setup: Setup, bundle: Bundle, engine: Engine, out: Path) -> None:
        from m2s.bench.reference import Reference

        self.spec, self.engine, self.steps = spec, timed(engine), spec.steps or DEFAULT_STEPS
        self._reference = Reference(bundle, self.engine, self.steps, setup.labels)
        self._out = out

    def heart(self, source: Source) -> Heart:
        """See `Line.heart`."""
        self.engine.clear()
        began, cpu = time.perf_counter(), time.process_time()
        try:
            done = self._reference.run(source.path, self._out)
        except CaseError as error:
            return Heart(failure=(error.code, str(error)))
        return _heart(time.perf_counter() - began, time.process_time() - cpu, self.engine, done)


def _heart(wall: float, cpu: float, engine: Timed, done: Sequence[dict[str, float]]) -> Heart:
    count = len(done)
    stages = {name: sum(one.get(name, 0.0) for one in done) / count for name in done[0]}
    stages["other"] = max(wall / count - sum(stages.values()), 0.0)
    return Heart(wall / count, cpu / count, sum(engine.seconds.values()) / count, stages)


def _torch_engine(
    spec: LineSpec, setup: Setup, bundle: Bundle, mode: Literal["eager", "compile"], *, verify: bool
) -> Engine:
    try:
        from m2s.bench import torch_engine, weights
    except ImportError as error:
        raise EngineError(f'PyTorch is missing ({error}); run `pip install "mask2surface[bench]"`') from error
    nets = weights.nets_of_run(bundle, setup.run) if setup.run else weights.nets_of_bundle(bundle)
    kind = torch_engine.TorchEngine if spec.device == "cpu" else torch_engine.TorchLoopEngine
    engine = kind(nets, bundle, mode, spec.device, setup.threads)
    if verify:
        torch_engine.verify(engine, bundle)
    return engine


def _parsed(word: str) -> LineSpec:
    found = _SPEC.fullmatch(word)
    kind = found["kind"] if found else ""
    if not found or kind not in (*RUNTIME, *TORCH):
        raise UsageProblem(
            f"--compare {word}: choose from {', '.join((*RUNTIME, *TORCH))}, as KIND[:PRECISION][@DEVICE]"
        )
    what, device = found["what"], found["device"] or ("cpu" if kind in TORCH else "auto")
    if kind == "reference":
        if what and not (what.isdecimal() and 1 <= int(what) <= 1000):
            raise UsageProblem(f"--compare {word}: after `reference:` comes a number of steps from 1 to 1000")
        return LineSpec(word, "reference", "float32", device, int(what) if what else None)
    if what and (what not in PRECISIONS or (kind in TORCH and what != "float32")):
        raise UsageProblem(f"--compare {word}: choose float32, float16 or bfloat16 (PyTorch lines are float32)")
    default = "auto" if kind == "auto" else "float32"
    return LineSpec(word, kind, what or default, device)  # pyright: ignore[reportArgumentType] - checked above
