import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from m2s_runtime.errors import AmbiguousLabels, BadLabels, EmptyWall, UsageProblem
from m2s_runtime.labels import SCHEMES, check_scheme, right_mask, wall_mask
from m2s_runtime.rings import ring_shares


def heart(left: int = 1, wall: int = 2, right: int = 3, slices: int = 8) -> np.ndarray:
    """A cavity in its wall and the other ventricle beside it; the first slice is an open ring."""
    i, j = np.indices((48, 40))
    r = np.hypot(i - 28, j - 20)
    plane = np.where(np.hypot(i - 10, j - 20) < 9, right, 0)
    plane = np.where(r < 14, wall, plane)
    plane = np.where(r < 8, left, plane)
    labels = np.repeat(plane[:, :, None], slices, axis=2).astype(np.uint8)
    labels[30:, :, 0][labels[30:, :, 0] == wall] = 0
    return labels


NUMBERS = {"acdc": (3, 2, 1), "ukbb": (1, 2, 3), "mnms": (1, 2, 3), "label_maps": (1, 2, 4)}


@pytest.mark.parametrize("scheme", [*NUMBERS, "auto"])
@pytest.mark.parametrize("numbers", NUMBERS.values())
def test_the_wall_is_found(scheme, numbers):
    labels = heart(*numbers)
    if scheme != "auto" and not set(numbers) <= {SCHEMES[scheme].left, SCHEMES[scheme].wall, *SCHEMES[scheme].right}:
        with pytest.raises(BadLabels, match="no label 4"):
            wall_mask(labels, scheme)
        return
    mask, decision = wall_mask(labels, scheme)
    np.testing.assert_array_equal(mask, labels == 2)
    assert (decision.scheme, decision.wall_label) == (scheme, 2)
    swapped = scheme != "auto" and numbers[0] != SCHEMES[scheme].left
    assert bool(decision.warnings) == swapped


def test_label_maps_accept_3_for_the_right_ventricle():
    assert wall_mask(heart(1, 2, 3), "label_maps")[1].warnings == ()


@pytest.mark.parametrize(
    ("numbers", "scheme", "right"),
    [
        ((3, 2, 1), "acdc", 1),
        ((1, 2, 3), "mnms", 3),
        ((1, 2, 4), "label_maps", 4),
        ((3, 2, 1), "auto", 1),
        ((1, 2, 4), "auto", 4),
        ((5, 2, 6), "auto", None),  # numbers of no scheme
        ((1, 2, 3), "acdc", None),  # contradicted
        ((3, 2, 1), "myo=2", None),
        ((3, 2, 0), "acdc", None),  # a mask without one
    ],
)
def test_the_right_ventricle_is_known_by_its_scheme_alone(numbers, scheme, right):
    labels = heart(*numbers)
    found = right_mask(labels, wall_mask(labels, scheme)[1])
    if right is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, labels == right)


