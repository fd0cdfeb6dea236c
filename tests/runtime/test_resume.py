"""The same command again: what is complete is skipped, and what is not, or was made otherwise, is done."""

import json
import os

import numpy as np
import pytest
from runtime.command import table
from runtime.stub import StubEngine, StubOpener, save, wall

from m2s_runtime import mesh_distance, session


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


def test_labels_may_be_in_capitals(run, folder, tmp_path):
    assert run(folder, "-o", tmp_path / "out", "--labels", "ACDC")[0] == 0
    assert "complete since" in run(folder, "-o", tmp_path / "out", "--labels", "acdc")[2]
    assert run(folder, "-o", tmp_path / "other", "--labels", "Myo=2")[0] == 0


@pytest.mark.parametrize("option", ["--samples", "--refine", "--base-limit"])
def test_other_samples_refinement_or_base_do_the_cases_anew(run, folder, tmp_path, option):
    run(folder, "-o", tmp_path / "out")
    again = run(folder, "-o", tmp_path / "out", option, "2")[2]
    assert "complete since" not in again
    assert again.count("done before, but by another engine") == 1
    assert run(folder, "-o", tmp_path / "out", option, "2")[2].count("complete since") == 3
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"][option.strip("-").replace("-", "_")] == 2


def test_a_finished_cine_is_not_read_again_and_what_is_missing_of_it_is_noticed(run, tmp_path, monkeypatch):
    from m2s_runtime import opened

    frames = [wall(scale=0.6), wall(scale=0.55)]
    path = save(tmp_path / "in" / "a.nii.gz", np.stack(frames, axis=3))
    out = tmp_path / "out"
    words = (tmp_path / "in", "-o", out, "--format", "vtp")
    reads = []
    read = opened.read_study
    monkeypatch.setattr(opened, "read_study", lambda *given: (reads.append(1), read(*given))[1])

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
