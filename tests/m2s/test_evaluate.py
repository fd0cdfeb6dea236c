"""Evaluation against methods whose score is known beforehand."""

from dataclasses import dataclass

import numpy as np
import pytest

from m2s.baselines.method import Prediction, from_mask, mask_surface
from m2s.data.phantom import phantom
from m2s.data.sdg import voxelise
from m2s.data.simulate import draw_rng, simulate_stack
from m2s.evaluate.hearts import heart_truth
from m2s.evaluate.methods import Network, canonical_from_stack, classical_method
from m2s.evaluate.networks import DecodeCondition, ModelOptions, Recorder, Remembering, network_methods
from m2s.evaluate.scores import Truth, markdown, per_subject, score, score_shifts
from m2s.evaluate.simulation import groups, score_stack
from m2s_runtime.errors import NotFinite, UsageProblem
from m2s_runtime.grid import CENTRE, GRID, PADDING, SPACING
from m2s_runtime.mesh_distance import grid_distance
from m2s_runtime.slices import pool_features
from m2s_runtime.surface import Mesh

SPACING_10 = (1.0, 1.0, 10.0)


def _signed_distance(vertices, faces):
    inside = voxelise(vertices, faces, GRID, SPACING)
    distance = grid_distance(vertices, faces, GRID, SPACING)
    return np.where(inside, -distance, distance)


@dataclass
class Result:
    sdg: np.ndarray
    probability: np.ndarray
    shifts: np.ndarray


class Oracle:
    """Knows the heart, and what moved."""

    def __init__(self, heart):
        self.calls = 0
        sdg = _signed_distance(heart.grid_vertices, heart.faces)
        self.result = Result(sdg, (sdg < 0).astype(np.float32), np.zeros((12, 2), np.float32))

    def reconstruct(self, _canonical, _noise_key):
        self.calls += 1
        return self.result


class CopyEngine:
    """A VQ-VAE that loses nothing."""

    name = device = description = "copy"
    threads = 1

    def run(self, graph, inputs):
        return {"zc": inputs["csdg"]} if graph == "encode" else {"sdg": inputs["z"]}


@pytest.fixture(scope="module")
def heart():
    return phantom(3)


@pytest.fixture(scope="module")
def truth(heart):
    return heart_truth(heart)


def test_an_oracle_scores_like_the_truth(heart, truth):
    figures = score(Network("ours", Oracle(heart)).predict(np.zeros((128, 128, 12), bool), SPACING_10), truth)
    assert figures["dice"] > 0.999
    assert abs(figures["cd_over_floor"]) < 0.05 * figures["cd_floor"]
    assert figures["assd"] < 0.05
    assert abs(figures["volume_error"]) < 0.01
    assert figures["sound"] is True


def test_a_moved_oracle_is_off_by_as_much(heart, truth):
    by = np.array([2.0, 0.0, 0.0])
    sdg = _signed_distance(heart.grid_vertices + by, heart.faces)
    prediction = Prediction(sdg, Mesh(heart.grid_vertices + by, heart.faces), None, binary=False)
    figures = score(prediction, truth)
    # Half the surface faces along the motion, on average |cos| = 1/2 for a sphere: about half of the 2 mm.
    assert 0.7 < figures["assd"] < 1.3
    assert figures["dice"] < 0.93
    assert abs(figures["volume_error"]) < 1e-6


def test_methods_see_the_same_stacks_and_oracle_shifts_have_no_error(heart, truth):
    stack = simulate_stack(heart.mask, draw_rng(heart.id, 0, 0))
    exact = score_shifts(stack.shifts, stack.shifts, stack.slices)
    assert exact == {"shift_raw": 0, "shift_relative": 0, "shift_common": 0}
    assert score_shifts(None, stack.shifts, stack.slices) == {}
    (row,) = score_stack(heart, truth, {"nni": classical_method("nni")}, draw=0)
    assert row["shift_raw"] == pytest.approx(np.abs(stack.shifts[stack.slices.any(axis=(0, 1))]).mean(), rel=1e-5)
    (again,) = score_stack(heart, truth, {"nni": classical_method("nni")}, draw=0)
    clocks = {"seconds": 0, "cpu_seconds": 0}
    assert row | clocks == again | clocks


def test_correcting_beats_interpolating_beats_repeating(heart, truth):
    names = ["nni", "shape-based-uncorrected", "shape-based"]
    rows = list(score_stack(heart, truth, {n: classical_method(n) for n in names}, draw=0))
    means = [np.mean([r["dice"] for r in rows if r["method"] == n]) for n in names]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.1


def test_a_refused_stack_is_a_row_with_its_error(heart, truth):
    class Refuses:
        def predict(self, _mask, _spacing):
            raise NotFinite("a network returned NaN")

    (row,) = score_stack(heart, truth, {"bad": Refuses()}, draw=0)
    assert row["error"] == "not-finite: a network returned NaN"
    assert "| bad | 0 | 1 |" in markdown(groups([row | {"phase": ""}]))


