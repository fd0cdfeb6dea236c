"""The command as a user meets it: exit codes, one clear line a failure, what goes to stdout, interruption."""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from runtime.stub import StubBundle, StubEngine, StubOpener, StubReconstructor, digests, save, wall

import m2s_runtime
from m2s_runtime import cli, mesh_distance, session
from m2s_runtime.errors import BundleError, EngineError

HERE = Path(__file__).parent
RUNTIME = Path(m2s_runtime.__path__[0]).parent
STUBBED = """
{before}
import signal, sys
from m2s_runtime import cli, session
from stub import StubOpener
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is born without
    session.open_reconstructor = StubOpener({{{trouble}}})
    cli.main()
"""


@pytest.fixture
def run(monkeypatch, capfd):
    """Call the command, all in this process, with a stub behind it; returns code, stdout and stderr."""
    monkeypatch.setattr(session, "open_reconstructor", StubOpener())

    def call(*arguments):
        code = cli.run(["--jobs", "0", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def start(*arguments, trouble="", before=""):
    """The command in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(RUNTIME), str(HERE), os.environ.get("PYTHONPATH", "")])
    }
    code = STUBBED.format(trouble=trouble, before=before)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate("abc"):
        save(tmp_path / "in" / f"{name}.nii.gz", wall(scale=1.0 - index / 20))
    return tmp_path / "in"


def table(out):
    with (out / "cases.csv").open(newline="") as file:
        return {line["case"]: line for line in csv.DictReader(file)}


def test_a_folder_of_good_files(run, folder, tmp_path):
    code, stdout, stderr = run(folder, "--out", tmp_path / "out", "--labels", "acdc")
    assert code == 0
    assert stdout.splitlines() == [str(tmp_path / "out" / name / f"{name}.ply") for name in "abc"]
    assert "engine onnx on cpu" in stderr
    assert "label 2 is the wall" in stderr
    assert [line["status"] for line in table(tmp_path / "out").values()] == ["ok"] * 3
    document = json.loads((tmp_path / "out" / "run.json").read_text())
    assert document["exit_code"] == 0
    assert document["cases"] == {"done": 3}
    assert document["bundle"]["sha256"] == "0" * 64
    assert document["engine"]["device"] == "cpu"
    assert document["options"]["labels"] == "acdc"
    assert document["seconds"]["mc"] == 0.75


def test_one_bad_file_is_one_line_and_code_8(run, folder, tmp_path):
    good = (folder / "b.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(good[:-200])
    code, stdout, stderr = run(folder, "-o", tmp_path / "out", "-q")
    assert code == 8
    assert len(stdout.splitlines()) == 2
    (line,) = stderr.splitlines()
    assert line.startswith("b: b.nii.gz: ")
    row = table(tmp_path / "out")["b"]
    assert (row["status"], row["error"]) == ("failed", "unreadable")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == 8


def test_everything_failed_is_8_too(run, tmp_path):
    save(tmp_path / "in" / "a.nii.gz", np.zeros((32, 32, 8), np.uint8))
    assert run(tmp_path / "in", "-o", tmp_path / "out")[0] == 8


def test_an_empty_part_of_the_input_is_8(run, folder, tmp_path):
    (tmp_path / "void").mkdir()
    code, stdout, stderr = run(tmp_path / "void", folder, "-o", tmp_path / "out")
    assert code == 8
    assert len(stdout.splitlines()) == 3
    assert f"{tmp_path / 'void'}: no .nii" in stderr
    assert table(tmp_path / "out")[""]["error"] == "no-input"


@pytest.mark.parametrize("name", ["void", "gone.nii.gz", "*.nii"])
def test_no_inputs_is_3(run, tmp_path, name):
    (tmp_path / "void").mkdir()
    code, stdout, stderr = run(tmp_path / name, "-o", tmp_path / "out")
    assert (code, stdout) == (3, "")
    assert name in stderr
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--frobnicate"], "No such option"),
        (["--format", "fbx"], "ply, stl, vtp, obj, glb"),
        (["--space", "lai"], "lps"),
        (["--steps", "0"], "--steps"),
        (["--samples", "0"], "--samples"),
        (["--samples", "1000"], "--samples"),
        (["--refine", "-1"], "--refine"),
        (["--labels", "guess"], "--labels guess"),
        (["--labels", "myo=two"], "--labels myo=two"),
        (["--frames", "first"], "--frames"),
        (["--engine", "tea"], "auto"),
        (["-q", "-v"], "contradict"),
        (["--resume", "--overwrite"], "contradict"),
        (["--shard", "3/2"], "--shard 3/2"),
        (["--device", "cpu,cpu"], "--device"),
        (["--timeout", "-1"], "--timeout"),
        (["--out", ""], "unset variable"),
        (["--apply-shifts", "a.nii.gz", "--dry-run"], "--dry-run"),
    ],
)
def test_usage_is_2(run, folder, tmp_path, arguments, said):
    code, _, stderr = run(folder, "-o", tmp_path / "out", *arguments)
    assert code == 2
    assert said in stderr
    assert not (tmp_path / "out").exists()


def test_missing_arguments_are_2(run, folder):
    assert run(folder)[0] == 2
    assert run("-o", "x")[0] == 2


def test_colliding_cases_are_2(run, folder, tmp_path):
    save(folder / "a.nii", wall())
    code, _, stderr = run(folder, "-o", tmp_path / "out")
    assert code == 2
    assert "would both be case 'a'" in stderr


@pytest.mark.parametrize(("error", "code"), [(BundleError("no bundle"), 4), (EngineError("no GPU"), 5)])
def test_bundle_and_engine_errors(run, folder, tmp_path, monkeypatch, error, code):
    monkeypatch.setattr(session, "open_reconstructor", StubOpener(error=error))
    found, _, stderr = run(folder, "-o", tmp_path / "out")
    assert found == code
    assert stderr == f"m2s-run: error: {error}\n"
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_is_6(run, folder, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, stdout, stderr = run(folder, "-o", tmp_path / "out", "-q")
    assert (code, stdout) == (6, "")
    assert len(stderr.splitlines()) == 1
    assert (tmp_path / "out").read_text() == "a file"


def test_a_disk_that_fills_up_is_6(run, folder, tmp_path, monkeypatch):
    written = []

    def full(_):
        written.append(1)
        if len(written) > 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, stderr = run(folder, "-o", tmp_path / "out", "-q")
    assert code == 6
    assert "No space left on device" in stderr
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_bug_is_1(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(session.Session, "run", lambda *_, **__: 1 / 0)
    code, _, stderr = run(folder, "-o", tmp_path / "out")
    assert code == 1
    assert "please report" in stderr


def test_resume_and_overwrite(run, folder, tmp_path):
    out = tmp_path / "out"
    run(folder, "-o", out)
    code, stdout, stderr = run(folder, "-o", out)
    assert code == 0
    assert len(stdout.splitlines()) == 3
    assert stderr.count("complete since an earlier run") == 3
    assert [line["status"] for line in table(out).values()] == ["ok"] * 3
    assert run(folder, "-o", out, "--resume")[2].count("complete since") == 3
    assert "complete since" not in run(folder, "-o", out, "--overwrite")[2]


def test_an_input_out_of_reach_takes_no_finished_case_away(run, folder, tmp_path):
    out, path = tmp_path / "out", folder / "a.nii.gz"
    run(folder, "-o", out)
    path.rename(tmp_path / "away")
    path.symlink_to(tmp_path / "nowhere")
    assert run(folder, "-o", out)[0] == 8
    assert table(out)["a"]["error"] == "unreadable"
    path.unlink()
    (tmp_path / "away").rename(path)
    code, _, stderr = run(folder, "-o", out)
    assert code == 0
    assert stderr.count("complete since an earlier run") == 3
    assert table(out)["a"]["status"] == "ok"


def test_retry_failed_does_what_failed_and_nothing_else(run, folder, tmp_path):
    out = tmp_path / "out"
    good = (folder / "b.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(good[:-200])
    assert run(folder, "-o", out)[0] == 8
    (folder / "b.nii.gz").write_bytes(good)
    (out / "c" / "c.ply").unlink()
    code, stdout, stderr = run(folder, "-o", out, "--retry-failed")
    assert code == 0
    assert stdout.splitlines() == [str(out / "b" / "b.ply")]
    assert "1 file(s) failed before and are tried again" in stderr
    assert [line["status"] for line in table(out).values()] == ["ok"] * 3
    assert "0 file(s) failed before" in run(folder, "-o", out, "--retry-failed")[2]
    assert run(folder, "-o", out)[1].splitlines()[2] == str(out / "c" / "c.ply")


def test_an_occupied_name_costs_that_case_only(run, folder, tmp_path):
    out = tmp_path / "out"
    (out / "c" / "c.ply").mkdir(parents=True)
    (out / "a").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (out / "b").symlink_to(tmp_path / "elsewhere")
    save(folder / "d.nii.gz", wall())
    code, stdout, stderr = run(folder, "-o", out)
    assert code == 8
    assert stdout.splitlines() == [str(out / "d" / "d.ply")]
    rows = table(out)
    assert [rows[case]["error"] for case in "abcd"] == ["occupied"] * 3 + [""]
    assert "a: a.nii.gz: 'a' in --out is a link or a file" in stderr
    assert (out / "a").read_text() == "mine"
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.parametrize(
    "engine",
    [
        StubEngine(threads=2),
        StubEngine(device="cuda:0"),
        StubEngine(description="onnxruntime 9 on cpu, 1 thread(s)"),
    ],
)
def test_another_engine_does_the_cases_anew(run, folder, tmp_path, monkeypatch, engine):
    run(folder, "-o", tmp_path / "out")
    monkeypatch.setattr(session, "open_reconstructor", StubOpener(engine=engine))
    assert "complete since" not in run(folder, "-o", tmp_path / "out")[2]
    assert run(folder, "-o", tmp_path / "out")[2].count("complete since") == 3


def test_the_distance_kernel_is_told_recorded_and_bound(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(mesh_distance, "KERNEL", "native")
    assert "SciPy" not in run(folder, "-o", out)[2]
    assert json.loads((out / "run.json").read_text())["distance_kernel"] == "native"
    monkeypatch.setattr(mesh_distance, "KERNEL", "scipy")
    stderr = run(folder, "-o", out)[2]
    assert "distances come from SciPy" in stderr
    assert "complete since" not in stderr
    assert json.loads((out / "run.json").read_text())["distance_kernel"] == "scipy"


def test_dry_run_writes_nothing(run, folder, tmp_path):
    (folder / "d.nii").write_bytes(b"junk")
    code, stdout, stderr = run(folder, "-o", tmp_path / "out", "--dry-run")
    assert code == 8
    assert len(stdout.splitlines()) == 3
    assert stderr.count("would run") == 3
    assert not (tmp_path / "out").exists()


@pytest.fixture
def forbidden(tmp_path):
    """A folder that may be read but not written."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_a_dry_run_tells_that_the_output_could_not_be_written(run, folder, tmp_path, forbidden):
    (tmp_path / "file").write_text("mine")
    impossible = [tmp_path / "file", tmp_path / "file" / "out", tmp_path / ("x" * 300)]
    if not os.access(forbidden, os.W_OK):  # root may write anywhere
        impossible += [forbidden, forbidden / "new" / "out"]
    for out in impossible:
        code, stdout, stderr = run(folder, "-o", out, "--dry-run", "-q")
        assert (code, stdout) == (6, "")
        assert str(out) in stderr
        assert run(folder, "-o", out, "-q")[0] == 6
    assert (tmp_path / "file").read_text() == "mine"


def test_a_dry_run_tells_that_the_disk_is_read_only(run, folder, tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    code, _, stderr = run(folder, "-o", tmp_path / "out", "--dry-run", "-q")
    assert code == 6
    assert "Read-only file system" in stderr


@pytest.mark.parametrize("out", ["there", "new", "new/below"])
def test_a_dry_run_leaves_the_output_as_it_is(run, folder, tmp_path, out):
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(folder, "-o", tmp_path / out, "--dry-run")[0] == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_may_be_in_capitals(run, folder, tmp_path):
    assert run(folder, "-o", tmp_path / "out", "--labels", "ACDC")[0] == 0
    assert "complete since" in run(folder, "-o", tmp_path / "out", "--labels", "acdc")[2]
    assert run(folder, "-o", tmp_path / "other", "--labels", "Myo=2")[0] == 0


@pytest.mark.parametrize("option", ["--samples", "--refine"])
def test_other_samples_or_refinement_do_the_cases_anew(run, folder, tmp_path, option):
    run(folder, "-o", tmp_path / "out")
    again = run(folder, "-o", tmp_path / "out", option, "2")[2]
    assert "complete since" not in again
    assert again.count("done before, but by another engine") == 1
    assert run(folder, "-o", tmp_path / "out", option, "2")[2].count("complete since") == 3
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"][option.strip("-")] == 2


def test_flags_are_in_the_table_in_the_record_and_told_at_the_end(run, folder, tmp_path, monkeypatch):
    flags = {1: ("torn_wall",), 3: ("torn_wall", "few_slices")}
    stub = StubReconstructor(flags=flags)
    monkeypatch.setattr(session, "open_reconstructor", lambda *_: (StubBundle(), StubEngine(), stub))
    for _ in ("done now", "complete since an earlier run"):
        stderr = run(folder, "-o", tmp_path / "out")[2]
        assert "2 case(s) flagged: torn_wall 2, few_slices 1" in stderr.splitlines()
    found = table(tmp_path / "out")
    assert [found[case]["flags"] for case in "abc"] == ["torn_wall", "", "torn_wall few_slices"]
    assert json.loads((tmp_path / "out" / "c" / "c.json").read_text())["row"]["flags"] == "torn_wall few_slices"
    assert float(found["a"]["agreement_least"]) < float(found["a"]["agreement_mean"]) < 1


def test_the_spread_is_in_the_table_and_formats_without_it_are_told(run, folder, tmp_path, monkeypatch):
    stub = StubReconstructor(spread=0.75)
    monkeypatch.setattr(session, "open_reconstructor", lambda *_: (StubBundle(), StubEngine(), stub))
    stderr = run(folder, "-o", tmp_path / "out", "--samples", "3", "--format", "stl,ply,obj")[2]
    assert "stl, obj: without the spread, which ply and vtp hold" in stderr
    row = table(tmp_path / "out")["a"]
    assert (row["spread_mean_mm"], row["spread_p95_mm"]) == ("0.75", "0.75")
    assert b"spread_mm" in (tmp_path / "out" / "a" / "a.ply").read_bytes()[:400]
    assert "without the spread" not in run(folder, "-o", tmp_path / "b", "--samples", "3")[2]


def test_verbose_tells_decisions_and_times(run, folder, tmp_path):
    stderr = run(folder / "a.nii.gz", "-o", tmp_path / "out", "-v")[2]
    assert "rings label 3" in stderr
    assert "mc 0.25 s" in stderr


def test_version_and_help(run):
    assert run("--version")[1].startswith("m2s-run ")
    code, stdout, _ = run("--help")
    assert code == 0
    for option in ("--labels", "--frames", "--format", "--space", "--save", "--dry-run", "--threads"):
        assert option in stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from m2s_runtime import cli; cli.run(['--help'])\n"
        "heavy = {'numpy', 'scipy', 'nibabel', 'skimage', 'trimesh', 'onnxruntime', 'rich', 'torch', 'monai', 'm2s'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(RUNTIME)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_batch_never_imports_torch(folder, tmp_path):
    process = start(folder, "-o", tmp_path / "out", trouble="1: 'modules'")
    _, stderr = process.communicate(timeout=300)
    assert "RuntimeError: torch: False" in stderr


def test_the_real_command_never_imports_what_only_training_needs(tmp_path):
    pytest.importorskip("onnxruntime")
    example = HERE.parents[1] / "examples" / "labelled.nii.gz"
    if not example.is_file():
        pytest.skip(f"no {example}")
    code = (
        "import sys; from m2s_runtime import cli; code = cli.run(sys.argv[1:])\n"
        "found = sorted({'torch', 'monai', 'm2s'} & set(sys.modules))\n"
        "sys.exit(f'imported {found}' if found else code)"
    )
    arguments = [str(example), "--out", str(tmp_path / "out"), "--steps", "1", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(RUNTIME)}
    environment.pop("M2S_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert [Path(line).suffix for line in done.stdout.splitlines()] == [".ply"]


def test_killed_in_the_middle_then_resumed(folder, tmp_path):
    start(folder, "-o", tmp_path / "whole").communicate(timeout=300)
    out = tmp_path / "out"
    process = start(folder, "-o", out, "--jobs", "0", trouble="2: 'kill'")
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert sorted(p.name for p in out.rglob("*.ply")) == ["a.ply"]
    process = start(folder, "-o", out)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert stderr.count("complete since an earlier run") == 1
    same = [name for name in digests(out) if name.endswith(".ply")]
    assert same == ["a/a.ply", "b/b.ply", "c/c.ply"]
    assert {name: digests(out)[name] for name in same} == {name: digests(tmp_path / "whole")[name] for name in same}


@pytest.mark.parametrize(
    ("number", "code", "ending"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupted(folder, tmp_path, number, code, ending):
    out = tmp_path / "out"
    process = start(folder, "-o", out, trouble="2: 'hang'")
    deadline = time.monotonic() + 300
    while not (out / "a" / "a.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert list(table(out)) == ["a"]
    assert json.loads((out / "run.json").read_text())["exit_code"] == code
    assert f"{ending}: 1 done; see {out / 'cases.csv'}" in stderr
    assert sorted(path.name for path in out.iterdir()) == ["a", "cases.csv", "run.json"]


def test_a_reader_that_leaves_does_not_end_the_run(folder, tmp_path):
    process = start(folder, "-o", tmp_path / "out", "-q")
    process.stdout.close()
    assert process.wait(timeout=300) == 0, process.stderr.read()
    process.stderr.close()
    assert len(list((tmp_path / "out").rglob("*.ply"))) == 3


def test_readers_that_leave_change_neither_code_nor_record(folder, tmp_path):
    (folder / "d.nii.gz").write_bytes(b"junk")
    process = start(folder, "-o", tmp_path / "out")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=300) == 8
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == 8
    assert len(table(tmp_path / "out")) == 4


@pytest.mark.skipif(os.name == "nt", reason="a shell's way to close streams")
def test_closed_streams_are_no_obstacle(folder, tmp_path):
    process = start(folder, "-o", tmp_path / "out", before="import os\nos.closerange(0, 3)")
    assert process.wait(timeout=300) == 0
    assert len(list((tmp_path / "out").rglob("*.ply"))) == 3


def test_a_finished_cine_is_not_read_again_and_what_is_missing_of_it_is_noticed(run, tmp_path, monkeypatch):
    from m2s_runtime import batch

    frames = [wall(scale=0.6), wall(scale=0.55)]
    path = save(tmp_path / "in" / "a.nii.gz", np.stack(frames, axis=3))
    out = tmp_path / "out"
    words = (tmp_path / "in", "-o", out, "--format", "vtp")
    reads = []
    read = batch.read_study
    monkeypatch.setattr(batch, "read_study", lambda *given: (reads.append(1), read(*given))[1])

    def again(*more):
        reads.clear()
        code, stdout, stderr = run(*words, *more)
        assert code == 0
        assert len(stdout.splitlines()) == 2
        return len(reads), stderr.count("complete since")

    assert again() == (1, 0)
    assert again() == (0, 2)
    assert again("--frames", "0,1") == (1, 2)
    (out / "a.pvd").unlink()
    assert again("--frames", "0,1") == (1, 2)
    assert (out / "a.pvd").is_file()
    assert again("--frames", "0,1") == (0, 2)
    (out / "a_t01" / "a_t01.vtp").write_bytes(b"")
    assert again("--frames", "0,1") == (1, 1)
    os.utime(path, ns=(0, 0))
    assert again("--frames", "0,1") == (0, 2)
    save(path, np.stack(frames[::-1], axis=3))
    assert again("--frames", "0,1") == (1, 0)
    assert again("--frames", "0,1", "--overwrite") == (1, 0)
