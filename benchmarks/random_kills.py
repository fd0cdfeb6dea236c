"""Kill `m2s-run` at random moments, start it again, and look what is lost.

    python benchmarks/random_kills.py --work runs/random-kills

Each kill takes, in turn: a run in a single process, a whole run with its worker, the parent alone, or a worker alone.
After each, every case that was finished before must still be, and every file under its final name must be whole; once a
run gets through, its meshes must be those of an undisturbed run, byte for byte. Exit code 1 when anything is lost.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
from many_cases import instant, make_inputs

from m2s_runtime import cli, session

KINDS = ("inline", "inline", "inline", "group", "inline", "parent", "inline", "worker")
PATIENCE = 300.0


@dataclass
class Toll:
    """What was seen so far."""

    kills: int = 0
    rounds: int = 0
    lost: int = 0
    partial: int = 0
    different: int = 0


def start(kind: str, words: list[str]) -> int:
    """Process id of a run, the leader of a process group of its own."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    if kind != "inline":
        os.execv(sys.executable, [sys.executable, __file__, "m2s-run", *words])  # noqa: S606
    session.open_reconstructor = instant  # type: ignore[assignment]
    os._exit(cli.run([*words, "--jobs", "0"]))


def ended(pid: int) -> bool:
    """Whether a child has ended; it is taken away then."""
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def family(pid: int) -> list[int]:
    """Living children of a process, by /proc, but for Python's resource tracker."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == str(pid) and state != "Z" and b"resource_tracker" not in command:
            found.append(int(folder.name))
    return found


def kill_somewhere(kind: str, pid: int, out: Path, span: float, dice: random.Random) -> bool:
    """Wait for a random moment after work has begun, then kill; False when the run was over before."""
    deadline = time.monotonic() + PATIENCE
    while not (out / ".lock-1-of-1").exists() and time.monotonic() < deadline:
        if ended(pid):
            return False
        time.sleep(0.002)
    time.sleep(dice.uniform(0.0, span))
    children = family(pid)
    victim = pid if kind != "worker" else dice.choice(children or [pid])
    if kind == "group":
        os.killpg(pid, signal.SIGKILL)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)  # a worker ends by itself once its parent is gone
    return victim != pid or os.WIFSIGNALED(status)


def finished(out: Path) -> set[str]:
    """Cases with a completion record whose files are all there and whole, read without the runtime's own code."""
    found: set[str] = set()
    for path in (folder / f"{folder.name}.json" for folder in out.iterdir()):
        if not path.is_file():
            continue
        record = json.loads(path.read_bytes())
        files = {name: path.with_name(name) for name in record["outputs"]}
        if record["row"]["status"] == "ok" and all(
            file.exists() and sha256(file) == record["outputs"][name] for name, file in files.items()
        ):
            found.add(path.stem)
    return found


def sha256(path: Path) -> str:
    """Hash of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def meshes(out: Path) -> dict[str, str]:
    """Hash of every mesh under its final name."""
    return {path.name: sha256(path) for path in out.glob("*/*.ply") if not path.name.startswith(".")}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/random-kills"), show_default=True)
@click.option("--kills", type=click.IntRange(1), default=200, show_default=True)
@click.option("--cases", type=click.IntRange(2), default=25, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def main(work: Path, kills: int, cases: int, seed: int) -> None:
    """Kill, count and print."""
    shutil.rmtree(work, ignore_errors=True)
    make_inputs(work / "in", cases)
    whole, out = work / "whole", work / "out"
    common = [str(work / "in"), "-q", "--threads", "1", "-o"]
    began = time.monotonic()
    if os.waitpid(start("inline", [*common, str(whole)]), 0)[1]:
        raise click.ClickException("the undisturbed run failed")
    span, expected = time.monotonic() - began, meshes(whole)
    dice, toll, before = random.Random(seed), Toll(), set[str]()  # noqa: S311
    while toll.kills < kills or before:
        kind = KINDS[toll.kills % len(KINDS)]
        pid = start(kind, [*common, str(out)])
        if toll.kills < kills:
            toll.kills += kill_somewhere(kind, pid, out, span, dice)
        else:
            os.waitpid(pid, 0)
        now, seen = finished(out), meshes(out)
        toll.lost += len(before - now)
        toll.partial += sum(seen[name] != expected[name] for name in seen)
        before = now
        if len(now) == cases:
            toll.rounds += 1
            toll.different += seen != expected
            shutil.rmtree(out)
            before = set()
    print(f"kills: {toll.kills}, over {toll.rounds} runs of {cases} cases")
    print(f"finished cases lost: {toll.lost}; files that were not whole: {toll.partial}")
    print(f"reruns byte-identical to an undisturbed run: {toll.rounds - toll.different} of {toll.rounds}")
    sys.exit(1 if toll.lost or toll.partial or toll.different else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["m2s-run"]:
        session.open_reconstructor = instant  # type: ignore[assignment]
        sys.exit(cli.run(sys.argv[2:]))
    main()
