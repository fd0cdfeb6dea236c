"""The command `m2s-bench` on the toy bundle, its arithmetic and its refusals."""

import importlib.util
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toy import TOY

pytest.importorskip("onnxruntime")

from runtime.device import HostMemory

from m2s.bench import cards, cli, lines, machine, run
from m2s.bench.hearts import find_hearts, write_phantoms
from m2s.bench.lines import Heart, LineSpec, Setup, expanded, facts, open_line, parse
from m2s.bench.machine import describe
from m2s.bench.measure import Samples, one_round
from m2s.bench.networks import STEP_INSIDE, NetworkSettings, rated
from m2s.bench.processes import finished, first_run
from m2s.bench.result import Peak, Work, read_result
from m2s.bench.statistics import quantiles, ratio
from m2s.bench.timed import timed
from m2s_runtime.bundle import load_bundle
from m2s_runtime.engines.onnx import OnnxEngine
from m2s_runtime.engines.onnx_bound import BoundOnnxEngine
from m2s_runtime.errors import UsageProblem
from m2s_runtime.strict_json import Misfit

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """Two phantoms, and between them a file that is none."""
    folder = tmp_path_factory.mktemp("hearts")
    write_phantoms(folder, 2)
    (folder / "phantom000b.nii.gz").write_bytes(b"no gzip at all")
    return folder


