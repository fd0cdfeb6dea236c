"""Kills, signals and readers that leave: what is finished stays, and exit code and record agree."""

import json
import os
import signal
import time

import pytest
from runtime.command import start, table
from runtime.stub import digests


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
    process = start(folder, "-o", out, "--jobs", "1", trouble="2: 'hang'")
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
    assert sorted(path.name for path in out.iterdir()) == ["a", "cases.csv", "report.html", "run.json"]


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
