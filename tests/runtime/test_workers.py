"""Processes that die, hang or cannot start cost what they were about and nothing else. The processes are real."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runtime.stub import StubOpener, digests, save, wall

from m2s_runtime import cli, session
from m2s_runtime.errors import BundleError, EngineError, UsageProblem
from m2s_runtime.inputs import Source
from m2s_runtime.options import Options
from m2s_runtime.pools import choose_pool, shared
from m2s_runtime.task import TaskSpec

HERE = Path(__file__).parent
RUNTIME = Path(cli.__file__).parents[1]
PATIENCE = 300


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate("abcd"):
        save(tmp_path / "in" / f"{name}.nii.gz", wall(scale=1.0 - index / 20))
    return tmp_path / "in"


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the command with a stub behind it; returns code, stdout and stderr."""

    def call(*arguments, opener=StubOpener()):  # noqa: B008 - frozen
        monkeypatch.setattr(session, "open_reconstructor", opener)
        code = cli.run([*map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def sha(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(out):
    with (out / "cases.csv").open(newline="") as file:
        return {line["case"]: line for line in csv.DictReader(file)}


def meshes(out):
    return {name: digest for name, digest in digests(out).items() if name.endswith(".ply")}


def test_poison_and_hanging_cases_cost_themselves_only_and_a_rerun_does_them(run, folder, tmp_path):
    out = tmp_path / "out"
    trouble = {sha(folder / "b.nii.gz"): "hang", sha(folder / "c.nii.gz"): "kill"}
    code, stdout, stderr = run(folder, "-o", out, "--timeout", 10, opener=StubOpener(trouble))
    assert code == 8
    assert len(stdout.splitlines()) == 2
    assert "b: b.nii.gz: took longer than --timeout 10 seconds" in stderr
    assert "c: c.nii.gz: its process died (signal 9)" in stderr
    assert "2 done, 2 failed" in stderr
    rows = table(out)
    assert [(rows[case]["status"], rows[case]["error"]) for case in "abcd"] == [
        ("ok", ""),
        ("failed", "timeout"),
        ("failed", "crashed"),
        ("ok", ""),
    ]
    assert rows["c"]["labels"].startswith("label 2 is the wall")
    code, _, stderr = run(folder, "-o", out, "--retry-failed")
    assert code == 0
    assert "2 file(s) failed before" in stderr
    assert "2 done;" in stderr
    assert run(folder, "-o", tmp_path / "whole", "--jobs", "0")[0] == 0
    assert meshes(out) == meshes(tmp_path / "whole")
    assert [row["status"] for row in table(out).values()] == ["ok"] * 4


def test_a_poison_frame_leaves_the_other_frames_of_its_cine(run, tmp_path):
    scales = (1.0, 0.95, 0.9)
    save(tmp_path / "in" / "a.nii.gz", np.stack([wall(scale=scale) for scale in scales], axis=3))
    out = tmp_path / "out"
    # The second call of a process: the second frame in the first one; its successor has only one frame left.
    code, stdout, _ = run(tmp_path / "in", "-o", out, opener=StubOpener({2: "kill"}))
    assert code == 8
    assert [Path(line).stem for line in stdout.splitlines()] == ["a_t00", "a_t02"]
    rows = table(out)
    assert [rows[case]["error"] for case in ("a_t00", "a_t01", "a_t02")] == ["", "crashed", ""]
    assert run(tmp_path / "in", "-o", out)[0] == 0
    run(tmp_path / "in", "-o", tmp_path / "whole", "--jobs", "0")
    assert meshes(out) == meshes(tmp_path / "whole")


def test_any_number_of_jobs_gives_the_same_bytes_and_resumes(run, folder, tmp_path):
    assert run(folder, "-o", tmp_path / "two", "--jobs", "2", "--threads", "1")[0] == 0
    assert run(folder, "-o", tmp_path / "none", "--jobs", "0", "--threads", "1")[0] == 0
    assert meshes(tmp_path / "two") == meshes(tmp_path / "none")
    assert list(table(tmp_path / "two")) == list("abcd")
    assert "4 complete" in run(folder, "-o", tmp_path / "two", "--jobs", "0", "--threads", "1")[2]


def test_the_networks_give_the_same_bytes_in_any_number_of_jobs(tmp_path):
    pytest.importorskip("onnxruntime")
    toy = HERE.parent / "data" / "toy_bundle"
    if not toy.is_dir():
        pytest.skip("no toy bundle here")
    for index, name in enumerate("ab"):
        save(tmp_path / "in" / f"{name}.nii.gz", wall(scale=1.0 - index / 20))
    save(tmp_path / "in" / "c.nii.gz", np.stack([wall(scale=scale) for scale in (0.9, 0.85)], axis=3))
    ways = {"one": ("--jobs", "0"), "two": ("--jobs", "2"), "three": ("--jobs", "1", "--batch-size", "3"), "auto": ()}
    for name, how in ways.items():
        words = [tmp_path / "in", "-o", tmp_path / name, "--model", toy, "--engine", "onnx", *how, "-q"]
        assert cli.run([*map(str, words), "--device", "cpu", "--save", "sdg,mask"]) == 0
    files, *others = (
        {n: d for n, d in digests(tmp_path / name).items() if n.endswith((".ply", ".nii.gz"))} for name in ways
    )
    assert len(files) == 12
    assert others == [files] * 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BundleError("no bundle"), 4, "no bundle"),
        (EngineError("no GPU"), 5, "no GPU"),
        ("kill", 5, "died while it loaded bundle and engine (signal 9)"),
        (KeyError("deep"), 1, "KeyError: 'deep'"),
    ],
)
def test_what_keeps_a_process_from_starting_ends_the_run(run, folder, tmp_path, error, code, said):
    found, _, stderr = run(folder, "-o", tmp_path / "out", opener=StubOpener(error=error))
    assert found == code
    assert said in stderr
    assert not (tmp_path / "out").exists()


