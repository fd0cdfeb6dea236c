import gzip
import hashlib

import nibabel as nib
import numpy as np
import pytest
from runtime.bad_files import halves, in_members, raw
from runtime.shells import FRAME, write

from m2s_runtime.gzip_stream import GzipStream
from m2s_runtime.nifti_files import digest_of, split_suffix
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


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", [".img", ".img.gz", ".hdr", ".hdr.gz"])
def test_a_pair_reads_as_nibabel_reads_it_whichever_file_is_named(tmp_path, kind, order, suffix):
    image = kind(LABELS.astype("i2"), oblique(), kind.header_class(endianness=order))
    image.to_file_map(kind.filespec_to_file_map(tmp_path / f"a.img{'.gz' * suffix.endswith('.gz')}"))
    (header,) = tmp_path.glob("a.hdr*")
    (voxels,) = tmp_path.glob("a.img*")
    study = read_study(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(study.labels[..., 0], np.asarray(nib.load(header).dataobj))
    np.testing.assert_allclose(study.affine, nib.load(header).affine, atol=1e-6)
    assert study.path == header
    assert study.sha256 == hashlib.sha256(header.read_bytes() + voxels.read_bytes()).hexdigest() == digest_of(header)


@pytest.mark.parametrize("names", [("a.HDR", "a.IMG"), ("a.hdr", "a.img.gz"), ("a.hdr.gz", "a.img")])
def test_halves_of_a_pair_may_be_packed_apart_and_in_capitals(tmp_path, names):
    for name, content in zip(names, halves(bytes(raw(LABELS))), strict=True):
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for name in names:
        np.testing.assert_array_equal(read_study(tmp_path / name).labels[..., 0], LABELS)


def test_the_half_that_is_packed_like_the_named_one_is_taken(tmp_path):
    header, voxels = halves(bytes(raw(LABELS)))
    (tmp_path / "a.hdr").write_bytes(header)
    (tmp_path / "a.img").write_bytes(voxels)
    (tmp_path / "a.img.gz").write_bytes(gzip.compress(bytes(len(voxels))))
    np.testing.assert_array_equal(read_study(tmp_path / "a.hdr").labels[..., 0], LABELS)


def test_a_pair_has_a_digest_of_both_files(tmp_path):
    for name, content in zip(("a.hdr", "a.img"), halves(bytes(raw(LABELS))), strict=True):
        (tmp_path / name).write_bytes(content)
    before = digest_of(tmp_path / "a.hdr")
    (tmp_path / "a.img").write_bytes(bytes(LABELS.size))
    assert digest_of(tmp_path / "a.hdr") not in (before, None)
    assert digest_of(tmp_path / "gone.nii") is None


def test_a_single_file_named_like_half_a_pair_is_what_it_holds(tmp_path):
    for name in ("a.hdr", "b.img"):
        (tmp_path / name).write_bytes(raw(LABELS))
        np.testing.assert_array_equal(read_study(tmp_path / name).labels[..., 0], LABELS)


def test_gzip_in_several_members_and_padded(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(in_members(bytes(raw(LABELS)), 64) + bytes(300_000))
    np.testing.assert_array_equal(read_study(tmp_path / "a.nii.gz").labels[..., 0], LABELS)


@pytest.mark.parametrize("size", [1, 3, 65536, 300_000])
def test_a_gzip_stream_reads_as_the_library_reads_it(tmp_path, size):
    content = np.random.default_rng(1).integers(0, 4, 400_000).astype(np.uint8).tobytes()
    (tmp_path / "a.gz").write_bytes(in_members(content, 70_000))
    with (tmp_path / "a.gz").open("rb") as file:
        stream, found = GzipStream(file), b""
        while piece := stream.read(size):
            found += piece
            if size < 10 and len(found) > 70_100:
                content = content[: len(found)]
                break
    assert found == content


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.nii", ("a", ".nii")),
        ("a.NII.GZ", ("a", ".NII.GZ")),
        ("a.b.hdr.gz", ("a.b", ".hdr.gz")),
        ("a.img", ("a", ".img")),
        ("a.gz", ("a.gz", "")),
        (".nii", ("", ".nii")),
    ],
)
def test_suffixes(name, parts):
    assert split_suffix(name) == parts


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
    study = read_study(tmp_path / "a.nii")
    np.testing.assert_allclose(study.affine, oblique(), atol=1e-4)
    assert study.warnings == ("qform is unusable, sform is used",)


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
