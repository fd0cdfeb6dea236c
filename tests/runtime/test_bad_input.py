"""Broken, hostile or mislabelled files: each a typed error that names the file, in bounded time and memory."""

import gzip
import os
import resource
import stat
import time

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.shells import AFFINE

from m2s_runtime.errors import (
    BadAffine,
    BadHeader,
    BadLabels,
    CaseError,
    EmptyWall,
    UnreadableVolume,
    WallOutOfRange,
)
from m2s_runtime.labels import wall_mask
from m2s_runtime.placement import canonicalise
from m2s_runtime.volume import read_study

LABELS = np.random.default_rng(2).integers(0, 4, (12, 11, 6)).astype(np.uint8)
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, CODES, SROW, MAGIC = 40, 70, 76, 108, 112, 252, 280, 344


def raw(labels: np.ndarray = LABELS, affine: np.ndarray = AFFINE) -> bytearray:
    return bytearray(nib.Nifti1Image(labels, affine).to_bytes())


def patched(at: int, values: list[float], dtype: str) -> bytes:
    data, new = raw(), np.array(values, dtype).tobytes()
    data[at : at + len(new)] = new
    return bytes(data)


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 0.1
    return affine


def altered_stored_gzip() -> bytes:
    """Uncompressed blocks with one voxel changed: only the checksum at the end can tell."""
    data = bytearray(gzip.compress(bytes(raw()), 0))
    data[-30] ^= 1
    return bytes(data)


BROKEN = {
    "empty file": (b"", UnreadableVolume, "not a NIfTI"),
    "text": (b"label,volume\n" * 60, UnreadableVolume, "not a NIfTI"),
    "header only": (bytes(raw()[:300]), UnreadableVolume, "not a NIfTI"),
    "truncated": (bytes(raw()[:-100]), UnreadableVolume, "cut short"),
    "truncated gzip": (gzip.compress(bytes(raw()))[:-200], UnreadableVolume, "cut short"),
    "gzip of nothing": (gzip.compress(b""), UnreadableVolume, "not a NIfTI"),
    "gzip magic and junk": (b"\x1f\x8b" + b"\x07" * 90, UnreadableVolume, "copy it again"),
    "corrupt gzip": (gzip.compress(bytes(raw()))[:-120] + b"\xff" * 120, UnreadableVolume, "copy it again"),
    "altered gzip": (altered_stored_gzip(), UnreadableVolume, "copy it again"),
    "gzip without its end": (gzip.compress(bytes(raw()))[:-5], UnreadableVolume, "cut short"),
    "pair": (patched(MAGIC, list(b"ni1\0"), "u1"), UnreadableVolume, "single-file"),
    "analyze": (patched(MAGIC, [0] * 4, "u1"), UnreadableVolume, "single-file"),
    "two axes": (patched(DIM, [2, 12, 66, 1], "<i2"), BadHeader, "2 dimensions"),
    "nine axes": (patched(DIM, [9, 12, 11, 6], "<i2"), BadHeader, "9 dimensions"),
    "negative size": (patched(DIM, [3, -12, 11, 6], "<i2"), BadHeader, "-12 x 11 x 6"),
    "zero size": (patched(DIM, [3, 12, 0, 6], "<i2"), BadHeader, "12 x 0 x 6"),
    "giant": (patched(DIM, [3, 30000, 30000, 30000], "<i2"), BadHeader, "over the limits"),
    "many voxels": (patched(DIM, [3, 1000, 1000, 1000], "<i2"), BadHeader, "over the limits"),
    "many frames": (patched(DIM, [4, 4, 4, 4, 200], "<i2"), BadHeader, "100 frames"),
    "five axes": (patched(DIM, [5, 4, 4, 4, 1, 3], "<i2"), BadHeader, "more than four axes"),
    "offset before header": (patched(VOX_OFFSET, [12], "<f4"), BadHeader, "byte 12"),
    "offset far away": (patched(VOX_OFFSET, [3e9], "<f4"), BadHeader, "byte 3e"),
    "offset NaN": (patched(VOX_OFFSET, [np.nan], "<f4"), BadHeader, "byte nan"),
    "unknown type": (patched(DATATYPE, [77], "<i2"), BadHeader, "as uint8"),
    "complex": (patched(DATATYPE, [32], "<i2"), BadLabels, "no labels"),
    "rgb": (patched(DATATYPE, [128], "<i2"), BadLabels, "no labels"),
    "slope with NaN intercept": (patched(SLOPE, [1, np.nan], "<f4"), BadHeader, "uint8"),
    "half slope": (patched(SLOPE, [0.55, 0], "<f4"), BadLabels, "whole numbers"),
    "negative labels": (bytes(raw(LABELS.astype(np.int16) - 2)), BadLabels, "from -2"),
    "huge labels": (bytes(raw(LABELS.astype(np.int32) * 90000)), BadLabels, "is this an image"),
    "fractions": (bytes(raw(LABELS.astype(np.float32) * 0.7)), BadLabels, "nearest neighbour"),
    "NaN voxel": (bytes(raw(np.where(LABELS == 1, np.nan, 0).astype(np.float32))), BadLabels, "whole numbers"),
    "infinite voxel": (bytes(raw(np.where(LABELS == 1, np.inf, 0).astype(np.float32))), BadLabels, "whole numbers"),
    "NaN sform": (patched(SROW, [np.nan], "<f4"), BadAffine, "NaN"),
    "NaN pixdim": (bytes(patched(CODES, [0, 0], "<i2")[:PIXDIM]) + np.full(8, np.nan, "<f4").tobytes()
                   + bytes(patched(CODES, [0, 0], "<i2")[PIXDIM + 32 :]), BadAffine, "NaN"),
    "zero spacing": (patched(SROW, [0, 0, 0, 0], "<f4"), BadAffine, "0 x 1.5 x 8 mm"),
    "giant spacing": (bytes(raw(affine=np.diag([1.5, 1.5, 80.0, 1.0]))), BadAffine, "80 mm"),
    "sheared": (bytes(raw(affine=sheared())), BadAffine, "sheared"),
    "flat": (patched(SROW, [1.5, 1.5, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0], "<f4"), BadAffine, "sheared"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_refused_by_name_and_reason(tmp_path, what):
    content, error, told = BROKEN[what]
    path = tmp_path / "case7.nii.gz"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_study(path)
    assert str(caught.value).startswith("case7.nii.gz: ")
    assert told in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UnreadableVolume, match=r"gone\.nii: no such file"):
        read_study(tmp_path / "gone.nii")


def test_directory_named_like_a_volume(tmp_path):
    (tmp_path / "x.nii").mkdir()
    with pytest.raises(UnreadableVolume, match="not a regular file"):
        read_study(tmp_path / "x.nii")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.nii")
    with pytest.raises(UnreadableVolume, match="not a regular file"):
        read_study(tmp_path / "x.nii")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="modes do not bind the superuser")
