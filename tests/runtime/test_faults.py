"""Faults made real: a kill before every single file operation, a disk that is full, one that is read-only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runtime.stub import StubOpener, digests, save, wall

from m2s_runtime import cli, session

HERE = Path(__file__).parent
RUNTIME = Path(cli.__file__).parents[1]

KILLER = """
import os, shutil, signal, sys
from pathlib import Path
from m2s_runtime import cli, session
from stub import StubBundle, StubEngine, StubReconstructor

class Remembering(StubReconstructor):
    known = {}
    def reconstruct(self, canonical, noise_key, shared=None):
        if noise_key not in self.known:
            self.known[noise_key] = super().reconstruct(canonical, noise_key, shared)
        return self.known[noise_key]

inputs, base, out, kept = map(Path, sys.argv[1:])
session.open_reconstructor = lambda _: (StubBundle(), StubEngine(), Remembering())
cli.run([str(inputs), "-o", str(out / "warm"), "-q", "--jobs", "0"])  # everything is loaded when the forks start

def run(target, kill_before):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and any(str(target) in str(a) for a in arguments):
            seen += 1
            if seen > kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
    if kill_before is not None:
        sys.addaudithook(hook)
    os._exit(cli.run([str(inputs), "-o", str(target), "-q", "--jobs", "0"]))

step = 0
while True:
    target = out / f"{step:03d}"
    shutil.copytree(base, target)
    code = run(target, step)
    shutil.copytree(target, kept / target.name)
    rerun = run(target, None)
    print("step", step, code, rerun, flush=True)
    if code != -signal.SIGKILL:
        break
    step += 1
"""


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(RUNTIME), str(HERE), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def run(monkeypatch, capfd):
    def call(*arguments, opener=StubOpener()):  # noqa: B008 - frozen
        monkeypatch.setattr(session, "open_reconstructor", opener)
        code = cli.run(["--jobs", "0", "-q", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate("ab"):
        save(tmp_path / "in" / f"{name}.nii.gz", wall(scale=0.6 - index / 40))
    return tmp_path / "in"


def meshes(out):
    return {name: digest for name, digest in digests(out).items() if name.endswith(".ply")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork")
def test_a_kill_before_any_file_operation_loses_nothing_and_shows_nothing_partial(run, folder, tmp_path):
    """Case `a` is finished, `b` was made with another seed and is replaced."""
    base, whole, out, kept = (tmp_path / name for name in ("base", "whole", "out", "kept"))
    run(folder, "-o", base, "--seed", "1")
    old = digests(base)
    shutil.rmtree(base / "a")
    run(folder / "a.nii.gz", "-o", base)
    run(folder, "-o", whole)
    finished = {name: digest for name, digest in digests(base).items() if name.startswith("a/")}
    allowed = {old["b/b.ply"], meshes(whole)["b/b.ply"]}
    words = [sys.executable, "-c", KILLER, *map(str, (folder, base, out, kept))]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("step ")]
    assert len(lines) > 12, done.stderr
    assert {code for _, code, _ in lines[:-1]} == {"-9"}
    assert lines[-1][1:] == ["0", "0"]
    for step, _, rerun in lines:
        name = f"{int(step):03d}"
        found = digests(kept / name)
        assert {key: digest for key, digest in found.items() if key.startswith("a/")} == finished
        assert found.get("b/b.ply", old["b/b.ply"]) in allowed
        assert rerun == "0"
        assert meshes(out / name) == meshes(whole)
        assert not [key for key in digests(out / name) if key.endswith(".tmp") or ".lock" in key]


FULL = """
mount -t tmpfs -o size=$ROOM tmpfs "$1" || exit 77
results=$2; shift 2
"$@"; first=$?
find "$OUT" -name '*.tmp' | wc -l > "$results/leftovers"
mkdir "$results/first" && cp -r "$OUT/." "$results/first"
mount -o remount,size=100m "$MOUNT"
"$@"; second=$?
cp -r "$OUT/." "$results/second"
mount -o remount,ro "$MOUNT"
"$@" --overwrite; echo "$first $second $?" > "$results/codes"
cp -r "$OUT/." "$results/third"
"""


@pytest.mark.parametrize("how", [("--jobs", "0"), ("--jobs", "1", "--batch-size", "4")])
def test_a_full_disk_and_a_read_only_one_end_the_run_and_a_rerun_is_like_an_undisturbed_one(run, tmp_path, how):
    """On a real, small file system; where none may be mounted, the fake of `test_cli` has to do."""
    if not shutil.which("unshare"):
        pytest.skip("no unshare, so no file system of its own")
    for index in range(6):
        save(tmp_path / "in" / f"{index}.nii.gz", wall(scale=0.6 - index / 40))
    run(tmp_path / "in", "-o", tmp_path / "whole")
    whole = meshes(tmp_path / "whole")
    room = sum((tmp_path / "whole" / name).stat().st_size for name in whole) // 2
    mount, results = tmp_path / "disk", tmp_path / "results"
    mount.mkdir()
    results.mkdir()
    out = mount / "out"
    code = "import sys; from m2s_runtime import cli, session; from stub import StubOpener\n"
    code += "session.open_reconstructor = StubOpener(); sys.exit(cli.run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(tmp_path / "in"), "-o", str(out), "-q", *how]
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", FULL, "bash", str(mount), str(results), *command],
        env=environment() | {"OUT": str(out), "MOUNT": str(mount), "ROOM": str(room)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    assert (results / "codes").read_text().split() == ["6", "0", "6"], done.stderr
    assert "No space left on device" in done.stderr
    assert (results / "leftovers").read_text().strip() == "0"
    first = meshes(results / "first")
    assert 0 < len(first) < 6
    assert first.items() <= whole.items()
    assert meshes(results / "second") == whole
    assert "Read-only file system" in done.stderr
    assert digests(results / "third") == digests(results / "second")


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_a_read_only_output_is_6_and_leaves_no_trace(run, folder, read_only):
    if os.access(read_only, os.W_OK):
        pytest.skip("root may write anywhere")
    for out in (read_only, read_only / "new"):
        code, stdout, stderr = run(folder, "-o", out)
        assert (code, stdout) == (6, "")
        assert str(out) in stderr
    assert not list(read_only.iterdir())
