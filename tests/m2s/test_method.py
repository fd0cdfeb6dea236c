"""What a method may answer: masks, distances, meshes closed and open, and classes that a user plugs in."""

import re
from dataclasses import replace

import numpy as np
import pytest
from plugged import cube, open_cube

from m2s.baselines.method import as_prediction, from_mask, from_mesh
from m2s.baselines.nni import nearest_neighbour
from m2s.data.phantom import phantom
from m2s.data.sdg import voxelise
from m2s.evaluate.hearts import heart_truth
from m2s.evaluate.plugins import open_plugin, plugin_digest
from m2s.evaluate.scores import score
from m2s.evaluate.simulation import score_methods
from m2s_runtime.errors import BadMesh, EmptyWall, NotFinite, UsageProblem
from m2s_runtime.grid import GRID, PADDING, PLANES, SPACING
from m2s_runtime.surface import Mesh

SPACING_10 = (1.0, 1.0, 10.0)


@pytest.fixture(scope="module")
def truth():
    return heart_truth(phantom(3))


def test_a_closed_mesh_is_voxelised_whatever_its_winding_and_an_open_one_has_no_inside(truth):
    corners, faces = cube()
    inside = voxelise(corners, faces, GRID, SPACING)
    closed = from_mesh(Mesh(corners, faces), None)
    np.testing.assert_array_equal(closed.level < 0, inside)
    np.testing.assert_array_equal(closed.mask, inside[:, :, PADDING : PADDING + PLANES])
    turned = from_mesh(Mesh(corners, faces[:, ::-1]), None)
    assert turned.surface.volume == pytest.approx(40**3)
    np.testing.assert_array_equal(turned.mask, closed.mask)
    gaping = from_mesh(Mesh(*open_cube()), None)
    for unknown in (lambda: gaping.mask, lambda: gaping.sections(3.0)):
        with pytest.raises(BadMesh, match="open"):
            unknown()
    figures = score(gaping, truth)
    assert figures["dice"] is None
    assert figures["volume_error"] is None
    assert figures["closed"] is False
    assert figures["cd"] > 100
    assert figures["assd"] > 5
    assert score(closed, truth)["dice"] > 0.05


def test_meshes_that_are_none_are_refused():
    corners, faces = cube()
    with pytest.raises(EmptyWall):
        from_mesh(Mesh(corners, faces[:0]), None)
    with pytest.raises(EmptyWall, match="no area"):
        from_mesh(Mesh(np.zeros((8, 3)), faces), None)
    with pytest.raises(NotFinite):
        from_mesh(Mesh(corners * np.nan, faces), None)
    with pytest.raises(BadMesh, match="does not exist"):
        from_mesh(Mesh(corners[:4], faces), None)


def test_a_plugin_may_answer_in_any_way_and_nonsense_is_told(truth):
    stack = np.zeros((128, 128, 12), bool)
    stack[50:80, 50:80, 3:8] = True
    mask = nearest_neighbour(stack)
    wrapped = open_plugin("plugged:Repeats").predict(stack, SPACING_10)
    np.testing.assert_array_equal(wrapped.mask, mask)
    known = from_mask(mask, 10.0, None)
    assert as_prediction(known, SPACING_10, "x") is known
    np.testing.assert_array_equal(as_prediction(known.level, SPACING_10, "x").mask, mask)
    with pytest.raises(UsageProblem, match=r"plugged:Floats answered an array \(128, 128, 60\) of float32: return a"):
        open_plugin("plugged:Floats").predict(stack, SPACING_10)
    before = stack.copy()
    (row,) = score_methods({"plugged:Open": open_plugin("plugged:Open")}, stack, 10.0, truth)
    np.testing.assert_array_equal(stack, before)
    assert row["dice"] is None
    assert row["cd"] > 0


def test_a_plugin_that_raises_costs_a_row_and_one_that_errs_in_kind_ends_the_run(truth):
    stack = np.zeros((128, 128, 12), bool)
    methods = {"plugged:Raises": open_plugin("plugged:Raises"), "plugged:Repeats": open_plugin("plugged:Repeats")}
    stack[50:80, 50:80, 3:8] = True
    first, second = score_methods(methods, stack, 10.0, truth)
    assert re.fullmatch(r"method: plugged:Raises raised IndexError: .* \(plugged\.py:\d+\)", str(first["error"]))
    assert second["dice"] is not None
    with pytest.raises(UsageProblem, match=r"a Mesh of float vertices \(N, 3\)"):
        open_plugin("plugged:Lists").predict(stack, SPACING_10)
    corners, faces = cube()
    known = from_mesh(Mesh(corners, faces), None)
    nonsense = (
        Mesh(corners, faces.astype(float)),
        Mesh(corners[:, :2], faces),
        replace(known, level=known.level[:3]),
        replace(known, level=known.level * np.nan),
        replace(known, shifts=np.zeros((3, 2))),
        np.ma.masked_array(stack.repeat(5, axis=2)),
    )
    for answer in nonsense:
        with pytest.raises(UsageProblem, match="x answered"):
            as_prediction(answer, SPACING_10, "x")


def test_a_plugin_is_another_one_once_its_package_or_its_weights_change(tmp_path, monkeypatch):
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("FACTOR = 1\n")
    (package / "net.py").write_text("class Net:\n    digest = 'a'\n    def predict(self, mask, spacing): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = [plugin_digest("theirs.net:Net")]
    assert plugin_digest("theirs.net:Net") == told[0]
    (package / "helper.py").write_text("FACTOR = 2\n")
    told.append(plugin_digest("theirs.net:Net"))
    monkeypatch.setattr("theirs.net.Net.digest", "b")
    told.append(plugin_digest("theirs.net:Net"))
    assert len(set(told)) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:Class", "cannot be imported"),
        ("plugged:NoSuch", "cannot be imported"),
        ("plugged:cube", "is no class"),
        ("plugged:NeedsMore", "made without arguments"),
        ("plugged:Silent", "no predict"),
    ],
)
def test_a_plugin_that_cannot_be_had_is_a_clear_error(name, message):
    with pytest.raises(UsageProblem, match=message):
        open_plugin(name)
