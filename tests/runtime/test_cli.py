"""The command as a user meets it: exit codes, one clear line a failure, what goes to stdout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runtime.command import HERE, RUNTIME, start, table
from runtime.stub import StubBundle, StubEngine, StubOpener, StubReconstructor, save, wall

from m2s_runtime import session
from m2s_runtime.errors import BundleError, EngineError


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
        (["--base-limit", "-1"], "--base-limit"),
        (["--base-limit", "nan"], "--base-limit"),
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


@pytest.mark.parametrize(("asked", "used"), [(None, "1"), ("3", "3")])
def test_blas_has_one_thread_unless_the_user_says_otherwise(asked, used):
    """Set before NumPy loads it; threads that wait for each other have cost up to a second a heart."""
    code = "import os; from m2s_runtime import cli; cli.run(['--version']); print(os.environ['OPENBLAS_NUM_THREADS'])"
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"} | {"PYTHONPATH": str(RUNTIME)}
    environment |= {"OPENBLAS_NUM_THREADS": asked} if asked else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == used


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
