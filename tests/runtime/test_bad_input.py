"""Broken, hostile or mislabelled files: each a typed error that names the file, in bounded time and memory."""

import os
import stat
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.bad_files import CORPUS, LABELS, MIB, Plan, bomb, patched, raw

from m2s_runtime.errors import BadHeader, BadLabels, CaseError, EmptyWall, UnreadableVolume, WallOutOfRange
from m2s_runtime.labels import wall_mask
from m2s_runtime.limits import Limits
from m2s_runtime.placement import canonicalise
from m2s_runtime.volume import read_study
from runtime import bad_files

HANGS = 5.0
"""CPU seconds after which a reading hangs; how fast it is, `benchmarks/fuzz_reader.py` tells."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", CORPUS)
def test_broken_files_are_refused_by_name_and_reason(tmp_path, what):
    bad = CORPUS[what]
    path, start = bad.write(tmp_path), time.process_time()
    with pytest.raises(bad.error) as caught:
        read_study(path)
    assert time.process_time() - start < HANGS
    assert str(caught.value).startswith(path.name)
    assert bad.told in str(caught.value)
    assert ": " in str(caught.value).removeprefix(path.name)


def test_missing_file(tmp_path):
    with pytest.raises(UnreadableVolume, match=r"gone\.nii: no such file"):
        read_study(tmp_path / "gone.nii")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    made = bad_files.not_files(tmp_path)
    assert {"directory", "dangling"} <= set(made) or os.name == "nt"
    for name, path in made.items():
        start = time.process_time()
        with pytest.raises(UnreadableVolume, match=rf"^{name}\.nii: ") as caught:
            read_study(path)
        assert time.process_time() - start < HANGS
        if name == "dangling":
            assert "link to nothing" in str(caught.value)
        elif name != "circle":
            assert "not a regular file" in str(caught.value)


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

    monkeypatch.setattr("m2s_runtime.volume.open_regular", denied)
    with pytest.raises(UnreadableVolume, match=r"x\.nii: not readable by this user"):
        read_study(path)


def cost(path, limits=None):
    """CPU seconds, peak memory in MiB, and the refusal, if any, of one reading."""
    tracemalloc.start()
    try:
        start = time.process_time()
        refusal = None
        try:
            read_study(path, limits or Limits())
        except CaseError as error:
            refusal = error
        return time.process_time() - start, tracemalloc.get_traced_memory()[1] / MIB, refusal
    finally:
        tracemalloc.stop()


def test_two_gib_in_two_mb_are_refused_from_the_header(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(bomb(patched({"dim": [4, 1000, 1000, 1000, 2, 1, 1, 1]}), 2048))
    assert path.stat().st_size < 2.2e6
    seconds, peak, refusal = cost(path)
    assert isinstance(refusal, BadHeader)
    assert "1000 x 1000 x 1000 x 2" in str(refusal)
    assert (seconds < HANGS, peak < 10) == (True, True)


@pytest.mark.parametrize("start", [b"", b"no header at all", raw()[:40]])
def test_a_bomb_without_a_header_is_no_nifti(tmp_path, start):
    (tmp_path / "bomb.nii.gz").write_bytes(bomb(start, 256))
    seconds, peak, refusal = cost(tmp_path / "bomb.nii.gz")
    assert isinstance(refusal, UnreadableVolume)
    assert (seconds < HANGS, peak < 10) == (True, True)


def test_no_more_is_decompressed_than_declared(tmp_path):
    path = tmp_path / "tail.nii.gz"
    path.write_bytes(bomb(raw(), 1024))
    seconds, peak, refusal = cost(path)
    assert refusal is None
    assert (seconds < HANGS, peak < 20) == (True, True)
    np.testing.assert_array_equal(read_study(path).labels[..., 0], LABELS)


def test_a_volume_at_the_limit_takes_a_byte_a_voxel(tmp_path):
    header = patched({"dim": [3, 512, 512, 128, 1, 1, 1, 1], "datatype": 64, "bitpix": 64})[:352]
    (tmp_path / "full.nii.gz").write_bytes(bomb(header, 256))
    _, peak, refusal = cost(tmp_path / "full.nii.gz", Limits(voxels=2**25))
    assert refusal is None
    assert peak < 32 + 40


def test_labels_over_255_take_two_bytes_of_the_limit(tmp_path):
    labels = LABELS.astype(np.int16) * 300
    path = bad_files.write(tmp_path, raw(labels))
    with pytest.raises(BadLabels, match=f"--max-voxels {2 * labels.size}"):
        read_study(path, Limits(voxels=2 * labels.size - 1))
    np.testing.assert_array_equal(read_study(path, Limits(voxels=2 * labels.size)).labels[..., 0], labels)


@pytest.mark.parametrize(
    ("limits", "flag"),
    [
        (Limits(voxels=LABELS.size - 1), f"--max-voxels {LABELS.size}"),
        (Limits(axis=11), "--max-axis 12"),
        (Limits(frames=0), "--max-frames 1"),
        (Limits(file_mib=0), "--max-file-mib 1"),
    ],
)
def test_every_limit_names_the_flag_that_raises_it(tmp_path, limits, flag):
    path = bad_files.write(tmp_path, raw())
    with pytest.raises((BadHeader, UnreadableVolume), match=f"add {flag}$"):
        read_study(path, limits)
    assert read_study(path).labels.shape == (*LABELS.shape, 1)


def test_fifty_frames_of_a_cine_pass(tmp_path):
    header = patched({"dim": [4, 256, 256, 20, 50, 1, 1, 1], "vox_offset": 352})[:352]
    (tmp_path / "cine.nii.gz").write_bytes(bomb(header, 63))
    assert read_study(tmp_path / "cine.nii.gz").labels.shape == (256, 256, 20, 50)


def test_noise_of_many_labels_is_judged_in_no_time():
    """Every label of 32 might ring every other: looking at each pair would take minutes."""
    labels = np.random.default_rng(0).integers(0, 32, (160, 160, 12)).astype(np.uint8)
    start = time.process_time()
    with pytest.raises(BadLabels, match="--labels myo="):
        wall_mask(labels, "auto")
    assert time.process_time() - start < HANGS


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


def settle(path):
    """What the batch does with a file before any network sees it."""
    study = read_study(path)
    wall, _ = wall_mask(study.labels, "auto")
    return study, canonicalise(wall[..., 0], study.affine)


plans = st.builds(
    Plan,
    version=st.sampled_from([1, 2]),
    big=st.booleans(),
    pair=st.booleans(),
    packing=st.sampled_from(["plain", "gzip", "stored", "members"]),
    dtype=st.sampled_from(bad_files.DTYPES),
    frames=st.sampled_from([0, 1, 3]),
    fields=st.lists(
        st.tuples(st.sampled_from(bad_files.FIELDS), st.integers(0, 7), st.sampled_from(bad_files.VALUES)), max_size=4
    ).map(tuple),
    header=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=20).map(tuple),
    stream=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4).map(tuple),
    keep=st.just(1.0) | st.floats(0, 1),
    bomb=st.just(0) | st.integers(0, 8),
)


@pytest.mark.filterwarnings("error")
@settings(max_examples=400, deadline=None)
@given(plans)
def test_any_file_gives_a_volume_or_a_typed_error(tmp_path_factory, plan):
    path = bad_files.write(tmp_path_factory.mktemp("fuzz"), plan.files(), "x")
    start = time.process_time()
    try:
        study, canonical = settle(path)
    except CaseError as error:
        assert str(error)  # noqa: PT017
    else:
        assert study.labels.ndim == 4
        assert study.labels.min() >= 0
        assert np.isfinite(study.affine).all()
        assert canonical.masks.shape == (128, 128, 12)
        assert np.isfinite(canonical.placement.affine).all()
    assert time.process_time() - start < HANGS


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from([b"", b"\x1f\x8b\x08", bytes(raw()[:348])]))
def test_any_bytes_give_a_volume_or_a_typed_error(tmp_path_factory, content, start):
    path = bad_files.write(tmp_path_factory.mktemp("fuzz"), start + content, "x")
    try:
        settle(path)
    except CaseError as error:
        assert str(error).startswith("x.nii.gz: ")  # noqa: PT017
