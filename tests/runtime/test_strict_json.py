"""The codec of manifests, on records of its own."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2s_runtime.strict_json import Misfit, dumps, loads


@dataclass(frozen=True)
class Leaf:
    kind: Literal["a", "b"]
    weight: float


@dataclass(frozen=True)
class Tree:
    name: str
    size: int
    open: bool
    pair: tuple[int, float]
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf]
    shape: tuple[str | int, ...]
    note: float | None


reals = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.builds(Leaf, st.sampled_from(["a", "b"]), reals)
trees = st.builds(
    Tree,
    st.text(),
    st.integers(),
    st.booleans(),
    st.tuples(st.integers(), reals),
    st.lists(leaves, max_size=3).map(tuple),
    st.dictionaries(st.text(), leaves, max_size=3),
    st.lists(st.text() | st.integers(), max_size=3).map(tuple),
    reals | st.none(),
)


@settings(max_examples=50, deadline=None)
@given(trees)
def test_what_is_written_is_read(tree):
    assert loads(Tree, dumps(tree)) == tree


def test_an_int_stands_for_a_float_and_nothing_else_stands_in():
    assert loads(Leaf, '{"kind": "a", "weight": 2}') == Leaf("a", 2.0)
    for wrong in ("9" * 400, "9" * 5000, "true", '"2"', "null", "[2]", "1e999", "-Infinity"):
        with pytest.raises(Misfit):
            loads(Leaf, f'{{"kind": "a", "weight": {wrong}}}')


@dataclass(frozen=True)
class Later:
    name: str
    factor: float = 1.0
    limits: dict[str, float] = field(default_factory=dict)


def test_only_a_field_with_a_default_may_be_missing():
    assert loads(Later, '{"name": "a"}') == Later("a")
    assert loads(Later, '{"name": "a", "limits": {"b": 2}}') == Later("a", limits={"b": 2.0})
    with pytest.raises(Misfit, match="missing 'name'"):
        loads(Later, '{"factor": 2}')
    with pytest.raises(Misfit, match="factor"):
        loads(Later, '{"name": "a", "factor": null}')


def test_the_message_says_where():
    with pytest.raises(Misfit, match=r"leaves\[1\]\.kind"):
        loads(Tree, dumps(Tree("", 0, False, (0, 0.0), (Leaf("a", 0), Leaf("c", 0)), {}, (), None)))


def test_a_repeated_name_is_refused():
    with pytest.raises(Misfit, match="twice"):
        loads(Leaf, '{"kind": "a", "kind": "b", "weight": 1}')


def test_only_dataclass_instances_are_written():
    for value in ({}, Leaf):
        with pytest.raises(TypeError):
            dumps(value)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_gives_a_record_or_a_misfit(text):
    with pytest.raises(Misfit):
        loads(Tree, text)