def test_a_process_that_dies_while_it_loads_in_place_of_another_costs_nothing(run, folder, tmp_path):
    """Memory that ran out is short for a while."""
    guilty = hashlib.sha256((folder / "b.nii.gz").read_bytes()).hexdigest()
    trouble = StubOpener({guilty: "kill"}, starts=tmp_path / "starts")
    code, stdout, stderr = run(folder, "-o", tmp_path / "out", "--jobs", "1", opener=trouble)
    assert code == 8, stderr
    assert [Path(line).stem for line in stdout.splitlines()] == ["a", "c", "d"]
    assert {case: row["error"] for case, row in table(tmp_path / "out").items() if row["error"]} == {"b": "crashed"}
    assert (tmp_path / "starts").read_text() == "xxxx"


def test_an_engine_lost_in_a_process_ends_the_run_with_its_code(run, folder, tmp_path):
    code, _, stderr = run(
        folder, "-o", tmp_path / "out", "-q", "--jobs", "1", opener=StubOpener({2: EngineError("device lost")})
    )
    assert code == 5
    assert stderr.splitlines() == ["m2s-run: error: device lost"]
    assert [row["status"] for row in table(tmp_path / "out").values()] == ["ok"]


STARTED = """
import signal, sys
from m2s_runtime import cli, session
from stub import StubOpener
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is born without
    session.open_reconstructor = StubOpener({trouble})
    cli.main()
"""


