"""Several cases under way in one process: what one of them does costs the others time at most. Real processes."""

import csv
import hashlib
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest
from runtime.command import start, table
from runtime.stub import NOT_FINITE, StubOpener, digests, save, wall

from m2s_runtime import cli, session
from m2s_runtime.errors import EngineError, OutputError, UsageProblem

FOUR = ("--jobs", "1", "--batch-size", "4")
NAMES = "abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    for index, name in enumerate(NAMES):
        save(folder / "in" / f"{name}.nii.gz", wall(scale=0.8 - index / 40))
    return folder / "in"


@pytest.fixture(scope="module")
def sha(folder):
    return {name: hashlib.sha256((folder / f"{name}.nii.gz").read_bytes()).hexdigest() for name in NAMES}


@pytest.fixture
def run(monkeypatch, capfd):
    def call(*arguments, opener=StubOpener()):  # noqa: B008 - frozen
        monkeypatch.setattr(session, "open_reconstructor", opener)
        code = cli.run([*map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Meshes of an undisturbed run, one case after the other."""
    out = tmp_path_factory.mktemp("whole")
    process = start(folder, "-o", out / "out", "--jobs", "0", "-q")
    assert process.wait(300) == 0, process.communicate()
    return meshes(out / "out")


def meshes(out):
    return {name: digest for name, digest in digests(out).items() if name.endswith(".ply")}


def errors(out):
    return {case: row["error"] for case, row in table(out).items() if row["error"]}


def leftovers(out):
    return [path for path in out.rglob(".*") if path.name.endswith(".tmp")]


def test_a_crowd_gives_the_bytes_of_one_case_after_the_other_and_resumes(run, folder, tmp_path, whole):
    out = tmp_path / "out"
    assert run(folder, "-o", out, *FOUR)[0] == 0
    assert meshes(out) == whole
    assert "6 complete" in run(folder, "-o", out, "--jobs", "0")[2]


def test_what_is_the_matter_with_one_case_is_its_own_affair(run, folder, tmp_path, sha, whole):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for path in folder.iterdir():
        os.link(path, inputs / path.name)
    (inputs / "g.nii.gz").write_bytes(b"junk")
    save(inputs / "h.nii.gz", np.zeros((48, 48, 10), np.uint8))
    trouble = {sha["b"]: NOT_FINITE, sha["d"]: KeyError("deep")}
    assert run(inputs, "-o", tmp_path / "out", *FOUR, opener=StubOpener(trouble))[0] == 8
    found = errors(tmp_path / "out")
    assert (found["b"], found["d"], found["g"]) == ("not-finite", "bug", "unreadable")
    assert sorted(found) == ["b", "d", "g", "h"]
    assert meshes(tmp_path / "out") == {n: d for n, d in whole.items() if n[0] in "acef"}


def test_a_crash_costs_the_guilty_case_and_the_others_are_done_again(run, folder, tmp_path, sha, whole):
    out, log = tmp_path / "out", tmp_path / "log"
    trouble = {key: "kill in company" if name == "b" else "slow" for name, key in sha.items()}
    code, stdout, stderr = run(folder, "-o", out, *FOUR, opener=StubOpener(trouble, log=log))
    assert code == 8
    assert errors(out) == {"b": "crashed"}
    assert "b: b.nii.gz: its process died (signal 9)" in stderr
    assert len(stdout.splitlines()) == 5
    assert not leftovers(out)
    begun = Counter(log.read_text().split())
    assert begun[sha["b"]] == 2  # among others, then alone
    assert sum(begun.values()) > 7  # those that it took along, again
    assert all(count <= 2 for count in begun.values())
    code, _, stderr = run(folder, "-o", out, *FOUR, "--retry-failed")
    assert (code, meshes(out)) == (0, whole)
    assert "1 done;" in stderr


def test_a_case_that_hangs_fails_alone(run, folder, tmp_path, sha, whole):
    out = tmp_path / "out"
    trouble = StubOpener({sha["c"]: "hang"})
    code, _, stderr = run(folder, "-o", out, *FOUR, "--timeout", "6", opener=trouble)
    assert code == 8
    assert errors(out) == {"c": "timeout"}
    assert "c: c.nii.gz: took longer than --timeout 6 seconds" in stderr
    assert meshes(out) == {n: d for n, d in whole.items() if n[0] != "c"}


def test_a_case_that_waits_for_a_seat_is_not_late(run, tmp_path):
    path, log = cine(tmp_path / "in", "a", frames=10), tmp_path / "log"
    for name in "bcd":
        save(tmp_path / "in" / f"{name}.nii.gz", wall(scale=0.7))
    trouble = {hashlib.sha256(path.read_bytes()).hexdigest(): "slow"}
    words = ("--jobs", "1", "--batch-size", "2", "--timeout", "4", "--own-shifts")
    assert run(tmp_path / "in", "-o", tmp_path / "out", *words, opener=StubOpener(trouble, log=log))[0] == 0
    assert len(log.read_text().split()) == 13  # nothing was done twice


def cine(folder, name="cine", frames=5):
    path = folder / f"{name}.nii.gz"
    return save(path, np.stack([wall(scale=0.8 - k / 40) for k in range(frames)], axis=3))


def test_frames_of_a_cine_go_side_by_side_and_come_to_the_same(run, tmp_path):
    cine(tmp_path / "in")
    words = (tmp_path / "in", "--format", "vtp", "--save", "shifts", "--frames", "0,1,2,4")
    assert run(*words, "-o", tmp_path / "one", "--jobs", "0")[0] == 0
    assert run(*words, "-o", tmp_path / "four", *FOUR)[0] == 0
    one, four = ({n: d for n, d in digests(tmp_path / out).items() if n.endswith((".vtp", ".pvd", "shifts.json"))}
                 for out in ("one", "four"))  # fmt: skip
    assert len(one) == 9
    assert one == four
    assert "4 complete" in run(*words, "-o", tmp_path / "four", *FOUR)[2]


def test_a_poison_frame_leaves_those_beside_it(run, tmp_path):
    cine(tmp_path / "in")
    out = tmp_path / "out"
    # The second call of a process, so that the frames that are done again alone meet it too.
    code, *_ = run(tmp_path / "in", "-o", out, *FOUR, opener=StubOpener({2: "kill"}))
    assert code == 8
    rows = table(out)
    assert len(rows) == 5
    assert {row["error"] for row in rows.values()} == {"", "crashed"}
    assert run(tmp_path / "in", "-o", out)[0] == 0
    run(tmp_path / "in", "-o", tmp_path / "whole", "--jobs", "0")
    assert meshes(out) == meshes(tmp_path / "whole")
    assert not leftovers(out)


@pytest.mark.parametrize(("error", "code"), [(EngineError("device lost"), 5), (OutputError("disk full"), 6)])
def test_what_no_case_survives_ends_the_run(run, folder, tmp_path, sha, error, code):
    out = tmp_path / "out"
    found, _, stderr = run(folder, "-o", out, "-q", *FOUR, opener=StubOpener({sha["e"]: error}))
    assert found == code
    assert stderr.splitlines() == [f"m2s-run: error: {error}"]
    assert {row["status"] for row in table(out).values()} <= {"ok"}
    assert not leftovers(out)
    assert run(folder, "-o", out, "-q", *FOUR)[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_with_all_seats_taken(run, folder, tmp_path, sha, whole, number, code):
    out = tmp_path / "out"
    trouble = ", ".join(f"{sha[name]!r}: 'hang'" for name in "bcde")
    process = start(folder, "-o", out, *FOUR, trouble=trouble)
    deadline = time.monotonic() + 300
    while not (out / "a" / "a.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    with (out / "cases.csv").open() as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["a"]
    assert not leftovers(out)
    assert run(folder, "-o", out, *FOUR)[0] == 0
    assert meshes(out) == whole


def test_one_process_for_all_has_no_crowd(run, folder, tmp_path):
    code, _, stderr = run(folder, "-o", tmp_path / "out", "--jobs", "0", "--batch-size", "4")
    assert code == UsageProblem.exit_code
    assert "leave out --batch-size 4" in stderr
    assert run(folder, "-o", tmp_path / "out", "--batch-size", "many")[0] == 2