@pytest.fixture
def bench(monkeypatch, capfd):
    """Call the command in this process; exit code, stdout, stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["m2s-bench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capfd.readouterr()

    return call


def setup_of(folder, labels="binary"):
    return Setup(str(TOY), labels, 1, 2, None, None, tuple(find_hearts([str(folder)], folder / "none", None).sources))


def test_quantiles_by_hand():
    found = quantiles([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.count, found.mean, found.p50, found.p95) == (5, 3.0, 3.0, pytest.approx(4.8))
    with pytest.raises(ValueError, match="nothing"):
        quantiles([])


def test_ratio_is_paired():
    """Hearts differ tenfold, the ratio does not: pairing leaves no interval, and noise in it shows."""
    fast = np.linspace(1, 10, 12)
    assert ratio(list(3 * fast), list(fast)) == (pytest.approx(3), pytest.approx(3), pytest.approx(3))
    value, low, high = ratio(list(3 * fast + np.tile([1, -1], 6)), list(fast))
    assert low < value < high
    assert ratio([8.0, 4.0], [2.0, 1.0])[0] == 4  # of the means, not the mean of ratios
    with pytest.raises(ValueError, match="compared"):
        ratio([1.0], [])


def test_ratios_of_lines_by_hand():
    def heart(wall, cpu, networks, distance):
        return Heart(wall, cpu, networks, {"c-sdg": distance, "other": wall - networks - distance})

    samples = Samples({"a": {"x": [heart(2, 3, 1, 0.5)]}, "b": {"x": [heart(11, 12, 4, 6), heart(13, 12, 4, 6)]}})
    found = {r.what: r.ratio for r in samples.ratios("b", "a")}
    assert found == {"whole": 6, "CPU": 4, "networks": 4, "same c-sdg": (12 - 6 + 0.5) / 2}
    samples.hearts["a"]["x"] = [Heart(2, 3, 1, {"denoise": 1.5})]  # a card that draws has no such stage to lend
    assert {r.what for r in samples.ratios("b", "a")} == {"whole", "CPU", "networks"}


def test_the_steady_rate_is_not_that_of_cases_that_end_together(tmp_path):
    """Two processes, two waves of 10 s each: 5 s a heart, though the last case ends 10 s after the first."""
    log = tmp_path / "events.jsonl"
    told = [{"event": "start"}, *[{"event": "case", "state": "done"}] * 4, {"event": "case", "state": "failed"}]
    with log.open("w") as file:
        for event, second in zip(told, (0, 10, 10, 20, 20, 59), strict=True):
            file.write(json.dumps(event | {"time": f"2026-01-01T00:00:{second:02}.000+00:00"}) + "\n")
    assert finished(log) == (4, 20.0)
    assert finished(tmp_path / "none") == (0, 0.0)


def test_network_rates_by_hand():
    work = Work(2e9, 10, 40.0, 1e6, 5e6)
    found = rated("denoise", 4, [0.1, 0.1, 0.1], work, Peak({"float32": 4e11, "float16": 8e11}, 1e10, ""), "float32")
    assert found.rows_a_second == pytest.approx(40)
    assert found.of_matrix_peak == pytest.approx(8e9 / 0.1 / 4e11)
    assert found.of_roofline == pytest.approx(max(8e9 / 4e11, (40 + 4e6) / 1e10) / 0.1)
    assert rated("mc", 1, [0.1], None, None, "float32").of_matrix_peak is None


def test_lines_are_parsed():
    specs = parse("onnx, openvino:bfloat16, onnx@cuda, trt:float16@cuda:1, torch-eager@cuda, reference, reference:3")
    assert [(s.kind, s.precision, s.device, s.steps) for s in specs] == [
        ("onnx", "float32", "auto", None),
        ("openvino", "bfloat16", "auto", None),
        ("onnx", "float32", "cuda", None),
        ("trt", "float16", "cuda:1", None),
        ("torch-eager", "float32", "cuda", None),
        ("reference", "float32", "cpu", None),
        ("reference", "float32", "cpu", 3),
    ]
    assert [(s.name, s.steps) for s in expanded(specs[-2:], 1)] == [
        ("reference:10", 10), ("reference:1", 1), ("reference:3", 3),
    ]  # fmt: skip
    for wrong in ("", "onnx,onnx", "tensorflow", "onnx:int8", "torch-eager:float16", "reference:0"):
        with pytest.raises(UsageProblem, match="--compare"):
            parse(wrong)


def test_help_needs_nothing_heavy():
    code = "import sys, m2s.bench.cli; sys.exit(bool({'torch', 'numpy', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert tuple(cards.CARDS) == cli.CARDS
    assert run.PARTS == cli.PARTS


def test_whole_command_on_good_and_bad_files(bench, hearts, tmp_path):
    """A bad file is named, left out of every figure and counted; the result reads back and tells of no path."""
    words = ["--model", TOY, "--compare", "onnx", "--labels", "binary", "--threads", 1, "--steps", 2, "--seconds", 0]
    code, out, err = bench(hearts, *words, "--batch-sizes", "1,2", "--jobs", 0, "--out", tmp_path / "out")
    assert code == 8, err
    assert "phantom000b.nii.gz" in err
    result = read_result(tmp_path / "out" / "result.json")
    assert result.excluded == {"unreadable": 1}
    line = result.lines[0]
    assert (line.name, line.device, line.threads, line.steps) == ("onnx", "cpu", 1, 2)
    assert line.hearts.wall.count == 2
    assert {"read", "c-sdg", "surface", "other"} <= set(line.hearts.stages)
    claimed = sum(stage.mean for stage in line.hearts.stages.values())
    assert claimed == pytest.approx(line.hearts.wall.mean, rel=1e-6)
    assert [(n.graph, n.batch) for n in line.networks[::5]] == [("mc", 1), ("mc", 2)]
    assert line.whole_runs[0].hearts == 2
    assert 0 < line.first_run.started < line.first_run.opened < line.first_run.first_call < line.first_run.first_heart
    assert result.peaks["cpu"].flops["float32"] > 1e9
    text = (tmp_path / "out" / "result.json").read_text() + out
    for private in (str(tmp_path), str(hearts), str(Path.home()) + "/", "phantom0"):
        assert private not in text
    assert (tmp_path / "out" / "result.md").read_text().rstrip() == out.rstrip()
    assert (tmp_path / "out" / "stages.png").is_file() is bool(importlib.util.find_spec("matplotlib"))


def test_nothing_usable_is_no_input(bench, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    code, _, err = bench(tmp_path, "--model", TOY, "--compare", "onnx", "--parts", "hearts")
    assert code == 3
    assert "bad.nii.gz" in err
    assert bench(tmp_path / "none", "--model", TOY)[0] == 3


def test_missing_engines(bench, hearts):
    """By name it is error 5 with the remedy; with --skip-missing the others go on, and all missing is 5 again."""
    words = [hearts / "phantom000.nii.gz", "--model", TOY, "--parts", "hearts", "--steps", 1, "--labels", "binary"]
    code, _, err = bench(*words, "--compare", "onnx,onnx@cuda:9")
    assert code == 5
    assert "onnx@cuda:9" in err
    assert "pip install" in err
    assert "--skip-missing" in err
    code, out, err = bench(*words, "--compare", "onnx,onnx@cuda:9", "--skip-missing")
    assert code == 0, err
    assert "Could not be had: onnx@cuda:9" in out
    assert bench(*words, "--compare", "onnx@cuda:9", "--skip-missing")[0] == 5


@pytest.mark.parametrize(
    "words", [["--compare", "onxx"], ["--parts", "speed"], ["--batch-sizes", "0"], ["--labels", "mine"]]
)
def test_usage(bench, words):
    assert bench("--model", TOY, *words)[0] == 2


def test_a_folder_that_cannot_be_written_is_found_out_before_measuring(bench, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(run, "benchmark", lambda *_: pytest.fail("it measures"))
    code, _, err = bench("--model", TOY, "--phantoms", 1, "--out", tmp_path / "file" / "speed")
    assert code == 6
    assert "not usable as a folder" in err


def test_prediction_alone_measures_nothing(bench, tmp_path):
    code, out, err = bench("--predict", "rtx4090", "--model", TOY, "--out", tmp_path / "out")
    assert code == 0, err
    assert out.count("ESTIMATE, not measured") == 4
    assert "preset paper on NVIDIA GeForce RTX 4090, float16" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.md"]


def test_lines_in_turn_are_the_same_hearts(hearts, tmp_path, capsys):
    plan = run.Plan(parse("onnx"), setup_of(hearts), "files", ("hearts",), in_turn=True)
    result = run.benchmark(plan, tmp_path, print)
    assert result.settings.in_turn
    assert result.lines[0].hearts.wall.count == 2
    assert result.excluded == {"unreadable": 1}


def test_first_run_survives_a_bad_first_file(hearts, tmp_path):
    setup = setup_of(hearts)
    bad_first = replace(setup, sources=tuple(sorted(setup.sources, key=lambda s: "b" not in s.path.name)))
    found = first_run(LineSpec("onnx", "onnx"), bad_first, tmp_path)
    assert found.first_call < found.first_heart
    assert found.gpu_mib is None


def test_a_loop_on_the_device_is_driven_and_timed(hearts, tmp_path, monkeypatch):
    """An engine that generates is wrapped as one, so that the pipeline uses its loop."""
    memory = HostMemory()
    inner = BoundOnnxEngine(OnnxEngine(load_bundle(TOY), "cpu", 1), memory)
    monkeypatch.setattr(lines, "open_engine", lambda *_, **__: inner)
    line = open_line(LineSpec("onnx", "onnx"), setup_of(hearts), tmp_path)
    good = [source for source in setup_of(hearts).sources if "b" not in source.path.name]
    samples = Samples()
    one_round([line], good, samples)
    times = samples.times("onnx")
    assert "push" in memory.calls
    assert 0 < times.networks.mean < times.wall.mean
    assert facts(line).precision == "float32"


class Sleeper:
    """An engine whose networks take no time but for 4 ms a step of its own loop."""

    name, device, threads, description = "onnx", "cuda:0", 1, "a stand-in on cuda:0"

    def run(self, *_):
        return {}

    def generate(self, _csdg, noise, levels, _bars):
        time.sleep(0.004 * len(levels))
        return noise


def test_steps_of_a_loop_are_measured_from_inside():
    line = SimpleNamespace(spec=LineSpec("onnx", "onnx"), engine=timed(Sleeper()), steps=10)
    found = NetworkSettings((2,), 0.0, load_bundle(TOY).manifest, {}, {}).times(line)
    assert [(n.graph, n.batch) for n in found][-1] == (STEP_INSIDE, 2)
    assert found[-1].seconds.p50 >= 0.0035  # sleeping is never too short; the short loop may be longer than it should


def test_a_machine_too_busy_to_tell_steps_apart_gets_no_such_row(monkeypatch):
    monkeypatch.setattr(Sleeper, "generate", lambda *given: time.sleep(0.01 / len(given[3])))
    line = SimpleNamespace(spec=LineSpec("onnx", "onnx"), engine=timed(Sleeper()), steps=10)
    found = NetworkSettings((1,), 0.0, load_bundle(TOY).manifest, {}, {}).times(line)
    assert STEP_INSIDE not in {n.graph for n in found}


def test_why_an_engine_was_taken_is_not_told():
    """The reasons of `auto` name folders: those of engines that were not built, for one."""
    told = "onnxruntime 1 float16 on cuda:0, 1 thread(s); auto: trt: no engine in /home/ann/.cache"
    engine = SimpleNamespace(description=told, device="cuda:0", threads=1)
    found = facts(SimpleNamespace(spec=LineSpec("auto", "auto"), engine=engine, steps=1))
    assert found.description == "onnxruntime 1 float16 on cuda:0, 1 thread(s)"
    assert found.precision == "float16"


def test_memory_of_cards_does_not_rest_on_their_numbers(monkeypatch):
    monkeypatch.setattr(machine, "_nvidia_smi", lambda *_: [["100"], ["1500"]])
    assert machine.gpu_memory_mib() == 1600
    monkeypatch.setattr(machine, "_nvidia_smi", lambda *_: [])
    assert machine.gpu_memory_mib() is None


def test_machine_keeps_its_secrets():
    import platform

    found = json.dumps(vars(describe()), default=vars)
    assert platform.node() not in found or not platform.node()
    assert not re.search(r"/(home|root|work|usr)/", found)


def test_contributed_results_fit_the_layout(tmp_path):
    """Files in benchmarks/results/<machine>/ are read back; what does not fit is refused."""
    for path in RESULTS.glob("*/*.json"):
        assert read_result(path).lines
    (tmp_path / "result.json").write_text('{"schema": 1, "host": "mine"}')
    with pytest.raises(Misfit, match="host"):
        read_result(tmp_path / "result.json")
