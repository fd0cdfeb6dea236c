"""What a benchmark comes to: the layout of its JSON file. No host name, user or path has a place in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from m2s_runtime import strict_json

SCHEMA: Final = 1
"""Version of this format."""


@dataclass(frozen=True)
class Quantiles:
    """Of so many measured numbers: mean, median and 95th percentile."""

    count: int
    mean: float
    p50: float
    p95: float


@dataclass(frozen=True)
class Gpu:
    """As the driver reports it: clocks in MHz, memory in MiB, power limit in W."""

    name: str
    driver: str
    memory_mib: str
    clock_mhz: str
    clock_max_mhz: str
    power_limit_w: str


@dataclass(frozen=True)
class Machine:
    """What it ran on.

    Attributes:
        cpu: model name.
        cores: that this process may use.
        memory_gib: of the machine.
        system: operating system.
        python: version.
        packages: distribution to version.
        gpus: NVIDIA cards.
        load: other work on the machine when it began (load average of a minute); None where nobody counts it.
    """

    cpu: str
    cores: int
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    gpus: tuple[Gpu, ...]
    load: float | None


@dataclass(frozen=True)
class Peak:
    """What a device reaches at best, measured.

    Attributes:
        flops: precision to FLOP/s of a matrix product.
        copy: bytes read and written a second by a copy in memory.
        how: what measured it.
    """

    flops: dict[str, float]
    copy: float
    how: str


@dataclass(frozen=True)
class Work:
    """What one row costs in float32, counted in the graph.

    Attributes:
        flops: two for each multiplication of a convolution or matrix product; nothing else counts.
        parameters: numbers in the weights of these.
        weight_bytes: the same in bytes.
        activation_bytes: read and written by these, as if everything between them were fused into them.
        moved_bytes: read and written by all operators, as if nothing were fused.
    """

    flops: float
    parameters: int
    weight_bytes: float
    activation_bytes: float
    moved_bytes: float


@dataclass(frozen=True)
class NetworkTime:
    """One graph at one batch size on one line; results are on the host when the clock stops.

    Attributes:
        graph: its name, or `denoise step inside` for a step of a loop that never leaves the device.
        batch: rows.
        seconds: of a call.
        rows_a_second: at the median.
        flops_a_second: at the median; None where the graph could not be counted.
        of_matrix_peak: that, as a fraction of the measured matrix product in the same precision.
        of_roofline: the longer of work / matrix product and bytes / copy, as a fraction of the median.
    """

    graph: str
    batch: int
    seconds: Quantiles
    rows_a_second: float
    flops_a_second: float | None
    of_matrix_peak: float | None
    of_roofline: float | None


@dataclass(frozen=True)
class HeartTimes:
    """File in, files out, one heart after the other, warm; seconds a heart.

    Attributes:
        wall: by the clock.
        cpu: of all cores.
        networks: by the clock, inside calls of the engine; a card's own C-SDG is among them.
        stages: of the wall seconds; `other` is what no stage claims.
    """

    wall: Quantiles
    cpu: Quantiles
    networks: Quantiles
    stages: dict[str, Quantiles]


@dataclass(frozen=True)
class FirstRun:
    """Seconds from the start of a fresh process to the end of each step, and its largest memory in MiB.

    Attributes:
        started: interpreter and this package.
        opened: the line's own imports, bundle, engine.
        first_call: of a network.
        first_heart: file in, files out.
        peak_rss_mib: resident; None where there is no /proc.
        gpu_mib: taken of the cards' memory, whoever else uses them holding still; None for lines on the CPU.
    """

    started: float
    opened: float
    first_call: float
    first_heart: float
    peak_rss_mib: float | None
    gpu_mib: float | None


@dataclass(frozen=True)
class WholeRun:
    """The command `m2s-run` on all hearts.

    Attributes:
        hearts: cases done.
        wall: seconds a heart, start-up included.
        cpu: CPU seconds a heart, of all its processes.
        steady: seconds a heart from the moment that bundle and engine were ready to the last case.
        peak_rss_mib: of all its processes together, sampled; None where there is no /proc.
    """

    hearts: int
    wall: float
    cpu: float
    steady: float
    peak_rss_mib: float | None


@dataclass(frozen=True)
class LineResult:
    """One of the ways that were compared.

    Attributes:
        name: as in `--compare`.
        description: what was really bound.
        device: `cpu` or `cuda:N`.
        precision: of the networks.
        threads: of the networks.
        steps: DDIM steps of a heart.
        networks: graph by graph.
        hearts: None where the part was not asked for, as the next ones.
        first_run: of a fresh process.
        whole_runs: a run a round; empty for lines that `m2s-run` does not have.
    """

    name: str
    description: str
    device: str
    precision: str
    threads: int
    steps: int
    networks: tuple[NetworkTime, ...]
    hearts: HeartTimes | None
    first_run: FirstRun | None
    whole_runs: tuple[WholeRun, ...]


@dataclass(frozen=True)
class Ratio:
    """How many times longer `line` takes than the first line.

    Attributes:
        line: name.
        against: name of the first line.
        what: `whole`, `CPU` (seconds of all cores), `same c-sdg` (the line's distances exchanged for those of the first
            line, where both have a stage of that name), `networks`, or `m2s-run` (a heart of a line that `m2s-run` does
            not have, against the whole command of the first line at its steady rate). All but `CPU` are by the clock.
        ratio: of the mean seconds a heart.
        low: 95 % bootstrap interval over hearts, paired.
        high: its upper end.
        hearts: how many.
    """

    line: str
    against: str
    what: str
    ratio: float
    low: float
    high: float
    hearts: int


@dataclass(frozen=True)
class Settings:
    """What was asked for; hearts are `files` or procedural `phantoms`."""

    hearts: Literal["files", "phantoms"]
    files: int
    rounds: int
    threads: int
    batch_sizes: tuple[int, ...]
    in_turn: bool


@dataclass(frozen=True)
class BundleFacts:
    """The weights that ran; `sha256` is that of the manifest."""

    name: str
    preset: str
    sha256: str
    steps: int


@dataclass(frozen=True)
class Result:
    """All of it; `excluded` counts, by error code, the files that are in no figure; `missing` names lines."""

    schema: Literal[1]
    version: str
    date: str
    settings: Settings
    machine: Machine
    bundle: BundleFacts
    peaks: dict[str, Peak]
    work: dict[str, Work]
    lines: tuple[LineResult, ...]
    ratios: tuple[Ratio, ...]
    excluded: dict[str, int]
    missing: tuple[str, ...]


def read_result(path: Path) -> Result:
    """A result file, checked against this layout.

    Raises:
        strict_json.Misfit: it is no such file.
        OSError: it cannot be read.
    """
    return strict_json.loads(Result, path.read_bytes())
