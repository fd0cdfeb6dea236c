"""Files are whole or absent, whatever interrupts the writer."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m2s_runtime import atomic
from m2s_runtime.errors import OutputError
from m2s_runtime.maker import maker


def test_writes_and_returns_the_hash(tmp_path):
    digest = atomic.write_bytes(tmp_path / "a.ply", b"abc")
    assert (tmp_path / "a.ply").read_bytes() == b"abc"
    assert digest == hashlib.sha256(b"abc").hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_text_is_utf8(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "µm")
    assert (tmp_path / "a.txt").read_bytes() == "µm".encode()


@pytest.mark.parametrize("interruption", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch, interruption):
    target = tmp_path / "a.ply"
    target.write_bytes(b"old")

    def fail(_):
        raise interruption

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(interruption, KeyboardInterrupt) else OutputError):
        atomic.write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_a_missing_folder_is_an_output_error_that_names_the_file(tmp_path):
    with pytest.raises(OutputError, match=r"gone.*a\.ply.*another place"):
        atomic.write_bytes(tmp_path / "gone" / "a.ply", b"")


def test_a_link_is_replaced_and_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link = tmp_path / "a.ply"
    link.symlink_to(victim)
    atomic.write_bytes(link, b"mesh")
    assert victim.read_bytes() == b"precious"
    assert not link.is_symlink()


def test_the_file_obeys_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        atomic.write_bytes(tmp_path / "a.ply", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.ply").stat().st_mode & 0o777 == 0o640


def test_sweep_takes_leftovers_of_the_dead_and_leaves_the_living(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from m2s_runtime import atomic\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"atomic.write_bytes(Path({str(tmp_path)!r}) / 'a.ply', b'half')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(atomic.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    (leftover,) = tmp_path.iterdir()
    parent = leftover.with_name(leftover.name.replace(leftover.name.split("-")[-2], str(os.getppid())))
    parent.write_bytes(b"another process writes this now")
    foreign = tmp_path / ".a.ply.00000000-1-0.tmp"
    foreign.write_bytes(b"from another machine")
    (tmp_path / ".notes.tmp").write_bytes(b"not ours")

    assert atomic.sweep(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([parent.name, foreign.name, ".notes.tmp"])
    os.utime(foreign, (time.time() - 2 * 86400,) * 2)
    assert atomic.sweep(tmp_path) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells that a process has ended")
def test_a_process_that_ended_but_was_never_cleared_is_gone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        leftover = tmp_path / f".a.ply.{maker().partition('-')[0]}-{child.pid}-0.tmp"
        leftover.write_bytes(b"half")
        assert atomic.sweep(tmp_path) == 0
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert atomic.sweep(tmp_path) == 1


def test_staged_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with atomic.Staging(tmp_path) as staging:
        staging.add("a", b"new")
        staging.add("b", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
    with atomic.Staging(tmp_path) as staging:
        written = [staging.add(name, name.encode()) for name in "ab"]
        assert not (tmp_path / "b").exists()
        staging.commit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"a", "b": b"b"}
    for name, file in zip("ab", written, strict=True):
        seen = (tmp_path / name).stat()
        assert (file.size, file.changed) == (seen.st_size, seen.st_mtime_ns)
        assert file.sha256 == hashlib.sha256(name.encode()).hexdigest()


def test_an_edit_right_after_writing_changes_the_time(tmp_path):
    for index in range(50):
        with atomic.Staging(tmp_path) as staging:
            written = staging.add(f"{index}", b"mesh", flush=False)
            staging.commit(flush=False)
        (tmp_path / f"{index}").write_bytes(b"mess")
        assert (tmp_path / f"{index}").stat().st_mtime_ns != written.changed
