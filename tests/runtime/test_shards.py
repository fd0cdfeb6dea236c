"""Shards of a run share one folder; the last one that ends makes the tables of all."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime.stub import StubOpener, digests, save, wall

from m2s_runtime import cli, run_file, session
from m2s_runtime.errors import OutputError, UsageProblem
from m2s_runtime.lock import Lock
from m2s_runtime.shards import Shard


def slurm(task, first, last, count, step=1):
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@given(st.integers(1, 9), st.text(max_size=20))
def test_every_case_is_in_one_shard(count, case):
    assert sum(Shard(number, count).holds(case) for number in range(1, count + 1)) == 1


def test_shards_are_of_much_the_same_size():
    cases = [f"sub-{index:05d}_ses-1" for index in range(8000)]
    sizes = [sum(map(Shard(number, 8).holds, cases)) for number in range(1, 9)]
    assert max(sizes) - min(sizes) < 200


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("1/1", {}, Shard()),
        ("2/8", {}, Shard(2, 8)),
        (" 8/8 ", slurm(1, 1, 2, 2), Shard(8, 8)),
        ("auto", {}, Shard()),
        ("auto", slurm(0, 0, 7, 8), Shard(1, 8)),
        ("AUTO", slurm(7, 0, 7, 8), Shard(8, 8)),
        ("auto", slurm(5, 1, 9, 5, 2), Shard(3, 5)),
    ],
)
def test_what_shards_are_called(text, environment, shard):
    assert Shard.parse(text, environment) == shard


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        *((text, {}) for text in ("0/8", "9/8", "2", "a/b", "-1/3", "1/0", "", "2/8/3")),
        ("auto", slurm(3, 1, 7, 3)),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}),
        ("auto", slurm(1, 1, 4, "many")),
    ],
)
def test_what_shards_are_not_called(text, environment):
    with pytest.raises(UsageProblem, match="--shard"):
        Shard.parse(text, environment)


@pytest.fixture
def run(monkeypatch, capfd):
    def call(*arguments, opener=StubOpener()):  # noqa: B008 - frozen
        monkeypatch.setattr(session, "open_reconstructor", opener)
        code = cli.run(["--jobs", "0", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        save(tmp_path / "in" / f"case{index}.nii.gz", wall(scale=1.0 - index / 40))
    (tmp_path / "in" / "case5.nii.gz").write_bytes(b"junk")
    (tmp_path / "void").mkdir()
    return tmp_path / "in"


def rows(out):
    with (out / "cases.csv").open(newline="") as file:
        return [(line["case"], line["input"], line["status"], line["error"]) for line in csv.DictReader(file)]


def test_three_shards_come_to_the_same_as_one_run(run, folder, tmp_path):
    void, whole, out = tmp_path / "void", tmp_path / "whole", tmp_path / "out"
    assert run(void, folder, "-o", whole)[0] == 8
    for shard in ("3/3", "1/3"):
        stderr = run(void, folder, "-o", out, "--shard", shard)[2]
        assert "of 6 file(s); the others are not done here" in stderr
        assert "cases.csv follows with the last shard" in stderr
        assert not (out / "cases.csv").exists()
    assert "see " in run(void, folder, "-o", out, "--shard", "2/3")[2]
    assert rows(out) == rows(whole)
    assert len(rows(out)) == 7
    assert {n: d for n, d in digests(out).items() if n.endswith(".ply")} == {
        n: d for n, d in digests(whole).items() if n.endswith(".ply")
    }
    document = json.loads((out / "run.json").read_text())
    single = json.loads((whole / "run.json").read_text())
    assert [shard["shard"] for shard in document["shards"]] == ["1-of-3", "2-of-3", "3-of-3"]
    assert (document["cases"], document["exit_code"]) == (single["cases"], 8)
    assert document["options"] == single["options"]
    assert sorted(path.name for path in out.glob("*.json")) == [*(f"run-{k}-of-3.json" for k in (1, 2, 3)), "run.json"]


def test_a_shard_that_was_stopped_is_not_the_last_one(run, folder, tmp_path):
    out = tmp_path / "out"
    stopped = next(k for k in (1, 2) if Shard(k, 2).holds("case0"))
    code = run(folder, "-o", out, "--shard", f"{stopped}/2", opener=StubOpener({1: KeyboardInterrupt()}))[0]
    assert code == 130
    run(folder, "-o", out, "--shard", f"{3 - stopped}/2")
    assert not (out / "cases.csv").exists()
    run(folder, "-o", out, "--shard", f"{stopped}/2")
    assert len(rows(out)) == 6


def test_a_shard_that_runs_again_is_not_finished_meanwhile(run, folder, tmp_path):
    out = tmp_path / "out"
    for shard in ("1/2", "2/2"):
        run(folder, "-o", out, "--shard", shard)
    (out / "cases.csv").unlink()
    run_file.withdraw(out, Shard(1, 2))
    run(folder, "-o", out, "--shard", "2/2")
    assert not (out / "cases.csv").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"exit_code": 8'])
def test_what_is_no_shards_file_counts_as_unfinished(run, folder, tmp_path, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run-2-of-2.json").write_text(text)
    code, _, stderr = run(folder, "-o", out, "--shard", "1/2")
    assert code in (0, 8)
    assert "follows with the last shard" in stderr


def test_an_empty_shard_is_no_failure(run, tmp_path):
    save(tmp_path / "in" / "a.nii.gz", wall())
    codes = [run(tmp_path / "in", "-o", tmp_path / "out", "--shard", f"{k}/3")[0] for k in (1, 2, 3)]
    assert codes == [0, 0, 0]
    assert [row[0] for row in rows(tmp_path / "out")] == ["a"]


def test_locks_let_other_shards_in_and_nobody_else(tmp_path):
    first, second = Lock(tmp_path, Shard(1, 2)), Lock(tmp_path, Shard(2, 2))
    assert first.acquire()
    assert second.acquire()
    for shard in (Shard(1, 2), Shard(), Shard(1, 3)):
        with pytest.raises(OutputError, match="another run is under way"):
            Lock(tmp_path, shard).acquire()
    first.release()
    with pytest.raises(OutputError):
        Lock(tmp_path, Shard()).acquire()
    second.release()
    assert not list(tmp_path.iterdir())
    whole = Lock(tmp_path, Shard())
    assert whole.acquire()
    with pytest.raises(OutputError):
        Lock(tmp_path, Shard(1, 2)).acquire()
    whole.release()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock-1-of-1").symlink_to(victim)
    with pytest.raises(OutputError, match="cannot be locked"):
        Lock(tmp_path, Shard()).acquire()
    assert victim.read_text() == "precious"


def test_what_a_dead_run_left_locks_nobody_out(tmp_path):
    (tmp_path / ".lock-1-of-4").write_text("process 1 on moon")
    (tmp_path / ".lock-1-of-1").write_text("process 1 on moon")
    lock = Lock(tmp_path, Shard())
    assert lock.acquire()
    assert [path.name for path in tmp_path.iterdir()] == [".lock-1-of-1"]
    lock.release()


def test_a_file_system_without_locks_is_told(run, folder, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    code, _, stderr = run(folder / "case0.nii.gz", "-o", tmp_path / "out")
    assert code == 0
    assert "knows no locks" in stderr
