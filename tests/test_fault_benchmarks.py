"""The scripts that measure journal and kills run, on a handful of cases."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def printed(script, *words, codes=(0,)):
    if not (BENCHMARKS / script).is_file():
        pytest.skip(f"no {BENCHMARKS / script}")
    command = [sys.executable, str(BENCHMARKS / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_random_kills(tmp_path):
    text = printed("random_kills.py", "--work", tmp_path, "--kills", 4, "--cases", 5)
    assert "kills: 4" in text
    assert "finished cases lost: 0; files that were not whole: 0" in text


def test_flat_cost(tmp_path):
    toy = Path(__file__).parent / "data" / "toy_bundle"
    if not toy.is_dir():
        pytest.skip("no toy bundle here")
    words = ("--work", tmp_path, "--cases", "1,2", "--", "--model", toy, "--engine", "onnx")
    # So few cases say nothing about the bars.
    text = printed("flat_cost.py", *words, codes=(0, 1))
    assert "a heart of 2 against one of 1:" in text


def test_many_cases(tmp_path):
    # So few cases say nothing about the bars.
    text = printed("many_cases.py", "--work", tmp_path, "--cases", 20, codes=(0, 1))
    assert "rows in cases.csv: 20; a deleted and an altered mesh noticed: yes" in text
