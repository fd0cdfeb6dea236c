import os
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from m2s.data.labelmaps import LabelMaps, canonical_label_map, make_split, read_label_map, split
from m2s.data.phantom import shell
from m2s.data.sdg import voxelise
from m2s_runtime.errors import BadHeader, BadLabels, EmptyWall, NoInputs, UnreadableVolume, WallOutOfRange
from m2s_runtime.slices import pool_features

SHARED = Path(os.environ.get("M2S_SHARED", Path(__file__).parents[3] / "shared"))
REAL = SHARED / "data" / "cardiac_sr_label_maps"
TURN = np.array([[0.36, -0.48, 0.8], [0.8, 0.6, 0.0], [-0.48, 0.64, 0.6]])


def labels_at(shape, spacing, centre=(40.3, 38.8), wall=9.0):
    """A shell heart as a label map, base at low z, with its pool and a right ventricle beside it."""
    vertices, faces = shell(22.0, 45.0, wall, -15.0)
    inner, inner_faces = shell(1.0, 24.0, 20.9, -15.0)
    move = np.array([*centre, 30.0])
    labels = np.zeros(shape, np.int16)
    labels[voxelise(inner + move, inner_faces, shape, spacing)] = 1
    labels[voxelise(vertices + move, faces, shape, spacing)] = 2
    labels[3:6, 5:20, 10:20] = 3
    return labels


def affine_of(spacing):
    affine = np.eye(4)
    affine[:3, :3] = TURN * spacing
    affine[:3, 3] = (-31.0, 12.0, 77.0)
    return affine


def write(path, labels, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)


def mean_pool(mask):
    pool = pool_features(mask[:, :, 2::5]).astype(float)
    return (pool[:, :2] * pool[:, 2:]).sum(0) / pool[:, 2].sum()


def world_centroid(mask, affine):
    return (affine @ np.append(np.argwhere(mask).mean(axis=0), 1))[:3]


@pytest.fixture(scope="module")
def fine():
    spacing = (1.25, 1.25, 2.0)
    return labels_at((70, 66, 64), spacing), affine_of(spacing)


def test_canonical_grid_and_place(fine):
    labels, affine = fine
    found = canonical_label_map(labels, affine, "x")
    assert found.mask.shape == (128, 128, 60)
    assert not found.flipped
    assert mean_pool(found.mask) == pytest.approx([63.5, 63.5], abs=0.1)
    assert np.linalg.norm(found.affine[:3, :3], axis=0) == pytest.approx([1, 1, 2])
    assert np.linalg.norm(world_centroid(found.mask, found.affine) - world_centroid(labels == 2, affine)) < 0.3
    assert found.mask.sum() * 2 == pytest.approx((labels == 2).sum() * 1.25**2 * 2, rel=0.02)
    held = np.flatnonzero(found.mask[:, :, 2::5].any(axis=(0, 1)))
    assert held[0] == (12 - len(held)) // 2


def test_apex_first_is_turned_round_and_the_affine_knows(fine):
    labels, affine = fine
    reverse = np.diag([1.0, 1.0, -1.0, 1.0])
    reverse[2, 3] = labels.shape[2] - 1
    found = canonical_label_map(labels, affine, "x")
    turned = canonical_label_map(labels[:, :, ::-1], affine @ reverse, "x")
    assert turned.flipped
    np.testing.assert_array_equal(turned.mask, found.mask)
    np.testing.assert_allclose(turned.affine, found.affine, atol=1e-9)


