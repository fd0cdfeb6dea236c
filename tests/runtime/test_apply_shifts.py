"""Slices of an image given by a formula in scanner millimetres are moved, and have to come back."""

import gzip
import hashlib
import json
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from runtime.shells import FRAME, Shell, dice, reoriented, scan, world_points

from m2s_runtime import cli, strict_json
from m2s_runtime.apply_shifts import apply_shifts, realign
from m2s_runtime.errors import BadHeader, UnreadableVolume, UsageProblem
from m2s_runtime.shifts_file import SliceMove, SliceShifts, read_shifts

AFFINE, SHAPE = scan((1.5, 1.5, 9.0), (64, 72, 6))


def picture(points):
    """A smooth image, 100 to 900, without symmetry."""
    u, v, w = np.moveaxis(points @ FRAME, -1, 0) / 30.0
    return 500 + 250 * np.sin(u + 0.5 * w) * np.cos(1.3 * v - 0.4) + 150 * np.sin(0.7 * v + 0.2)


def shifts_mm(count, seed=3):
    """In-plane motion of each slice as world vectors, (S, 3) mm."""
    return np.random.default_rng(seed).normal(0, 4, (count, 2)) @ FRAME[:, :2].T


def document(shape, affine, moves, **changes):
    axis = int(np.linalg.norm(affine[:3, :3], axis=0).argmax())
    whole = SliceShifts(
        1, "", "a.nii.gz", "0" * 64, None, "mm", "RAS", shape, tuple(map(tuple, affine.tolist())), axis,
        tuple(SliceMove(s, tuple(move), estimated=True) for s, move in enumerate(moves.tolist())),
    )  # fmt: skip
    return replace(whole, **changes)


def write(path, shifts):
    path.write_text(strict_json.dumps(shifts))
    return path


