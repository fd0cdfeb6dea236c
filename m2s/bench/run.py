"""The whole benchmark: lines opened, measured in turn, compared."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from m2s.bench.lines import RUNTIME, Facts, Line, LineSpec, Setup, expanded, facts, open_line
from m2s.bench.machine import describe
from m2s.bench.measure import Samples, one_round, warm_up
from m2s.bench.networks import NetworkSettings
from m2s.bench.peaks import cpu_peak, cuda_peak
from m2s.bench.processes import apart, first_run, whole_run
from m2s.bench.result import (
    SCHEMA,
    BundleFacts,
    FirstRun,
    LineResult,
    NetworkTime,
    Peak,
    Ratio,
    Result,
    Settings,
    WholeRun,
    Work,
)
from m2s.bench.statistics import ratio
from m2s.bench.work import count_work
from m2s_runtime.bundle import Bundle, load_bundle
from m2s_runtime.engines.cuda import cuda_index
from m2s_runtime.errors import EngineError, NoInputs
from m2s_runtime.machine import usable_cores
from m2s_runtime.versions import version

PARTS: Final = ("peaks", "networks", "hearts", "whole-run", "first-run")
"""What can be measured."""


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        specs: lines, as typed.
        setup: what they share.
        hearts: where the files come from.
        parts: out of `PARTS`.
        rounds: of hearts and of the whole command.
        batch_sizes: of the networks.
        seconds: for each graph and batch size.
        jobs: of the whole command; None: its own default.
        in_turn: a process for each line.
        skip_missing: go on without lines that cannot be had.
    """

    specs: tuple[LineSpec, ...]
    setup: Setup
    hearts: Literal["files", "phantoms"]
    parts: tuple[str, ...] = PARTS
    rounds: int = 1
    batch_sizes: tuple[int, ...] = (1, 4)
    seconds: float = 2.0
    jobs: int | None = None
    in_turn: bool = False
    skip_missing: bool = False


@dataclass
class _State:
    """What has been measured so far."""

    facts: dict[str, Facts]
    samples: Samples
    networks: dict[str, Sequence[NetworkTime]]
    whole: dict[str, list[WholeRun]]
    missing: list[str]