@pytest.mark.parametrize("wall", [1, 2, 7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_auto_goes_by_what_rings_whatever_the_numbers_and_axes(wall, axis):
    labels = np.moveaxis(heart(left=5, wall=wall, right=6), 2, axis)
    mask, decision = wall_mask(labels, "auto")
    np.testing.assert_array_equal(mask, labels == wall)
    assert decision.text == f"label {wall} is the wall because it rings label 5"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_slice_axis_need_not_be_the_shortest(axis):
    labels = np.moveaxis(heart(left=5, wall=2, right=6, slices=60), 2, axis)
    mask, decision = wall_mask(labels, "auto", axis)
    np.testing.assert_array_equal(mask, labels == 2)
    assert decision.text == "label 2 is the wall because it rings label 5"
    with pytest.raises(AmbiguousLabels):
        wall_mask(labels, "auto")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_swapped_scheme_is_seen_along_the_given_axis(axis):
    labels = np.moveaxis(heart(left=3, wall=2, right=1, slices=60), 2, axis)
    assert "is it another scheme" in wall_mask(labels[..., None], "ukbb", axis)[1].warnings[0]


def test_auto_takes_the_only_label():
    mask, decision = wall_mask((heart() == 2) * np.uint8(9), "auto")
    assert decision.wall_label == 9
    assert mask.sum() == (heart() == 2).sum()


def test_one_decision_for_all_frames_even_if_most_are_empty():
    cine = np.stack([np.zeros_like(heart()), heart(), np.zeros_like(heart())], axis=3)
    mask, decision = wall_mask(cine, "auto")
    assert decision.wall_label == 2
    np.testing.assert_array_equal(mask, cine == 2)


def test_auto_refuses_when_nothing_rings_and_names_the_flags():
    blobs = np.zeros((20, 20, 5), np.uint8)
    blobs[2:6, 2:6], blobs[10:14, 10:14] = 1, 4
    with pytest.raises(AmbiguousLabels, match="--labels myo=1 or --labels myo=4"):
        wall_mask(blobs, "auto")


def test_auto_refuses_two_rings():
    labels = heart()
    labels[8:12, 18:22][labels[8:12, 18:22] == 3] = 5
    with pytest.raises(AmbiguousLabels, match=r"label 2 rings 1; label 3 rings 5\..*--labels myo=2 or --labels myo=3"):
        wall_mask(labels, "auto")


def test_auto_refuses_a_scar_within_the_wall():
    labels = heart()
    labels[38:40, 19:21, 2:] = 6
    with pytest.raises(AmbiguousLabels, match="label 2 rings 1, 6"):
        wall_mask(labels, "auto")


def test_a_ring_of_another_label_round_the_wall_is_warned_of():
    _, decision = wall_mask(heart(left=2, wall=1), "ukbb")
    assert "rings nothing and label 1 rings label 2: try --labels myo=1" in decision.warnings[0]


def test_binary_takes_everything():
    mask, decision = wall_mask(heart(), "binary")
    np.testing.assert_array_equal(mask, heart() > 0)
    assert decision.wall_label is None
    assert "1, 2, 3" in decision.text


def test_a_named_label():
    mask, decision = wall_mask(heart(), "myo=3")
    np.testing.assert_array_equal(mask, heart() == 3)
    assert (decision.scheme, decision.wall_label) == ("myo", 3)
    with pytest.raises(BadLabels, match="no voxel has label 5; found 1, 2, 3"):
        wall_mask(heart(), "myo=5")


@pytest.mark.parametrize("scheme", ["auto", "binary", "acdc", "myo=2"])
def test_empty(scheme):
    with pytest.raises(EmptyWall):
        wall_mask(np.zeros((5, 5, 5), np.uint8), scheme)


def test_scheme_without_its_wall():
    with pytest.raises(BadLabels, match="label 2, the wall in scheme acdc, is absent; found 1, 3"):
        wall_mask(heart() * (heart() != 2), "acdc")


def test_an_image_is_no_label_map():
    image = np.arange(20 * 20 * 5, dtype=np.int16).reshape(20, 20, 5)
    with pytest.raises(BadLabels, match="this is an image"):
        wall_mask(image, "auto")


@pytest.mark.parametrize("scheme", ["", "ACDC2", " acdc", "myo", "myo=", "myo=0", "myo=-1", "myo=2.5", "myo=²", "lv=1"])
def test_unknown_schemes_are_a_usage_problem(scheme):
    with pytest.raises(UsageProblem, match="--labels"):
        check_scheme(scheme)
    with pytest.raises(UsageProblem):
        wall_mask(heart(), scheme)


@pytest.mark.parametrize("scheme", ["ACDC", "Acdc", "AUTO", "Myo=2", "BINARY"])
def test_capitals_do_not_matter(scheme):
    labels = heart(3, 2, 1)
    check_scheme(scheme)
    mask, decision = wall_mask(labels, scheme)
    np.testing.assert_array_equal(mask, labels > 0 if scheme == "BINARY" else labels == 2)
    assert decision.scheme == scheme.lower().partition("=")[0]


CONTRADICTIONS = {
    "cavities swapped": (heart(left=1, wall=2, right=3), "acdc", "label 1 lies inside the wall"),
    "wall and cavity swapped": (heart(left=2, wall=3, right=1), "acdc", "label 3 rings label 2: try --labels myo=3"),
    "wall and right ventricle swapped": (heart(left=3, wall=1, right=2), "acdc", "label 1 rings label 3"),
    "wall torn in every slice": (heart(3, 2, 1) * (np.indices((48, 40))[1] > 16)[..., None], "acdc", "does not ring"),
    "cavity asked for": (heart(3, 2, 1), "myo=3", "label 2 rings label 3: try --labels myo=2"),
    "right ventricle asked for": (heart(3, 2, 1), "myo=1", "label 2 rings label 3: try --labels myo=2"),
    "cavity counted as wall": (heart(3, 2, 1), "binary", "if 3 is the cavity, add --labels myo=2"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_topology_that_contradicts_the_scheme_is_flagged(what):
    labels, scheme, told = CONTRADICTIONS[what]
    _, decision = wall_mask(labels, scheme)
    assert told in " ".join(decision.warnings)
    assert decision.flags == ("labels_contradict",)


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (heart(3, 2, 1), "acdc"),
        (heart(1, 2, 3), "ukbb"),
        (heart(1, 2, 3), "mnms"),
        (heart(3, 2, 1), "myo=2"),
        (heart(3, 2, 0), "acdc"),
        (heart(0, 2, 1), "acdc"),
        ((heart() == 2) * np.uint8(1), "binary"),
        (np.where(np.indices((48, 40, 8))[0] < 28, 1, 2) * (heart() == 2), "binary"),
    ],
)
def test_masks_as_their_scheme_has_them_carry_no_flag(labels, scheme):
    assert wall_mask(labels, scheme)[1].flags == ()


def test_a_label_round_the_wall_contradicts_nothing_when_the_wall_rings_the_cavity():
    labels = np.pad(heart(3, 2, 0), ((1, 1), (1, 1), (0, 0)), constant_values=9)
    with pytest.raises(AmbiguousLabels):
        wall_mask(labels, "auto")
    assert wall_mask(labels, "myo=2")[1].flags == ()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_ring_shares_are_what_hole_filling_counts(seed, count):
    labels = ndimage.zoom(np.random.default_rng(seed).integers(0, count + 1, (5, 5, 3)), (4, 4, 1), order=0)
    found = sorted({int(v) for v in np.unique(labels)} - {0})
    shares = ring_shares(labels, found, 2).of
    for a in found:
        filled = np.stack([ndimage.binary_fill_holes(labels[:, :, s] == a) for s in range(3)], axis=2)
        for b in set(found) - {a}:
            assert shares.get((a, b), 0.0) == pytest.approx((filled & (labels == b)).sum() / (labels == b).sum())
