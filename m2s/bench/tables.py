"""A result as Markdown."""

from collections.abc import Iterable, Sequence

from m2s.bench.cards import Prediction
from m2s.bench.result import LineResult, Machine, Ratio, Result, Work


def markdown(result: Result) -> str:
    """The whole result, a section a part; parts that were not asked for are left out."""
    parts = [
        f"# m2s-bench, {result.date}, mask2surface {result.version}",
        _setting(result),
        machine_text(result.machine, result),
        _hearts(result.lines),
        _ratios(result.ratios),
        _whole_runs(result.lines),
        _first_runs(result.lines),
        _stages(result.lines),
        _networks(result.lines),
        work_table(result.work),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def machine_text(machine: Machine, result: Result | None = None) -> str:
    """Machine, cards, versions and measured peaks as a list."""
    lines = [
        f"- {machine.cpu}, {machine.cores} core(s), {machine.memory_gib:g} GiB, {machine.system}",
        f"- Python {machine.python}; " + ", ".join(f"{k} {v}" for k, v in machine.packages.items()),
    ]
    lines += [
        f"- {gpu.name}, driver {gpu.driver}, {gpu.memory_mib} MiB, SM clock {gpu.clock_mhz} of "
        f"{gpu.clock_max_mhz} MHz, power limit {gpu.power_limit_w} W"
        for gpu in machine.gpus
    ]
    if machine.load is not None:
        lines.append(f"- load when it began: {machine.load:g}")
    for device, peak in result.peaks.items() if result else ():
        best = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s {precision}" for precision, flops in peak.flops.items())
        lines.append(f"- measured peak of {device} ({peak.how}): {best}, copy {peak.copy / 1e9:.1f} GB/s")
    return "\n".join(lines)


def work_table(work: dict[str, Work]) -> str:
    """What a row of each graph costs."""
    rows = [
        (graph, f"{w.flops / 1e9:.3f}", f"{w.parameters / 1e6:.3f}", *_megabytes(w))
        for graph, w in work.items()
    ]  # fmt: skip
    head = ("graph, one row", "GFLOP", "weights M", "weights MB", "MB, all fused", "MB, nothing fused")
    return _table("## Work", head, rows)


def prediction_table(prediction: Prediction) -> str:
    """The estimate, which says that it is one."""
    rows = [
        (graph, f"{roof.arithmetic * 1e3:.3f}", f"{roof.traffic * 1e3:.3f}", f"{roof.floor * 1e3:.3f}")
        for graph, roof in prediction.graphs.items()
    ]
    rows.append((f"a heart, {prediction.steps} step(s)", "", "", f"{prediction.heart * 1e3:.3f}"))
    title = f"## ESTIMATE, not measured: {prediction.networks} on {prediction.card}, {prediction.precision}"
    note = (
        "Roofline: the longer of arithmetic at the card's peak and traffic at its bandwidth, all fused, batch 1; "
        f"networks alone, no launches, no geometry, no files. Figures of the card: {prediction.source}."
    )
    return _table(title, ("graph", "arithmetic ms", "traffic ms", "floor ms"), rows) + "\n\n" + note


def _setting(result: Result) -> str:
    s, b = result.settings, result.bundle
    left_out = sum(result.excluded.values())
    hearts = f"{s.files} file(s)" if s.hearts == "files" else f"{s.files} procedural phantoms"
    text = f"Bundle {b.name} (preset {b.preset}, {b.steps} step(s), {b.sha256[:12]}); {hearts}, {s.rounds} round(s); "
    text += "lines in turn, a process each." if s.in_turn else "lines interleaved heart by heart in one process."
    if left_out:
        why = ", ".join(f"{code} {count}" for code, count in result.excluded.items())
        text += f" Left out of all figures because they cannot be reconstructed: {left_out} file(s) ({why})."
    if result.missing:
        text += f" Could not be had: {', '.join(result.missing)}."
    return text


def _hearts(lines: Sequence[LineResult]) -> str:
    rows = [
        (
            line.name, line.description, f"{line.steps}", f"{h.wall.count}",
            *(f"{v:.3f}" for v in (h.wall.mean, h.wall.p50, h.wall.p95, h.cpu.mean, h.networks.mean)),
        )
        for line in lines if (h := line.hearts)
    ]  # fmt: skip
    head = ("line", "bound", "steps", "hearts", "s mean", "p50", "p95", "CPU s mean", "networks s mean")
    return _table("## A heart, file in, files out, warm, one after the other", head, rows)


def _ratios(ratios: Sequence[Ratio]) -> str:
    rows = [(r.line, r.against, r.what, f"{r.ratio:.2f} [{r.low:.2f}, {r.high:.2f}]", str(r.hearts)) for r in ratios]
    head = ("line", "against", "what", "times longer [95 % over hearts]", "hearts")
    return _table("## Ratios", head, rows)


def _whole_runs(lines: Sequence[LineResult]) -> str:
    rows = [
        (
            line.name, str(run.hearts), f"{run.wall:.3f}", f"{run.steady:.3f}", f"{run.cpu:.3f}",
            _mib(run.peak_rss_mib),
        )
        for line in lines for run in line.whole_runs
    ]  # fmt: skip
    head = ("m2s-run", "hearts", "s a heart, with start-up", "steady s a heart", "CPU s a heart", "peak RSS MiB")
    return _table("## The whole command", head, rows)


def _first_runs(lines: Sequence[LineResult]) -> str:
    rows = [
        (
            line.name, *(f"{v:.2f}" for v in (f.started, f.opened, f.first_call, f.first_heart)),
            _mib(f.peak_rss_mib), _mib(f.gpu_mib),
        )
        for line in lines if (f := line.first_run)
    ]  # fmt: skip
    head = ("line", "interpreter", "opened", "first network call", "first heart", "peak RSS MiB", "GPU MiB")
    return _table("## First run: seconds since the start of a fresh process", head, rows)


def _stages(lines: Sequence[LineResult]) -> str:
    measured = {line.name: line.hearts for line in lines if line.hearts}
    names = dict.fromkeys(name for hearts in measured.values() for name in hearts.stages)
    rows: list[tuple[str, ...]] = []
    for name in names:
        found = [hearts.stages.get(name) for hearts in measured.values()]
        rows.append(
            (name, *("-" if s is None else f"{s.mean * 1e3:.1f} ({s.p50 * 1e3:.1f}, {s.p95 * 1e3:.1f})" for s in found))
        )
    return _table("## Stages: mean (p50, p95) ms a heart", ("stage", *measured), rows)


def _networks(lines: Sequence[LineResult]) -> str:
    rows = [
        (
            line.name, n.graph, str(n.batch), f"{n.seconds.p50 * 1e3:.2f}", f"{n.seconds.p95 * 1e3:.2f}",
            f"{n.rows_a_second:.1f}", _percent(n.of_matrix_peak), _percent(n.of_roofline),
        )
        for line in lines for n in line.networks
    ]  # fmt: skip
    head = ("line", "graph", "batch", "p50 ms", "p95 ms", "rows/s", "of the matrix peak", "of the roofline")
    return _table("## Networks", head, rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Iterable[str]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join([title, "", *lines])


def _megabytes(work: Work) -> tuple[str, str, str]:
    fused = work.weight_bytes + work.activation_bytes
    return f"{work.weight_bytes / 1e6:.1f}", f"{fused / 1e6:.1f}", f"{work.moved_bytes / 1e6:.1f}"


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{100 * part:.0f} %"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