def test_a_base_that_slants_is_no_apex(fine):
    """Cut so obliquely that the first third of the planes holds the least: the closed rings tell all the same."""
    labels, affine = fine
    x, z = np.meshgrid(np.arange(70) * 1.25, np.arange(64) * 2.0, indexing="ij")
    slanting = np.where((z < 10 + 0.7 * x)[:, None] & np.isin(labels, (1, 2)), 0, labels)
    area = np.isin(slanting, (1, 2)).sum(axis=(0, 1))
    held = area[area > 0]
    assert held[: len(held) // 3].mean() < 0.7 * held[-(len(held) // 3) :].mean()
    assert not canonical_label_map(slanting, affine, "x").flipped
    reverse = np.diag([1.0, 1.0, -1.0, 1.0])
    reverse[2, 3] = labels.shape[2] - 1
    assert canonical_label_map(slanting[:, :, ::-1], affine @ reverse, "x").flipped


def test_slice_axis_anywhere(fine):
    labels, affine = fine
    moved = canonical_label_map(np.moveaxis(labels, 2, 0), affine[:, [2, 0, 1, 3]], "x")
    np.testing.assert_array_equal(moved.mask, canonical_label_map(labels, affine, "x").mask)


@pytest.mark.parametrize("thickness", [1.0, 1.6, 3.0])
def test_other_plane_spacings(thickness):
    spacing = (0.9, 1.0, thickness)
    labels = labels_at((96, 82, int(110 / thickness)), spacing)
    affine = affine_of(spacing)
    found = canonical_label_map(np.ascontiguousarray(labels), affine, "x")
    assert np.linalg.norm(world_centroid(found.mask, found.affine) - world_centroid(labels == 2, affine)) < 0.5
    assert found.mask.sum() * 2 == pytest.approx((labels == 2).sum() * 0.9 * thickness, rel=0.04)


def test_the_surface_is_the_masks(fine):
    heart = canonical_label_map(*fine, "x").heart()
    again = voxelise(heart.vertices, heart.faces, (128, 128, 60), (1.0, 1.0, 2.0))
    assert 2 * (again & heart.mask).sum() / (again.sum() + heart.mask.sum()) > 0.98


def test_a_folder_in_the_published_layout(tmp_path, fine):
    labels, affine = fine
    for subject in (2, 10, 1081):
        for phase in ("ED", "ES"):
            write(tmp_path / str(subject) / f"HR_{phase}.nii.gz", labels, affine)
    coarse = labels_at((45, 42, 11), (2.0, 2.0, 10.0))
    write(tmp_path / "10" / "LR_ED.nii.gz", coarse, affine_of((2.0, 2.0, 10.0)))
    (tmp_path / "notes").mkdir()
    data = LabelMaps(tmp_path)
    assert data.subjects == (2, 10, 1081)
    assert data.high(10, "ES").id == "labelmap-10-ES"
    low = data.low(10, "ED")
    assert low.masks.shape == (128, 128, 12)
    assert low.placement.step_mm == pytest.approx(10.0)
    parts = [data.part(name) for name in ("training", "selection", "validation")]
    assert sorted(chain.from_iterable(parts)) == [2, 10, 1081]
    with pytest.raises(UnreadableVolume, match=r"LR_ES\.nii\.gz"):
        data.low(10, "ES")


def test_the_committed_split():
    parts = split()
    assert [len(p) for p in parts.values()] == [1024, 72, 235]
    assert sorted(chain.from_iterable(parts.values())) == list(range(1331))
    assert parts == make_split()


def refuse(tmp_path, labels, affine, error, text):
    write(tmp_path / "7" / "HR_ED.nii.gz", labels, affine)
    with pytest.raises(error, match=text) as caught:
        LabelMaps(tmp_path).high(7, "ED")
    assert "HR_ED.nii.gz" in str(caught.value)


def test_refusals_name_file_and_reason(tmp_path, fine):
    labels, affine = fine
    refuse(tmp_path, np.where(labels == 2, 7, labels), affine, BadLabels, "7")
    refuse(tmp_path, np.where(labels == 2, 0, labels), affine, EmptyWall, "label 2")
    refuse(tmp_path, np.stack([labels] * 2, axis=3), affine, BadHeader, "2 frames")
    refuse(tmp_path, labels, affine_of((1.25, 1.25, 9.0)), WallOutOfRange, "mm long")
    refuse(tmp_path, labels[:, :, 18:22], affine, WallOutOfRange, "mm long")
    refuse(tmp_path, labels, affine_of((3.5, 3.5, 2.0)), WallOutOfRange, "reaches")
    tube = np.repeat(labels[:, :, 20:21], 50, axis=2)
    refuse(tmp_path, tube, affine, BadLabels, "base and apex")


def test_no_data_set_here(tmp_path):
    with pytest.raises(NoInputs, match="HR_ED"):
        LabelMaps(tmp_path)


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason=f"subject 1081 is not under {REAL} (set M2S_SHARED)")
def test_subject_1081_raw_and_clean():
    raw = read_label_map(REAL / "1081_ED_HR.nii.gz")
    clean = read_label_map(REAL / "1081_ED_HR_flip_clean.nii.gz")
    assert raw.flipped
    assert not clean.flipped
    assert clean.mask.sum() * 2e-3 == pytest.approx(123.2, rel=0.01)
    for found in (raw, clean):
        assert mean_pool(found.mask) == pytest.approx([63.5, 63.5], abs=0.1)
    # The clean map is the raw one with its ragged basal slices cut off.
    held = np.flatnonzero(clean.mask.any(axis=(0, 1)))
    offset = np.flatnonzero(raw.mask.any(axis=(0, 1)))[-1] - held[-1]
    a, b = clean.mask[:, :, held], raw.mask[:, :, held + offset]
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95
