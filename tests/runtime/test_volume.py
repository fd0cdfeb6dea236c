import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest
from runtime.shells import FRAME, write

from m2s_runtime.volume import read_study

RNG = np.random.default_rng(5)
LABELS = RNG.integers(0, 4, (9, 8, 5)).astype(np.uint8)


def oblique(shift: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = FRAME * [1.4, 1.4, 9.0]
    affine[:3, 3] = [-20 + shift, 14, 3]
    return affine


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i4", "u4", "i8", "u8", "f4", ">f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_numeric_type_reads_as_nibabel_reads_it(tmp_path, dtype, kind, suffix):
    path = tmp_path / f"a{suffix}"
    order = ">" if dtype.startswith(">") else "<"
    header = kind.header_class(endianness=order)
    header.set_data_dtype(dtype)
    image = kind(LABELS.astype(dtype), oblique(), header)
    image.set_data_dtype(dtype)
    nib.save(image, path)
    study = read_study(path)
    oracle = nib.load(path)
    assert study.labels.dtype == np.uint8
    np.testing.assert_array_equal(study.labels[..., 0], np.asarray(oracle.dataobj))
    np.testing.assert_allclose(study.affine, oracle.affine, atol=1e-6)
    assert study.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert study.path == path


@pytest.mark.parametrize("shape", [(9, 8, 5, 3), (9, 8, 5, 3, 1), (9, 8, 5, 1, 1, 1)])
def test_frames_come_last(tmp_path, shape):
    labels = RNG.integers(0, 4, shape).astype(np.uint8)
    study = read_study(write(tmp_path / "a.nii.gz", labels))
    assert study.labels.shape == shape[:4]
    np.testing.assert_array_equal(study.labels, labels.reshape(shape[:4]))


def test_large_labels_need_int16(tmp_path):
    labels = LABELS.astype(np.int32) * 1000
    study = read_study(write(tmp_path / "a.nii.gz", labels))
    assert study.labels.dtype == np.int16
    np.testing.assert_array_equal(study.labels[..., 0], labels)


@pytest.mark.parametrize("name", ["plain.nii.gz", "packed.nii", "no suffix", "trailing .nii.gz "])
def test_content_counts_and_not_the_name(tmp_path, name):
    raw = nib.Nifti1Image(LABELS, oblique()).to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name == "packed.nii" else raw)
    np.testing.assert_array_equal(read_study(tmp_path / name).labels[..., 0], LABELS)


def test_scaling_that_keeps_whole_numbers_is_applied(tmp_path):
    image = nib.Nifti1Image(LABELS, oblique())
    image.header.set_slope_inter(2.0, 1.0)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([2.0, 1.0], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    np.testing.assert_array_equal(read_study(tmp_path / "a.nii").labels[..., 0], LABELS * 2 + 1)


def test_slope_zero_means_unscaled(tmp_path):
    raw = bytearray(nib.Nifti1Image(LABELS, oblique()).to_bytes())
    raw[112:120] = np.array([0.0, 7.0], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    np.testing.assert_array_equal(read_study(tmp_path / "a.nii").labels[..., 0], LABELS)


def test_header_extensions_and_trailing_bytes_are_skipped(tmp_path):
    image = nib.Nifti1Image(LABELS, oblique())
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned on a Tuesday"))
    (tmp_path / "a.nii").write_bytes(image.to_bytes() + b"junk" * 1000)
    np.testing.assert_array_equal(read_study(tmp_path / "a.nii").labels[..., 0], LABELS)


def test_qform_serves_when_there_is_no_sform(tmp_path):
    image = nib.Nifti1Image(LABELS, oblique())
    image.set_sform(None, 0)
    image.set_qform(oblique(), 1)
    nib.save(image, tmp_path / "a.nii")
    study = read_study(tmp_path / "a.nii")
    np.testing.assert_allclose(study.affine, oblique(), atol=1e-4)
    assert study.warnings == ()


def test_disagreeing_forms_are_told_and_sform_wins(tmp_path):
    image = nib.Nifti1Image(LABELS, oblique())
    image.set_sform(oblique(), 1)
    image.set_qform(oblique(4.0), 1)
    nib.save(image, tmp_path / "a.nii")
    study = read_study(tmp_path / "a.nii")
    np.testing.assert_allclose(study.affine, oblique(), atol=1e-4)
    assert "disagree by up to 4.0 mm" in study.warnings[0]


def test_broken_qform_beside_a_good_sform_does_no_harm(tmp_path):
    image = nib.Nifti1Image(LABELS, oblique())
    image.set_sform(oblique(), 1)
    image.header["qform_code"] = 1
    image.header["quatern_b"] = np.nan
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_study(tmp_path / "a.nii").affine, oblique(), atol=1e-4)


def test_spacing_alone_is_told(tmp_path):
    image = nib.Nifti1Image(LABELS, None)
    image.header.set_zooms((1.25, 1.5, 8.0))
    nib.save(image, tmp_path / "a.nii")
    study = read_study(tmp_path / "a.nii")
    np.testing.assert_allclose(study.affine, nib.load(tmp_path / "a.nii").affine)
    assert "orientation are unknown" in study.warnings[0]


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e3), ("meter", 1e-3), ("mm", 1.0), ("unknown", 1.0)])
def test_units_become_millimetres(tmp_path, unit, factor):
    affine = np.diag([1.5, 1.5, 8.0, 1 / factor]) * factor
    image = nib.Nifti1Image(LABELS, affine)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_study(tmp_path / "a.nii").affine, np.diag([1.5, 1.5, 8.0, 1.0]), rtol=1e-5)