def start(*arguments, trouble):
    path = os.pathsep.join([str(RUNTIME), str(HERE), os.environ.get("PYTHONPATH", "")])
    code = STARTED.format(trouble=trouble)
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        words, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def children(pid):
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if status[1] == str(pid) and status[0] != "Z":
            found.add(int(folder.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_parent(folder, tmp_path, number):
    process = start(folder, "-o", tmp_path / "out", "--jobs", "1", trouble="{2: 'hang'}")
    until((tmp_path / "out" / "a" / "a.json").is_file)
    family = children(process.pid)
    assert family
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE)
    until(lambda: not any(alive(pid) for pid in family))
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert "interrupted: 1 done; see" in stderr


def test_two_runs_do_not_share_a_folder(run, folder, tmp_path):
    out = tmp_path / "out"
    first = start(folder, "-o", out, "--jobs", "1", trouble="{2: 'hang'}")
    until((out / "a" / "a.json").is_file)
    before = digests(out)
    for again in (["--overwrite"], ["--shard", "1/2"]):
        code, _, stderr = run(folder, "-o", out, "--jobs", "0", "-q", *again)
        assert code == 6
        assert f"another run is under way there (process {first.pid} on " in stderr
    assert digests(out) == before
    assert run(folder, "-o", out, "--jobs", "0", "--dry-run")[0] == 0
    first.terminate()
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 143
    assert run(folder, "-o", out, "--jobs", "0")[0] == 0
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


SPEC = TaskSpec(Path("out"), Options(), (Source(Path("a"), "a", "a"),))


def test_devices_and_jobs_become_processes():
    def devices(jobs=1, sources=9, **changes):
        return [(spec.device, spec.threads) for spec in shared(TaskSpec(**(vars(SPEC) | changes)), jobs, sources)]

    assert devices() == [("auto", 1)]
    assert devices(device="cuda:1", threads=3) == [("cuda:1", 3)]
    assert devices(device="cuda:0, cuda:1") == [("cuda:0", 1), ("cuda:1", 1)]
    assert devices(jobs=2) == [("cpu", 1)] * 2
    assert devices(jobs=3, device="cpu", threads=5) == [("cpu", 5)] * 3
    assert devices(jobs=3, sources=2) == [("cpu", 1)] * 2


@pytest.mark.parametrize(
    ("device", "jobs"), [("cuda:0", 2), ("cuda:0,cuda:0", 1), ("cpu,cuda:0", 1), ("cuda:0,cuda:1", 2), ("a,b", 0)]
)
def test_devices_and_jobs_that_do_not_go_together(device, jobs):
    with pytest.raises(UsageProblem, match="--device"):
        choose_pool(TaskSpec(**(vars(SPEC) | {"device": device})), jobs, 0, 1, print)


def test_processes_that_were_bound_differently_end_the_run(run, folder, tmp_path):
    opener = StubOpener(first=tmp_path / "first")
    code, _, stderr = run(folder, "-o", tmp_path / "out", "--jobs", "2", "--threads", "1", opener=opener)
    assert code == 5
    assert "do not agree" in stderr


@pytest.mark.parametrize("timeout", ["1e9", "inf", "nan"])
def test_a_very_long_timeout_is_none(run, folder, tmp_path, timeout):
    assert run(folder / "a.nii.gz", "-o", tmp_path / "out", "--timeout", timeout)[0] == 0


def test_the_event_log_tells_every_case(run, folder, tmp_path):
    log = tmp_path / "events.jsonl"
    (folder / "d.nii.gz").write_bytes(b"junk")
    run(folder, "-o", tmp_path / "out", "--jobs", "0", "--log-json", log)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "case", "case", "case", "case", "end"]
    done, failed = events[1], events[4]
    assert (done["case"], done["state"], done["stages"]["mc"]) == ("a", "done", 0.25)
    assert done["files"][0] == str(tmp_path / "out" / "a" / "a.ply")
    assert (failed["case"], failed["state"], failed["error"]) == ("d", "failed", "unreadable")
    assert (events[-1]["exit_code"], events[-1]["cases"]) == (8, {"done": 3, "failed": 1})
    run(folder, "-o", tmp_path / "out", "--jobs", "0", "--log-json", log)
    assert len(log.read_text().splitlines()) == 12
    code, _, stderr = run(folder, "-o", tmp_path / "new", "--jobs", "0", "--log-json", tmp_path / "no" / "log")
    assert code == 6
    assert "--log-json" in stderr
