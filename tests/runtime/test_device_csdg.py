"""The kernels of the C-SDG, the very text that a GPU is given, compiled for the CPU: against libigl."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from runtime.device import HostMemory
from skimage.measure import marching_cubes

from m2s_runtime import device_csdg
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.device_csdg import DeviceCsdg, agrees, cell_table, plane_pairs, same_planes, source
from m2s_runtime.engines.cuda import OPTIONS, QUALIFIERS
from m2s_runtime.errors import EngineError
from m2s_runtime.grid import GRID, MASK_GRID, SPACING
from m2s_runtime.mesh_distance import KERNEL
from m2s_runtime.surface import contour
from runtime import host_kernels, nvrtc

SMALL = (19, 14, 13)  # no multiple of a tile, a block or a brick

needs_cc = pytest.mark.skipif(not host_kernels.COMPILER, reason="no C compiler to run the kernels with")


class Backwards(HostMemory):
    def compiled(self, source):
        return host_kernels.compiled(source, backwards=True)


def measured(masks, memory=HostMemory):
    """What the kernels make of masks (N, X, Y, Z), NaN allowed, in one batch, and their states."""
    device = memory()
    rows, planes = len(masks), masks.shape[3]
    with device.scope():
        kernels = DeviceCsdg(device, masks.shape[1:], planes)
        below, weights = (pairs.repeat(rows, axis=0) for pairs in same_planes(planes))
        walls, csdg = np.full((2, *masks.shape), np.nan, np.float32)
        states = np.full((rows, 2), 7, np.int32)
        kernels.bind(masks.astype(np.float32), below, weights, walls, csdg, states)()
    whole = np.isfinite(masks).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(walls[whole], masks[whole])
    return csdg, states


def surface(mask):
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    return (vertices - 1) * SPACING, faces


def oracle(mask):
    igl = pytest.importorskip("igl", reason="libigl is the oracle")
    vertices, faces = surface(mask)
    points = np.indices(mask.shape).reshape(3, -1).T * np.array(SPACING)
    squared = igl.point_mesh_squared_distance(points, vertices, faces.astype(np.int64))[0]
    return np.where(mask, -1, 1) * np.sqrt(squared).reshape(mask.shape)


def speckle(seed, part=0.3, shape=SMALL):
    return np.random.default_rng(seed).random(shape) < part


def box(low, high, shape=SMALL):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def sorted_triangles(corners):
    """(F, 3, 3) half voxels as rows that can be compared, whatever the order of corners and triangles."""
    code = np.sort(np.rint(corners).astype(np.int64) @ [10**6, 10**3, 1], axis=1)
    return code[np.lexsort(code.T)]


def configurations(mask):
    """The eight bits of every cell of a mask with one empty voxel around it."""
    padded = np.pad(mask, 1).astype(np.int64)
    x, y, z = (side - 1 for side in padded.shape)
    corners = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    return sum(padded[i : i + x, j : j + y, k : k + z] << n for n, (i, j, k) in enumerate(corners))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(*[st.integers(2, 9)] * 3)))
def test_every_cell_is_a_function_of_its_eight_bits(mask):
    """The union of the table's triangles is the very set that scikit-image makes of the whole mask."""
    if not mask.any():
        return
    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5)
    assert np.abs(2 * vertices - np.rint(2 * vertices)).max() < 1e-5
    code, found = configurations(mask), []
    for cell in np.argwhere((code > 0) & (code < 255)):
        at = code[*cell]
        rows = cell_table()["triangle"][0, at, : cell_table()["count"][0, at]]
        corner, u, v = np.moveaxis(rows[:, :9].reshape(-1, 3, 3), 1, 0)
        found.append(2 * (np.stack([corner, corner + u, corner + v], axis=1) / SPACING + cell))
    np.testing.assert_array_equal(sorted_triangles(np.concatenate(found)), sorted_triangles(2 * vertices[faces]))


def test_the_table_knows_its_triangles():
    table = cell_table()[0]
    assert (table["count"][[0, 255]] == 0).all()
    assert (table["count"][1:255] > 0).all()
    for code in range(1, 255):
        rows = table["triangle"][code, : table["count"][code]].astype(float)
        corner, u, v, normal = np.moveaxis(rows[:, :12].reshape(-1, 4, 3), 1, 0)
        np.testing.assert_allclose(np.linalg.norm(np.cross(u, v), axis=1) ** 2 * rows[:, 18], 1, rtol=1e-6)
        np.testing.assert_allclose(np.cross(np.cross(u, v), normal), 0, atol=1e-6)
        corners = np.stack([corner, corner + u, corner + v])
        np.testing.assert_array_equal(table["extent"][code], [*corners.min((0, 1)), *corners.max((0, 1))])


