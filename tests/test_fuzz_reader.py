"""The fuzzer of the reader counts what it should: a small run of the real script, and a reader that misbehaves."""

import importlib.util
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz_reader.py"


@pytest.fixture
def fuzz(monkeypatch):
    spec = importlib.util.spec_from_file_location("fuzz_reader", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Spawned processes find the script by its name.
    monkeypatch.setitem(sys.modules, "fuzz_reader", module)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the memory of a process")
def test_a_small_run_meets_its_bars(fuzz):
    result = CliRunner().invoke(fuzz.main, ["--inputs", "40", "--no-bombs"])
    assert result.exit_code == 0, result.output
    cells = [cell.strip() for cell in result.output.splitlines()[2].strip("|").split("|")]
    assert int(cells[1]) + int(cells[2]) == 40
    assert cells[3:5] == ["0", "0"]


def test_what_is_no_typed_refusal_is_a_crash_and_what_takes_long_a_hang(fuzz, monkeypatch, tmp_path):
    monkeypatch.setattr("m2s_runtime.volume.read_study", lambda _: 1 / 0)
    tally = fuzz.Tally()
    tally.add(0, fuzz.settle(tmp_path / "x.nii"), 0.1, 5.0)
    tally.add(1, "volume", 1.5, 3.0)
    assert tally.crashes == ["0 (crash: ZeroDivisionError: division by zero)"]
    assert tally.hangs == ["1 (1.5 s)"]
    assert (tally.slowest, tally.peak_mb) == (1.5, 5.0)
