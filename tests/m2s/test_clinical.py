"""Pairs of acquired stack and high-resolution map: on one grid, whatever the headers say, or refused."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from m2s.data.clinical import PairMismatch, read_pair, write_pairs
from m2s.data.labelmaps import LabelMaps, split
from m2s.data.pair_files import load_pair, prepare_pairs
from m2s.data.phantom import phantom
from m2s.data.simulate import Normal
from m2s_runtime.errors import BadHeader, NoInputs, UnreadableVolume, UsageProblem
from m2s_runtime.slices import pool_features, pool_weights

SUBJECT = split()["training"][0]
TURN = np.array([[0.36, -0.48, 0.8], [0.8, 0.6, 0.0], [-0.48, 0.64, 0.6]])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.fixture(scope="module")
def heart():
    return phantom(3)


@pytest.fixture
def still(tmp_path: Path, heart) -> Path:
    """A pair whose slices did not move."""
    write_pairs(tmp_path, [(SUBJECT, heart.id, heart.mask)], Normal(1e-6), seed=0)
    return tmp_path


def thinned(labels: np.ndarray) -> np.ndarray:
    return 2 * ndimage.binary_erosion(labels == 2, np.ones((3, 3, 1)), 3).astype(np.uint8)


def change(folder: Path, name: str, act) -> None:
    path = folder / str(SUBJECT) / name
    image = nib.load(path)
    labels, affine = act(np.asarray(image.dataobj), image.affine)
    nib.save(nib.Nifti1Image(labels, affine), path)


def test_a_still_pair_is_the_heart_itself(still: Path, heart) -> None:
    pair = read_pair(LabelMaps(still), SUBJECT, "ED")
    assert dice(pair.mask, heart.mask) > 0.985
    assert dice(pair.slices, heart.mask[:, :, 2::5]) > 0.985
    assert dice(pair.clean, pair.slices) > 0.985
    pool = pool_features(pair.clean).astype(float)
    weights = pool_weights(pool)
    np.testing.assert_allclose((pool[:, :2] * weights).sum(0) / weights.sum(0), 63.5, atol=0.1)


def test_the_scanner_decides_where_the_planes_lie(still: Path, heart) -> None:
    """Turned, mirrored, transposed and shifted files of the same heart give the same pair."""
    plain = read_pair(LabelMaps(still), SUBJECT, "ED")
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = TURN, (-31.0, 12.0, 77.0)

    def mirrored(labels, affine):
        reverse = np.diag([-1.0, 1.0, -1.0, 1.0])
        reverse[0, 3], reverse[2, 3] = labels.shape[0] - 1, labels.shape[2] - 1
        swap = np.eye(4)[:, [1, 0, 2, 3]]
        return labels[::-1, :, ::-1].transpose(1, 0, 2), world @ affine @ reverse @ swap

    change(still, "LR_ED.nii.gz", lambda labels, affine: (labels, world @ affine))
    change(still, "HR_ED.nii.gz", mirrored)
    found = read_pair(LabelMaps(still), SUBJECT, "ED")
    assert dice(found.slices, plain.slices) > 0.99
    assert dice(found.mask, plain.mask) > 0.99
    # Breath-holds may leave the patient elsewhere in-plane: that is taken out, for nobody can know it.
    along_x = TURN[:, 0] * 9.0
    change(still, "HR_ED.nii.gz", lambda labels, a: (labels, a + np.pad(along_x[:, None], ((0, 1), (3, 0)))))
    assert dice(read_pair(LabelMaps(still), SUBJECT, "ED").mask, found.mask) > 0.99


def test_a_move_along_the_stack_is_kept(still: Path, heart) -> None:
    plain = read_pair(LabelMaps(still), SUBJECT, "ED")
    up = np.zeros((4, 4))
    up[2, 3] = 4.0
    change(still, "HR_ED.nii.gz", lambda labels, affine: (labels, affine + up))
    moved = read_pair(LabelMaps(still), SUBJECT, "ED")
    assert dice(moved.mask[:, :, 2:], plain.mask[:, :, :-2]) > 0.97


def test_a_denser_stack_has_its_own_planes(tmp_path: Path, heart) -> None:
    """Slices 8 mm apart: planes of 1.6 mm, cut from the map where they lie."""
    write_pairs(tmp_path, [(SUBJECT, heart.id, heart.mask)], Normal(1e-6), seed=0)
    fine = np.where(heart.mask[:, :, ::4], 2, 0).astype(np.uint8)
    affine = np.diag([1.0, 1.0, 8.0, 1.0])
    affine[2, 3] = 4.0
    assert np.count_nonzero(fine.any((0, 1))) <= 12
    change(tmp_path, "LR_ED.nii.gz", lambda *_: (fine, affine))
    pair = read_pair(LabelMaps(tmp_path), SUBJECT, "ED")
    assert dice(pair.clean, pair.slices) > 0.97


@pytest.mark.parametrize(
    ("name", "act", "told"),
    [
        ("HR_ED.nii.gz", lambda d, a: (d, a + np.outer([0, 0, 1, 0], [0, 0, 0, 300.0])), "lie apart"),
        ("HR_ED.nii.gz", lambda d, a: (d, np.diag([-1, 1, -1, 1]) @ a), "opposite directions"),
        ("LR_ED.nii.gz", lambda d, a: (d, np.block([[TURN, np.zeros((3, 1))], [np.zeros(3), 1]]) @ a), "degrees apart"),
        (
            "LR_ED.nii.gz",
            lambda d, a: (2 * ndimage.binary_erosion(d == 2, np.ones((3, 3, 1)), 3).astype("u1"), a),
            "size",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(still: Path, name: str, act, told: str) -> None:
    change(still, name, act)
    with pytest.raises(PairMismatch, match=told) as error:
        read_pair(LabelMaps(still), SUBJECT, "ED")
    assert f"subject {SUBJECT}" in str(error.value)
    assert "HR_ED.nii.gz" in str(error.value)


def test_files_that_are_missing_or_damaged(still: Path, tmp_path: Path) -> None:
    maps = LabelMaps(still)
    assert maps.pairs("training") == ((SUBJECT, "ED"),)
    with pytest.raises(NoInputs, match="selection part"):
        maps.pairs("selection")
    low = still / str(SUBJECT) / "LR_ED.nii.gz"
    low.write_bytes(low.read_bytes()[:200])
    with pytest.raises(UnreadableVolume, match="LR_ED"):
        read_pair(maps, SUBJECT, "ED")
    with pytest.raises(NoInputs, match="LR_ED"):
        prepare_pairs(tmp_path / "kept", still, "training")
    low.unlink()
    with pytest.raises(NoInputs, match=r"LR_ED.*missing; add it, or remove HR_ED"):
        maps.pairs("training")
    with pytest.raises(UnreadableVolume, match="no such file"):
        read_pair(maps, SUBJECT, "ED")


def test_prepared_pairs_are_the_pairs_and_bad_ones_are_named(tmp_path: Path, heart) -> None:
    one, two = split()["training"][:2]
    data, kept = tmp_path / "data", tmp_path / "kept"
    write_pairs(data, [(s, heart.id, heart.mask) for s in (one, two)], Normal(3.0), seed=1)
    high = data / str(two) / "HR_ED.nii.gz"
    labels = np.asarray(nib.load(high).dataobj)
    nib.save(nib.Nifti1Image(np.stack([labels, labels], -1), np.diag([1, 1, 2, 1])), high)
    with pytest.raises(BadHeader):
        read_pair(LabelMaps(data), two, "ED")
    found = prepare_pairs(kept, data, "training")
    assert [f.stem.rpartition("-")[0] for f in found.files] == [f"{one}-ED"]
    assert "HR_ED" in found.refused[f"{two}-ED"]
    pair, again = read_pair(LabelMaps(data), one, "ED"), load_pair(found.files[0])
    np.testing.assert_array_equal(again.slices, pair.slices)
    np.testing.assert_array_equal(again.mask, pair.mask)
    low = data / str(one) / "LR_ED.nii.gz"
    image = nib.load(low)
    labels = np.array(image.dataobj)
    labels[:, :, 4] = np.roll(labels[:, :, 4], 3, 0)
    nib.save(nib.Nifti1Image(labels, image.affine), low)
    newer = load_pair(prepare_pairs(kept, data, "training").files[0])
    assert not np.array_equal(newer.slices, again.slices), "a file that was replaced is read again"
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageProblem, match="pairs of"):
        prepare_pairs(kept, tmp_path / "elsewhere", "training")
