"""An evaluation that is killed, goes on, and is done by several processes; tables on disk."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from counted import items

from m2s.evaluate.networks import ModelOptions
from m2s.evaluate.rows import RowFile
from m2s.evaluate.scores import NoFigures, check_usable
from m2s.evaluate.work import Setup, evaluate, spaced
from m2s_runtime.errors import NotFinite, UsageProblem


@dataclass(frozen=True)
class Refused:
    name: str = "refused"

    def rows(self, _methods):
        raise NotFinite("a network returned NaN")


def test_rows_survive_the_disk_and_a_torn_last_line(tmp_path):
    path = tmp_path / "rows.csv"
    table = RowFile(path)
    first = {"item": "a", "run": "012", "subject": "1081", "method": "-", "dice": 0.25, "sound": True, "error": "=1+1"}
    table.add([first])
    table.add([{"item": "b", "run": "1", "subject": "x", "method": "nni", "cd": 3, "error": None}])
    with path.open(newline="") as file:
        assert [row["cd"] for row in csv.DictReader(file)] == ["", "3"]
    assert "'=1+1" in path.read_text()
    read = RowFile(path).rows
    assert read[0] == first | {"cd": None}
    assert read[1]["cd"] == 3
    whole = path.read_text()
    path.write_text(whole + "c,1,half a li")
    assert RowFile(path).rows == read
    assert path.read_text() == whole
    # A unit of several rows, of which the last is torn, is done again.
    path.write_text(whole + "c,1,x,a\nc,1,x,b\nc,1,x,")
    assert RowFile(path).rows == read
    assert path.read_text() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "precious.csv"
    path.write_text("name,value\na,1\n")
    with pytest.raises(UsageProblem, match="no table of m2s-eval"):
        RowFile(path)
    assert path.read_text() == "name,value\na,1\n"
    path.write_text("item,run\na,1,2\n")
    with pytest.raises(UsageProblem, match="more cells than the first"):
        RowFile(path)


def test_names_of_methods_stay_text_whatever_they_look_like(tmp_path):
    table = RowFile(tmp_path / "rows.csv")
    for label in ("250", "1e3", "true"):
        table.add([{"item": "a", "run": "1", "method": label}])
    assert [row["method"] for row in RowFile(tmp_path / "rows.csv").rows] == ["250", "1e3", "true"]


def test_only_what_is_missing_is_done(tmp_path):
    log, path = tmp_path / "log", tmp_path / "rows.csv"
    list(evaluate(items(log, 2), Setup(("nni",)), RowFile(path)))
    found = list(evaluate(items(log, 3), Setup(("nni", "shape-based")), RowFile(path)))
    lines = [line.rsplit(" ", 1)[0] for line in log.read_text().splitlines()]
    assert lines == ["s0 nni", "s1 nni", "s0 shape-based", "s1 shape-based", "s2 nni", "s2 shape-based"]
    assert sorted((r["item"], r["method"]) for rows in found for r in rows) == sorted(
        tuple(line.split()) for line in lines
    )
    assert [len(rows) for rows in evaluate(items(log, 3), Setup(("nni",)), RowFile(path))] == [1, 1, 1]
    assert len(log.read_text().splitlines()) == 6


def test_rows_of_other_options_are_refused(tmp_path):
    log, path = tmp_path / "log", tmp_path / "rows.csv"
    list(evaluate(items(log, 1), Setup(("nni",)), RowFile(path)))
    with pytest.raises(UsageProblem, match="another model or other options"):
        list(evaluate(items(log, 1), Setup(("nni",), ModelOptions(seed=5)), RowFile(path)))


def test_several_processes_do_each_item_once(tmp_path):
    log, path = tmp_path / "log", tmp_path / "rows.csv"
    found = list(evaluate(items(log, 4, 0.2), Setup(("nni",)), RowFile(path), jobs=2))
    assert sorted(rows[0]["item"] for rows in found) == ["s0", "s1", "s2", "s3"]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for name, _, _ in lines) == ["s0", "s1", "s2", "s3"]
    assert os.getpid() not in {int(pid) for _, _, pid in lines}
    assert len(RowFile(path).rows) == 4


def test_a_refused_item_is_a_row_and_nothing_but_refusals_is_an_error(tmp_path):
    ((row,),) = evaluate([Refused()], Setup(("nni",)), RowFile())
    assert row["error"] == "not-finite: a network returned NaN"
    with pytest.raises(NoFigures, match="a network returned NaN") as stopped:
        check_usable([row])
    assert stopped.value.exit_code == 8
    check_usable([row, {"method": "nni", "dice": 0.5}])


def test_a_killed_evaluation_loses_nothing_that_was_done(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\n"
        "from counted import items\n"
        "from m2s.evaluate.rows import RowFile\n"
        "from m2s.evaluate.work import Setup, evaluate\n"
        "if __name__ == '__main__':\n"
        "    here = Path(sys.argv[1])\n"
        "    list(evaluate(items(here / 'log', 50, 0.2), Setup(('nni',)), RowFile(here / 'rows.csv'), jobs=2))\n"
    )
    run = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    path, log = tmp_path / "rows.csv", tmp_path / "log"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not path.exists() or path.read_text().count("\n") < 4):
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    kept = {row["item"] for row in RowFile(path).rows}
    assert 3 <= len(kept) < 50
    pids = {int(line.split()[2]) for line in log.read_text().splitlines()}
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids), "workers outlived their parent"
    log.unlink()
    left = [item for item in items(log, 50) if item.name in kept or item.name == "s49"]
    list(evaluate(left, Setup(("nni",)), RowFile(path)))
    assert {line.split()[0] for line in log.read_text().splitlines()} == {"s49"} - kept


def test_items_are_spread_from_the_first_to_the_last():
    assert spaced(range(10), 3) == [0, 4, 9]
    assert spaced([1, 2], 5) == [1, 2]
    assert spaced([7, 8, 9], 1) == [7]


def test_setup_builds_methods_without_opening_a_bundle_for_classical_ones():
    setup = Setup(("nni", "shape-based"), ModelOptions(model="no such bundle"))
    assert list(setup.methods()) == ["nni", "shape-based"]
    marks = setup.fingerprints()
    assert marks["nni"] == marks["shape-based"]