def save(path, data, affine=AFFINE, **header):
    image = nib.Nifti1Image(data, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.fixture
def scanned():
    """What the scanner saw, what it should have seen, and the moves that lead from one to the other."""
    points, seen = world_points(AFFINE, SHAPE), shifts_mm(SHAPE[2])
    return picture(points - seen), picture(points), -seen


def inner(data):
    """Away from the border, where pixels come from outside the image."""
    return data[12:-12, 12:-12]


@pytest.mark.parametrize(("flips", "order"), [((), (0, 1, 2)), ((0, 2), (0, 1, 2)), ((1,), (2, 0, 1))])
def test_what_moved_comes_back(tmp_path, scanned, flips, order):
    moved, still, moves = scanned
    array, affine = reoriented(moved, AFFINE, flips, order)
    moves = moves[::-1] if 2 in flips else moves
    shifts = write(tmp_path / "a_shifts.json", document(array.shape, affine, moves))
    image = save(tmp_path / "a.nii.gz", array.astype(np.float32), affine)
    found = nib.load(apply_shifts([shifts], image, tmp_path / "out"))
    back, _ = reoriented(still, AFFINE, flips, order)
    undo = np.argsort(order)
    error = abs(found.get_fdata() - back).transpose(undo)
    before = abs(array - back).transpose(undo)
    assert inner(error).max() < 3.0
    assert inner(before).max() > 60.0
    np.testing.assert_array_equal(found.affine, nib.load(image).affine)


def test_a_cine_of_big_endian_shorts_keeps_its_header(tmp_path, scanned):
    moved, still, moves = scanned
    frames = np.stack([moved, 2 * moved, 3 * moved], axis=3)
    image = nib.Nifti1Image(np.rint(frames).astype(">i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4], image.header["descrip"] = 33.0, b"as it was"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    image.header.set_slope_inter(0.5, 3.0)
    nib.save(image, tmp_path / "cine.nii")
    raw = (tmp_path / "cine.nii").read_bytes()
    shifts = write(tmp_path / "a_shifts.json", document(SHAPE, AFFINE, moves))
    path = apply_shifts([shifts], tmp_path / "cine.nii", tmp_path)
    assert path == tmp_path / "cine_realigned.nii"
    start = int(image.header["vox_offset"]) or int(nib.load(tmp_path / "cine.nii").dataobj.offset)
    assert path.read_bytes()[:start] == raw[:start]
    assert len(path.read_bytes()) == len(raw)
    found = nib.load(path).dataobj.get_unscaled()
    for frame in range(3):
        assert abs(inner(found[..., frame] - (frame + 1) * still)).max() < 3.0 * (frame + 1) + 1


def test_frames_share_the_median_and_slices_that_are_not_listed_stay(tmp_path, scanned):
    moved, still, moves = scanned
    wrong = moves.copy()
    wrong[2] += 20 * FRAME[:, 0]
    paths = []
    for number, some in enumerate((moves, wrong, moves)):
        one = document(SHAPE, AFFINE, some, frame=number)
        listed = one.slices[1:] if number else one.slices[1:5]
        paths.append(write(tmp_path / f"a_t{number}_shifts.json", replace(one, slices=listed)))
    image = save(tmp_path / "a.nii.gz", moved.astype(np.float32))
    found = nib.load(apply_shifts(paths, image, tmp_path / "out")).get_fdata()
    np.testing.assert_array_equal(found[..., 0], moved[..., 0].astype(np.float32))
    assert abs(inner(found - still)[..., 1:]).max() < 3.0


def test_labels_are_never_mixed(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[20:40, 20:40], labels[25:35, 25:35] = 2, 4
    moves = np.tile(FRAME[:, 0] * 1.5 * 2.4, (SHAPE[2], 1))
    image = save(tmp_path / "a.nii.gz", labels)
    ours = document(SHAPE, AFFINE, moves, source_sha256=hashlib.sha256(image.read_bytes()).hexdigest())
    found = np.asarray(nib.load(apply_shifts([write(tmp_path / "a.json", ours)], image, tmp_path / "1")).dataobj)
    np.testing.assert_array_equal(found, np.roll(labels, 2, axis=0))
    named = save(tmp_path / "b.nii.gz", labels, AFFINE, intent_code=1002)
    other = write(tmp_path / "b.json", document(SHAPE, AFFINE, moves))
    assert set(np.unique(np.asarray(nib.load(apply_shifts([other], named, tmp_path / "2")).dataobj))) == {0, 2, 4}
    plain = save(tmp_path / "c.nii.gz", labels)
    assert len(np.unique(np.asarray(nib.load(apply_shifts([other], plain, tmp_path / "3")).dataobj))) > 3


def test_whole_pixels_and_the_border():
    plane = np.arange(20, dtype=np.int16).reshape(4, 5, 1)
    found = realign(plane, np.array([[1.0, -2.0]]), 2)
    np.testing.assert_array_equal(found[1:, :3, 0], plane[:3, 2:, 0])
    assert not found[0].any()
    assert not found[:, 3:].any()
    assert found.dtype == np.int16


def test_same_bytes_every_time(tmp_path, scanned):
    moved, _, moves = scanned
    shifts = write(tmp_path / "a.json", document(SHAPE, AFFINE, moves))
    image = save(tmp_path / "a.nii.gz", moved.astype(np.float32))
    one, two = (apply_shifts([shifts], image, tmp_path / name).read_bytes() for name in "12")
    assert one == two
    assert gzip.decompress(one)[:348] == gzip.decompress(image.read_bytes())[:348]


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ("shape", BadHeader, "64 x 72 x 5"),
        ("place", BadHeader, "mm off"),
        ("cut", UnreadableVolume, "cut short"),
        ("text", UnreadableVolume, "not a NIfTI"),
        ("crc", UnreadableVolume, "damaged"),
        ("gone", UnreadableVolume, "no such file"),
        ("circle", UnreadableVolume, "cannot be read"),
        ("half", UnreadableVolume, "pair"),
        ("complex", BadHeader, "complex"),
    ],
)
def test_images_that_do_not_fit(tmp_path, scanned, change, error, told):
    moved, _, moves = scanned
    shifts = write(tmp_path / "a.json", document(SHAPE, AFFINE, moves))
    path = tmp_path / "a.nii.gz"
    data, affine = moved.astype(np.float32), AFFINE.copy()
    if change == "place":
        affine[:3, 3] += 3
    if change == "complex":
        data = data.astype(np.complex64)
    save(path, data[:, :, :5] if change == "shape" else data, affine)
    raw = path.read_bytes()
    if change == "cut":
        path.write_bytes(gzip.compress(gzip.decompress(raw)[:-100]))
    elif change == "crc":
        path.write_bytes(raw[:-8] + bytes(8))
    elif change == "text":
        path.write_text("no image")
    elif change == "half":
        start = bytearray(gzip.decompress(raw))
        start[344:346] = b"ni"
        path.write_bytes(gzip.compress(bytes(start)))
    elif change in ("gone", "circle"):
        path.unlink()
    if change == "circle":
        path.symlink_to(path)
    with pytest.raises(error, match=told):
        apply_shifts([shifts], path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_documents_that_do_not_fit(tmp_path, scanned):
    moved, _, moves = scanned
    image = save(tmp_path / "a.nii.gz", moved.astype(np.float32))
    good = document(SHAPE, AFFINE, moves)
    one = write(tmp_path / "a.json", good)
    two = write(tmp_path / "b.json", replace(good, source_sha256="1" * 64))
    with pytest.raises(UsageProblem, match="two label maps"):
        apply_shifts([one, two], image, tmp_path / "out")
    bad = [strict_json.dumps(replace(good, **change)) for change in ({"slice_axis": 3}, {"shape": (64, 72, 10**12)})]
    for text in ("", "{}", json.dumps({"schema": 1}), *bad):
        two.write_text(text)
        with pytest.raises(UsageProblem, match=r"b\.json"):
            read_shifts(two)
    write(two, replace(good, slices=(SliceMove(6, (0.0, 0.0, 0.0), estimated=True),)))
    with pytest.raises(UsageProblem, match="cannot be"):
        read_shifts(two)
    apply_shifts([one], image, tmp_path / "out")
    with pytest.raises(UsageProblem, match="--overwrite"):
        apply_shifts([one], image, tmp_path / "out")
    apply_shifts([one], image, tmp_path / "out", overwrite=True)


def test_from_the_label_map_to_the_realigned_image(tmp_path, capfd):
    """A phantom whose slices moved, through the shipped bundle and both commands."""
    pytest.importorskip("onnxruntime")
    affine, shape = scan()
    seen = shifts_mm(shape[2], seed=8)
    points = world_points(affine, shape)
    labels = save(tmp_path / "a.nii.gz", Shell().labels(points - seen), affine)
    image = save(tmp_path / "image.nii.gz", picture(points - seen).astype(np.float32), affine)
    out, save_these = tmp_path / "out", "mask,overlay,shifts"
    assert cli.run([str(labels), "-o", str(out), "--save", save_these, "--jobs", "0", "--space", "ras"]) == 0
    assert cli.run([str(out / "a" / "a_shifts.json"), "--apply-shifts", str(image), "-o", str(tmp_path / "re")]) == 0
    assert capfd.readouterr().out.split()[-1] == str(tmp_path / "re" / "image_realigned.nii.gz")

    # Where the heart lies and how it is tilted is lost in the motion: a straight line over the slices is forgiven.
    found = read_shifts(out / "a" / "a_shifts.json").moves
    wall = np.flatnonzero(np.isfinite(found[:, 0]))
    left = (found + seen)[wall]
    line = np.stack([np.polyval(np.polyfit(wall, one, 1), wall) for one in left.T], axis=1)
    assert abs(left - line).max() < 1.0
    assert abs(seen[wall]).max() > 5.0
    realigned = nib.load(tmp_path / "re" / "image_realigned.nii.gz").get_fdata()
    before, after = (picture(points[:, :, wall] - move) for move in (seen[wall], line))
    assert abs(inner(realigned[:, :, wall] - after)).mean() < 0.25 * abs(inner(before - after)).mean()

    original = Shell().labels(points - seen) == 2
    overlay = nib.load(out / "a" / "a_overlay.nii.gz")
    np.testing.assert_allclose(overlay.affine, affine, atol=1e-4)
    assert dice(np.asarray(overlay.dataobj) > 0, original) > 0.9
    assert dice(np.asarray(overlay.dataobj) > 0, Shell().labels(points) == 2) < 0.85


def test_a_cine_is_never_held_whole(tmp_path):
    frames = 300
    cine = np.zeros((*SHAPE, frames), np.int16)
    image = save(tmp_path / "a.nii.gz", cine)
    shifts = write(tmp_path / "a.json", document(SHAPE, AFFINE, shifts_mm(SHAPE[2])))
    apply_shifts([shifts], image, tmp_path / "warm")
    tracemalloc.start()
    apply_shifts([shifts], image, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < cine.nbytes / 4


def test_what_cannot_be_read_or_written_is_told_on_the_command_line(tmp_path, capfd, scanned):
    moved, _, moves = scanned
    shifts = write(tmp_path / "a.json", document(SHAPE, AFFINE, moves))
    image = save(tmp_path / "a.nii.gz", moved.astype(np.float32))
    for name, out, code in (
        ("b.nii.gz", "out", 8),
        ("a.nii.gz", "a.json/out", 6),
        ("a.nii.gz", "out", 0),
        ("a.nii.gz", "out", 2),
    ):
        given = [str(shifts), "--apply-shifts", str(image.with_name(name)), "-o", str(tmp_path / out)]
        assert cli.run(given) == code
        assert "Traceback" not in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_realigned.nii.gz"]