def benchmark(plan: Plan, work_folder: Path, say: Callable[[str], None]) -> Result:
    """Measure everything that was asked for.

    Args:
        plan: that.
        work_folder: for the files of the hearts; the caller's to clear away.
        say: hears what is under way, and what was left out and why.

    Raises:
        EngineError: a line cannot be had and `skip_missing` is off, or none can.
        UsageProblem, BundleError: as in `lines.open_line`.
        NoInputs: not one file can be reconstructed.
    """
    machine, bundle = describe(), load_bundle(plan.setup.model)
    specs = expanded(plan.specs, plan.setup.steps or bundle.manifest.steps)
    work, peaks = _counted(bundle, say), _peaks(plan, specs, say)
    networks = NetworkSettings(
        plan.batch_sizes if "networks" in plan.parts else (), plan.seconds, bundle.manifest, work, peaks
    )
    runner = _in_turn if plan.in_turn else _interleaved
    state = runner(plan, specs, work_folder, networks, say)
    for case, (_, message) in state.samples.excluded.items():
        say(f"left out of all figures: {case}: {message}")
    if "hearts" in plan.parts and not any(state.samples.hearts.values()):
        raise NoInputs("not one file could be reconstructed by all lines; see above")
    first = _first_runs(plan, state, work_folder, say)
    lines = tuple(_line_result(name, state, first.get(name)) for name in state.facts)
    return Result(
        schema=SCHEMA,
        version=version(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        settings=Settings(
            plan.hearts, len(plan.setup.sources), plan.rounds, plan.setup.threads or usable_cores(),
            networks.batch_sizes, plan.in_turn,
        ),
        machine=machine,
        bundle=BundleFacts(bundle.name, bundle.manifest.preset, bundle.sha256, bundle.manifest.steps),
        peaks=peaks,
        work=work,
        lines=lines,
        ratios=tuple(_ratios(state)),
        excluded=dict(sorted(Counter(code for code, _ in state.samples.excluded.values()).items())),
        missing=tuple(state.missing),
    )  # fmt: skip


def _counted(bundle: Bundle, say: Callable[[str], None]) -> dict[str, Work]:
    try:
        return count_work(bundle)
    except EngineError as error:
        say(f"work is not counted: {error}")
        return {}


def _peaks(plan: Plan, specs: Sequence[LineSpec], say: Callable[[str], None]) -> dict[str, Peak]:
    if "peaks" not in plan.parts:
        return {}
    threads = plan.setup.threads or usable_cores()
    say(f"measuring the peaks of this machine with {threads} thread(s)")
    found = {"cpu": cpu_peak(threads)}
    indices = {cuda_index(spec.device) for spec in specs} | {0 for spec in specs if spec.kind in ("auto", "trt")}
    for index in sorted(index for index in indices if index is not None):
        peak = cuda_peak(index)
        if peak:
            found[f"cuda:{index}"] = peak
    return found


def _interleaved(
    plan: Plan, specs: Sequence[LineSpec], folder: Path, networks: NetworkSettings, say: Callable[[str], None]
) -> _State:
    state, lines = _State({}, Samples(), {}, {}, []), list[Line]()
    for spec in specs:
        try:
            lines.append(open_line(spec, plan.setup, _folder(folder, spec)))
        except EngineError as error:
            _passed_over(plan, state, spec, error, say)
    _refuse_nothing(lines, state)
    state.facts = {line.spec.name: facts(line) for line in lines}
    for line in lines if "hearts" in plan.parts else ():
        say(f"warming up {line.spec.name}: {line.engine.description}")
        warm_up(line, plan.setup.sources)
    for turn in range(plan.rounds):
        if "hearts" in plan.parts:
            say(f"round {turn + 1} of {plan.rounds}: {len(plan.setup.sources)} file(s) on {len(lines)} line(s)")
            one_round(lines, plan.setup.sources, state.samples, turn)
        _whole_runs(plan, [line.spec for line in lines], state, folder, say)
    for line in lines if networks.batch_sizes else ():
        say(f"networks of {line.spec.name}")
        state.networks[line.spec.name] = networks.times(line)
    return state


def _in_turn(
    plan: Plan, specs: Sequence[LineSpec], folder: Path, networks: NetworkSettings, say: Callable[[str], None]
) -> _State:
    state = _State({}, Samples(), {}, {}, [])
    rounds = plan.rounds if "hearts" in plan.parts else 0
    for spec in specs:
        say(f"{spec.name} in a process of its own")
        try:
            done = apart(spec, plan.setup, _folder(folder, spec), rounds, networks)
        except EngineError as error:
            _passed_over(plan, state, spec, error, say)
            continue
        state.facts[spec.name], state.networks[spec.name] = done.facts, done.networks
        state.samples.join(done.samples)
    _refuse_nothing(state.facts, state)
    had = [spec for spec in specs if spec.name in state.facts]
    for _ in range(plan.rounds):
        _whole_runs(plan, had, state, folder, say)
    return state


def _whole_runs(plan: Plan, specs: Sequence[LineSpec], state: _State, folder: Path, say: Callable[[str], None]) -> None:
    if "whole-run" not in plan.parts:
        return
    setup = _usable(plan.setup, state.samples)
    for spec in specs:
        if spec.kind in RUNTIME:
            say(f"m2s-run, {spec.name}: {len(setup.sources)} file(s)")
            run = whole_run(spec, setup, _folder(folder, spec), plan.jobs)
            state.whole.setdefault(spec.name, []).append(run)


def _first_runs(plan: Plan, state: _State, folder: Path, say: Callable[[str], None]) -> dict[str, FirstRun]:
    if "first-run" not in plan.parts:
        return {}
    setup, found = _usable(plan.setup, state.samples), dict[str, FirstRun]()
    specs = expanded(plan.specs, plan.setup.steps or load_bundle(plan.setup.model).manifest.steps)
    for spec in specs:
        if spec.name in state.facts:
            say(f"first run of {spec.name}")
            bound = replace(spec, device=state.facts[spec.name].device)
            found[spec.name] = first_run(bound, setup, _folder(folder, spec))
    return found


def _line_result(name: str, state: _State, first: FirstRun | None) -> LineResult:
    bound = state.facts[name]
    hearts = state.samples.times(name) if name in state.samples.hearts else None
    networks, whole = tuple(state.networks.get(name, ())), tuple(state.whole.get(name, ()))
    return LineResult(**vars(bound), networks=networks, hearts=hearts, first_run=first, whole_runs=whole)


def _ratios(state: _State) -> list[Ratio]:
    """Of every line to the first, and of those without a whole command to that of the first."""
    names = list(state.samples.hearts)
    made: list[Ratio] = []
    for name in names[1:]:
        made += state.samples.ratios(name, names[0])
        steady = [run.steady for run in state.whole.get(names[0], ())]
        slow = [sum(h.wall for h in hearts) / len(hearts) for hearts in state.samples.hearts[name].values()]
        if steady and slow and name not in state.whole:
            fast = [sum(steady) / len(steady)] * len(slow)
            made.append(Ratio(name, names[0], "m2s-run", *ratio(slow, fast), len(slow)))
    return made


def _usable(setup: Setup, samples: Samples) -> Setup:
    """The set-up without the files that are left out."""
    return replace(setup, sources=tuple(s for s in setup.sources if s.case not in samples.excluded))


def _passed_over(plan: Plan, state: _State, spec: LineSpec, error: EngineError, say: Callable[[str], None]) -> None:
    if not plan.skip_missing:
        raise EngineError(f"{spec.name}: {error}; or add --skip-missing") from error
    say(f"left away: {spec.name}: {error}")
    state.missing.append(spec.name)


def _refuse_nothing(lines: "Sequence[Line] | Mapping[str, Facts]", state: _State) -> None:
    if not lines:
        raise EngineError(f"not one of {', '.join(state.missing)} can be had here; see above")


def _folder(folder: Path, spec: LineSpec) -> Path:
    return folder / "".join(c if c.isalnum() else "-" for c in spec.name)
