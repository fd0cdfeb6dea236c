"""The benchmark of operators on the toy bundle, whose graphs are soon done."""

import pytest
from benchmarked import benchmark
from click.testing import CliRunner
from toy import TOY

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def operators():
    return benchmark("operators")


def test_a_line_a_graph_and_a_sum(operators, tmp_path):
    out = tmp_path / "operators.md"
    words = ["--model", str(TOY), "--rounds", "1", "--graph", "sr", "--out", str(out)]
    done = CliRunner().invoke(operators.main, words, catch_exceptions=False)
    assert done.exit_code == 0
    lines = out.read_text().splitlines()
    assert lines[0].startswith("matrix product: ")
    assert lines[4].startswith("| sr | ")
    assert lines[5].split("|")[3:] == lines[4].split("|")[3:]  # the sum of one
    assert any(line.startswith("- sr, rewritten: ") for line in lines)


def test_small_operators_are_summed_up(operators):
    assert operators.operator_text({"Conv": 41.24, "Add": 0.3, "Mul": 0.3}) == "Conv 41.2, other 0.6"


def test_the_first_round_does_not_count(operators):
    calls = []
    found = operators.least({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert set(found) == {"a", "b"}