def test_unreadable_mode(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(raw())
    path.chmod(stat.S_IWUSR)
    with pytest.raises(UnreadableVolume, match="permissions"):
        read_study(path)


def test_permission_denied_is_told_apart(tmp_path, monkeypatch):
    """The superuser cannot make a file unreadable, so the refusal is staged."""
    path = tmp_path / "x.nii"
    path.write_bytes(raw())

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("m2s_runtime.volume._open_regular", denied)
    with pytest.raises(UnreadableVolume, match=r"x\.nii: not readable by this user"):
        read_study(path)


def test_gzip_bomb_is_refused_from_its_header(tmp_path):
    bomb = bytearray(raw())
    bomb[DIM : DIM + 8] = np.array([3, 1000, 1000, 1000], "<i2").tobytes()
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bomb)
        for _ in range(200):
            file.write(bytes(2**20))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadHeader, match="1000 x 1000 x 1000"):
        read_study(path)
    assert time.process_time() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


def test_no_more_is_decompressed_than_declared(tmp_path):
    path = tmp_path / "tail.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(raw())
        for _ in range(200):
            file.write(bytes(2**20))
    start = time.process_time()
    np.testing.assert_array_equal(read_study(path).labels[..., 0], LABELS)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("labels", "scheme", "error"),
    [
        (np.zeros((30, 30, 8), np.uint8), "auto", EmptyWall),
        (np.pad(np.ones((10, 10, 1), np.uint8), ((5, 5), (5, 5), (0, 7))), "auto", WallOutOfRange),
        (np.ones((30, 30, 8), np.uint8) * 5, "acdc", BadLabels),
    ],
)
def test_good_files_without_a_usable_wall(tmp_path, labels, scheme, error):
    path = tmp_path / "x.nii"
    path.write_bytes(raw(labels))
    study = read_study(path)
    with pytest.raises(error):
        canonicalise(wall_mask(study.labels, scheme)[0][..., 0], study.affine)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=40), st.booleans())
def test_any_header_gives_a_volume_or_a_typed_error(tmp_path_factory, changes, packed):
    data = raw()
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.mktemp("fuzz") / "x.nii.gz"
    path.write_bytes(gzip.compress(bytes(data), 1) if packed else bytes(data))
    try:
        study = read_study(path)
        mask, _ = wall_mask(study.labels, "auto")
        canonical = canonicalise(mask[..., 0], study.affine)
    except CaseError as error:
        assert str(error)  # noqa: PT017
        return
    assert canonical.masks.shape == (128, 128, 12)
    assert np.isfinite(canonical.placement.affine).all()