@needs_cc
@pytest.mark.parametrize(
    "mask",
    [
        speckle(0), speckle(1, 0.02), speckle(2, 0.9), np.ones(SMALL, bool), box((9, 7, 6), (10, 8, 7)),
        box((0, 0, 0), (1, 1, 1)), box((18, 13, 12), (19, 14, 13)), box((0, 3, 0), (19, 9, 5)),
        box((2, 2, 2), (17, 12, 11)) & ~box((6, 5, 4), (11, 9, 8)), speckle(3, 0.4, (33, 3, 40)),
    ],
    ids=["noise", "crumbs", "sponge", "full", "one voxel", "corner", "far corner", "slab", "shell", "long"],
)  # fmt: skip
def test_it_equals_libigl(mask):
    csdg, states = measured(mask[None])
    np.testing.assert_allclose(csdg[0], oracle(mask), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(csdg[0] < 0, mask)
    assert states.tolist() == [[1, 0]]


@needs_cc
def test_an_empty_wall_is_told_and_its_neighbours_are_as_they_were():
    masks = np.stack([speckle(4), np.zeros(SMALL, bool), speckle(5)])
    csdg, states = measured(masks)
    assert states.tolist() == [[1, 0], [0, 0], [1, 0]]
    assert not csdg[1].any()
    for k in (0, 2):
        assert csdg[k].tobytes() == measured(masks[k : k + 1])[0].tobytes()


@needs_cc
def test_what_is_not_finite_is_told_of_the_heart_that_has_it():
    masks = np.stack([speckle(4), speckle(5), speckle(5)]).astype(np.float32)
    masks[0, 3, 4, 12], masks[2, 18, 13, 0] = np.nan, np.inf
    csdg, states = measured(masks)
    assert states.tolist() == [[1, 1], [1, 0], [1, 1]]
    assert csdg[1].tobytes() == measured(masks[1:2])[0].tobytes()


@needs_cc
def test_the_order_of_threads_does_not_change_a_bit():
    masks = np.stack([speckle(6), speckle(7, 0.05)])
    assert measured(masks)[0].tobytes() == measured(masks, Backwards)[0].tobytes()


def heart():
    """Half an ellipsoidal shell, tilted, as the network would return it for slices 8 mm apart."""
    x, y, z = np.indices(MASK_GRID, dtype=float)
    z = (z - 6) * 1.6
    x, y = x - 58 - 0.1 * z, y - 66
    outer, inner = (np.sqrt((x / a) ** 2 + (y / (a - 2)) ** 2 + (z / c) ** 2) for a, c in ((31, 76), (22, 67)))
    return (1 / (1 + np.exp(20 * np.maximum(outer - 1, 1 - inner))) * (z >= 0)).astype(np.float32)


@needs_cc
def test_a_heart_in_the_canonical_grid_is_that_of_the_host():
    """From the network's planes to distances, as `to_grid` and `coarse_sdg`."""
    probability = heart()
    below, weights = plane_pairs([8.0])
    walls, csdg = np.zeros((2, 1, *GRID), np.float32)
    states, device = np.zeros((1, 2), np.int32), HostMemory()
    with device.scope():
        DeviceCsdg(device).bind(probability[None], below, weights, walls, csdg, states)()
    assert states.tolist() == [[1, 0]]
    wanted = to_grid(probability, 8.0)
    np.testing.assert_allclose(walls[0], wanted, rtol=0, atol=2e-7)
    np.testing.assert_array_equal(walls[0] >= 0.5, wanted >= 0.5)
    exact = coarse_sdg(wanted >= 0.5)
    np.testing.assert_allclose(csdg[0], exact, rtol=0, atol=1e-4 if KERNEL == "native" else 0.15)


@settings(max_examples=25, deadline=None)
@given(st.floats(5, 14))
def test_planes_are_those_of_to_grid(step):
    probability = np.random.default_rng(1).random(MASK_GRID, np.float32)[:3, :2]
    below, weights = plane_pairs([step])
    found = probability[..., below[0]] * weights[0, :, 0] + probability[..., below[0] + 1] * weights[0, :, 1]
    np.testing.assert_allclose(found, to_grid(probability, step), rtol=0, atol=2e-7)


def test_the_trial_of_a_device_holds_every_configuration():
    assert len(np.unique(configurations(device_csdg.trial()))) == 256


@needs_cc
@pytest.mark.parametrize("exact", [True, False])
def test_a_device_that_errs_is_found_out(exact, monkeypatch):
    def refuse(*_):
        raise EngineError("neither kernel nor libigl")

    if not exact:
        monkeypatch.setattr(device_csdg, "grid_distance", refuse)
    elif KERNEL != "native":
        pytest.importorskip("igl", reason="the host has no exact distances")

    class Erring(HostMemory):
        def compiled(self, source):
            return host_kernels.compiled(source.replace("1.f - s - t > 0.f", "1.f - s > 0.f"))

    for memory, right in ((HostMemory(), True), (Erring(), False)):
        with memory.scope():
            assert agrees(memory) == right


@needs_cc
def test_a_table_that_the_device_lays_out_otherwise_is_refused():
    class Padding(HostMemory):
        def compiled(self, source):
            return host_kernels.compiled(source.replace("} Table;", "    int more; } Table;"))

    memory = Padding()
    with memory.scope(), pytest.raises(EngineError, match="lays out"):
        DeviceCsdg(memory, SMALL, 13)


def test_it_is_the_surface_of_the_host():
    mask = speckle(8)
    ours, theirs = surface(mask), contour(mask.astype(np.float32), mask, 0.5, 0.0, "lewiner")
    whole = [sorted_triangles(2 * np.asarray(v)[f] / scale) for (v, f), scale in ((ours, SPACING), (theirs, 1))]
    np.testing.assert_array_equal(*whole)
    assert device_csdg.KERNEL not in ("native", "scipy")


@pytest.mark.parametrize("arch", ["sm_75", "sm_89", "sm_120"])
def test_it_compiles_for_cards_without_fused_multiply_adds(arch):
    """By NVIDIA's own compiler, which needs no card."""
    log, ptx = nvrtc.compiled(QUALIFIERS + source(GRID, 60), arch, OPTIONS)
    assert not log
    assert b".entry measure(" in ptx
    assert b"fma" not in ptx