def test_canonical_from_stack_keeps_the_frame(heart):
    stack = simulate_stack(heart.mask, draw_rng(heart.id, 0, 0))
    canonical = canonical_from_stack(stack)
    np.testing.assert_array_equal(canonical.masks, stack.slices)
    np.testing.assert_array_equal(canonical.placement.world(), np.diag([*SPACING, 1.0]))
    np.testing.assert_array_equal(canonical.pool, pool_features(stack.slices))
    held = stack.slices.any(axis=(0, 1))
    assert [s >= 0 for s in canonical.placement.slices] == held.tolist()


def test_mask_surface_lies_on_the_grid_and_keeps_crumbs():
    mask = np.zeros(GRID, bool)
    mask[20:40, 30:50, 0:10] = True
    mask[90, 90, 30] = True
    mesh = mask_surface(mask)
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    np.testing.assert_allclose(low, [19.5, 29.5, -1.0])
    np.testing.assert_allclose(high, [90.5, 90.5, 61.0])
    from m2s_runtime.surface import signed_volume, topology

    assert topology(mesh).components == 2
    # Marching cubes cuts the corners and edges of the box.
    assert 0.9 < signed_volume(mesh) / (20 * 20 * 20) < 1.01


def test_planes_of_another_step_land_where_they_belong():
    mask = np.zeros((128, 128, 60), bool)
    mask[40:60, 40:60, 20:40] = True
    level = from_mask(mask, 5.0, None).level
    # 20 planes 1 mm apart are 10 planes 2 mm apart, about the same middle.
    assert np.flatnonzero((level < 0).any(axis=(0, 1))).tolist() == list(range(27, 37))


def test_sections_blend_distances_and_never_blend_masks():
    level = np.broadcast_to(np.arange(GRID[2], dtype=np.float32) - 20.4, GRID)
    surface = Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))
    distances = Prediction(level, surface, None, binary=False)
    assert [s.all() for s in distances.sections(20.3)] == [True]
    assert [s.any() for s in distances.sections(20.5)] == [False]
    crisp = Prediction(np.sign(level), surface, None, binary=True)
    assert [s.all() for s in crisp.sections(20.5)] == [True, False]
    assert [s.all() for s in crisp.sections(20.0)] == [True]
    assert distances.mask.shape == (128, 128, 60)
    assert distances.mask[0, 0].sum() == 21 - PADDING


def test_super_resolved_and_decoded_masks_agree_when_nothing_is_lost(heart):
    oracle = Oracle(heart)
    recorder = Recorder(CopyEngine())
    shared = Remembering(oracle, recorder)
    slices = simulate_stack(heart.mask, draw_rng(heart.id, 0, 0)).slices
    sources = {"ours": shared, "mcsr": shared, "decode-zc": DecodeCondition(shared, recorder)}
    masks = {name: Network(name, source).predict(slices, SPACING_10).mask for name, source in sources.items()}
    assert oracle.calls == 1
    np.testing.assert_array_equal(masks["mcsr"], masks["ours"])
    # Voxels that touch at a corner only are a handle, which the decoded heart loses.
    assert np.count_nonzero(masks["mcsr"] != masks["decode-zc"]) < 10
    Network("ours", shared).predict(slices, (1, 1, 8))
    assert oracle.calls == 2
    Network("ours", shared).predict(slices[:, ::-1], (1, 1, 8))
    assert oracle.calls == 3


def test_only_the_method_that_pays_for_a_shared_run_is_timed(heart, truth):
    recorder = Recorder(CopyEngine())
    shared = Remembering(Oracle(heart), recorder)
    sources = {"ours": shared, "mcsr": shared, "decode-zc": DecodeCondition(shared, recorder)}
    methods = {name: Network(name, source, shared) for name, source in sources.items()}
    rows = [row for draw in range(2) for row in score_stack(heart, truth, methods, draw=draw)]
    assert [row["seconds"] is None for row in rows] == [False, True, True] * 2
    assert "mcsr" in markdown(groups([row | {"phase": ""} for row in rows]))


def test_nothing_is_opened_without_a_network_and_unknown_names_are_refused():
    assert network_methods([], ModelOptions(model="no such bundle")) == {}
    with pytest.raises(UsageProblem, match="choose one of"):
        classical_method("magic")


def test_draws_are_averaged_within_a_subject_first():
    rows = [
        {"subject": "a", "draw": 0, "method": "m", "dice": 0.8},
        {"subject": "a", "draw": 1, "method": "m", "dice": 0.9},
        {"subject": "b", "draw": 0, "method": "m", "dice": 0.95},
        {"subject": "c", "draw": 0, "method": "m", "error": "empty: =1+1"},
    ]
    np.testing.assert_allclose(per_subject(rows, "dice"), [0.85, 0.95])
    table = markdown({"m": rows}).splitlines()
    assert table[0] == "| | subjects | failed | Dice % |"
    assert table[2] == "| m | 2 | 1 | 90.00 ± 7.07 |"


def test_truth_volume_is_that_of_the_mask(heart, truth):
    assert truth.volume == pytest.approx(heart.mask.sum() * 2, rel=0.02)
    assert isinstance(truth, Truth)
    assert pool_features(heart.mask)[:, 2].max() > 0
    assert abs(np.argwhere(heart.mask).mean(axis=0)[:2] - CENTRE).max() < 15
