"""`Reconstructor` from Python: the surface of `m2s-run` from files, images and arrays; refusals with a remedy."""

import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trimesh
from runtime.stub import AFFINE, save, wall

import m2s_runtime
from m2s_runtime import cli, strict_json
from m2s_runtime.errors import BadAffine, BadHeader, BadLabels, BundleError, EmptyWall, UnreadableVolume, UsageProblem
from m2s_runtime.given import array_key, given
from m2s_runtime.library import Reconstructor, file_key
from m2s_runtime.limits import Limits
from m2s_runtime.shifts_file import read_shifts

pytest.importorskip("onnxruntime")
LABELS = wall()
SETTINGS = {"device": "cpu", "engine": "onnx", "threads": 1, "labels": "acdc", "samples": 2, "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("in") / "heart.nii.gz", LABELS)


@pytest.fixture(scope="module")
def reconstructor() -> Reconstructor:
    return Reconstructor(**SETTINGS)


@pytest.fixture(scope="module")
def result(reconstructor, file):
    return reconstructor.run(file)


@pytest.fixture(scope="module")
def commanded(file) -> Path:
    """What `m2s-run` makes of the same file."""
    out = file.parent / "out"
    words = [f"--{name}={value}" for name, value in SETTINGS.items()]
    assert cli.run([str(file), "--out", str(out), "--jobs=0", "--format=ply,vtp", "--save=shifts", "-q", *words]) == 0
    return out / "heart"


def test_a_file_gives_what_the_command_gives(result, commanded, tmp_path):
    for name in ("heart.ply", "heart.vtp"):
        result.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (commanded / name).read_bytes()
    theirs = read_shifts(commanded / "heart_shifts.json")
    assert strict_json.dumps(result.slices) == strict_json.dumps(theirs)
    np.testing.assert_array_equal(result.shifts, theirs.moves)
    assert result.shifts.shape == (LABELS.shape[2], 3)


def test_an_array_and_an_image_in_two_threads_give_the_same_with_the_key_of_the_file(reconstructor, result, file):
    key, found = file_key(file), []
    array = np.asfortranarray(LABELS, np.float64)[..., None]
    threads = [
        threading.Thread(target=lambda given=given: found.append(reconstructor.run(*given, key=key)))
        for given in ((array, AFFINE.tolist()), (nib.load(file),))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    for other in found:
        np.testing.assert_array_equal(other.mesh.vertices, result.mesh.vertices)
        np.testing.assert_array_equal(other.mesh.faces, result.mesh.faces)
        np.testing.assert_array_equal(other.spread, result.spread)


def test_the_key_of_an_array_is_its_labels_and_nothing_else():
    mask = LABELS == 2
    keys = {given(m, AFFINE, None, Limits()).key for m in (mask, mask.astype(np.float32), np.asfortranarray(mask))}
    moved = AFFINE.copy()
    moved[:3, 3] = (5, -7, 11)
    assert keys == {given(mask[..., None], moved, None, Limits()).key}
    assert keys != {given(mask[::-1], AFFINE, None, Limits()).key}
    assert array_key(np.zeros((2, 3, 1, 1), np.uint8)) != array_key(np.zeros((3, 2, 1, 1), np.uint8))
    assert given(mask, AFFINE, "a" * 64, Limits()).key == "a" * 64


def test_noise_goes_by_the_key(reconstructor, result):
    other = reconstructor.run(LABELS, AFFINE)
    assert other.slices.source_sha256 == array_key(LABELS[..., None])
    assert not np.array_equal(other.sdg, result.sdg)


def test_the_result_as_other_libraries_see_it(result):
    mesh = result.to_trimesh()
    assert isinstance(mesh, trimesh.Trimesh)
    assert mesh.is_watertight
    assert mesh.volume > 0
    assert mesh.volume / 1000 == pytest.approx(result.measurements.volume_ml, rel=1e-6)
    np.testing.assert_array_equal(mesh.vertices, result.mesh.vertices)
    np.testing.assert_array_equal(mesh.vertex_attributes["spread_mm"], result.spread)
    # The surface lies where the affine puts the mask: centroids in world mm, against the label map itself.
    inside = nib.affines.apply_affine(result.affine, np.argwhere(result.sdg < 0)).mean(axis=0)
    labelled = nib.affines.apply_affine(AFFINE, np.argwhere(LABELS == 2)).mean(axis=0)
    assert np.abs(inside - labelled).max() < 4
    assert result.labels.wall_label == 2
    assert {"read", "c-sdg", "surface"} <= set(result.seconds)


def test_saving_in_the_other_frame_and_refusing_others(result, tmp_path):
    ras = trimesh.load_mesh(result.save(tmp_path / "a.STL", space="ras"))
    np.testing.assert_allclose(ras.bounds[1], result.mesh.vertices.max(axis=0), atol=1e-3)
    for name, space in (("a.fbx", "lps"), ("a", "lps"), ("a.ply", "lai")):
        with pytest.raises(UsageProblem, match="choose"):
            result.save(tmp_path / name, space=space)
    assert [path.name for path in tmp_path.iterdir()] == ["a.STL"]


def test_a_cine_shares_shifts_as_the_command_does(file, tmp_path):
    frames = np.stack([wall(scale=0.6), np.zeros_like(LABELS), wall(scale=0.55)], axis=3)
    path = save(tmp_path / "in" / "beat.nii.gz", frames)
    options = {"device": "cpu", "engine": "onnx", "threads": 1}
    words = [f"--{name}={value}" for name, value in options.items()]
    assert cli.run([str(path), "--out", str(tmp_path / "out"), "--jobs=0", "-q", "--save=shifts", *words]) == 0
    with Reconstructor(**options) as reconstructor:
        results = list(reconstructor.cine(frames, AFFINE))
        assert [one.frame for one in results] == [0, 2]
        for one in results:
            case = f"beat_t{one.frame:02d}"
            assert one.save(tmp_path / "one.ply").read_bytes() == (
                (tmp_path / "out" / case / f"{case}.ply").read_bytes()
            )
        assert [one.frame for one in reconstructor.cine(path, frames="es")] == [2]
        with pytest.raises(BadHeader, match="3 frames"):
            reconstructor.run(frames, AFFINE)


@pytest.mark.parametrize(
    ("mask", "affine", "error", "said"),
    [
        (LABELS, None, UsageProblem, "affine="),
        (nib.Nifti1Image(LABELS, AFFINE), AFFINE, UsageProblem, "leave affine out"),
        ("gone.nii.gz", None, UnreadableVolume, "gone.nii.gz: no such file"),
        (LABELS[0], AFFINE, BadHeader, "shape"),
        (LABELS[:0], AFFINE, BadHeader, "shape"),
        (np.stack([LABELS[..., None]] * 2, axis=4), AFFINE, BadHeader, "cine"),
        (LABELS * 0.3, AFFINE, BadLabels, "whole numbers"),
        (LABELS.astype(complex), AFFINE, BadLabels, "complex"),
        (LABELS, AFFINE[:3], BadAffine, r"\(4, 4\)"),
        (LABELS, AFFINE * np.nan, BadAffine, "NaN"),
        (LABELS, AFFINE * 1j, BadAffine, "complex"),
        (LABELS, "somewhere", BadAffine, "no real numbers"),
        (LABELS, [[1, 0], [0]], BadAffine, "no real numbers"),
        ([[[1, 0], [0]]], AFFINE, BadLabels, "no array"),
        (np.ma.masked_equal(LABELS, 0), AFFINE, BadLabels, "filled"),
        (np.where(LABELS, np.nan, 0.0), AFFINE, BadLabels, "NaN or infinity"),
        (LABELS, AFFINE + np.eye(4)[[1, 0, 2, 3]] * [1, 1, 0, 0], BadAffine, "sheared"),
        (LABELS * 0, AFFINE, EmptyWall, "background"),
    ],
)
def test_what_cannot_be_used(reconstructor, mask, affine, error, said):
    with pytest.raises(error, match=said):
        reconstructor.run(mask, affine)


def test_keys_that_are_none(reconstructor, tmp_path):
    with pytest.raises(UsageProblem, match="64 hexadecimal"):
        reconstructor.run(LABELS, AFFINE, key="seven")
    with pytest.raises(UnreadableVolume, match="gone"):
        file_key(tmp_path / "gone.nii")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "no-such-bundle"}, BundleError),
        ({"engine": "tea"}, UsageProblem),
        ({"labels": "guess"}, UsageProblem),
        ({"samples": 0}, UsageProblem),
        ({"steps": 0}, UsageProblem),
        ({"seed": -1}, UsageProblem),
        ({"quality": "best"}, UsageProblem),
        ({"quality": "exact", "steps": 3}, UsageProblem),
    ],
)
def test_options_that_cannot_be(options, error):
    with pytest.raises(error):
        Reconstructor(**options)


def test_closed_is_closed(file):
    with Reconstructor(device="cpu", engine="onnx") as reconstructor:
        assert "on cpu" in repr(reconstructor)
    reconstructor.close()
    assert repr(reconstructor) == "Reconstructor('compact', closed)"
    with pytest.raises(UsageProblem, match="closed"):
        reconstructor.run(file)


def test_the_package_itself_stays_light():
    assert {"Reconstructor", "Result"} <= set(dir(m2s_runtime))
    assert m2s_runtime.Reconstructor is Reconstructor
    with pytest.raises(AttributeError, match="Reconstruct0r"):
        m2s_runtime.Reconstruct0r  # noqa: B018
    runtime = Path(m2s_runtime.__path__[0]).parent
    code = "import sys, m2s_runtime; sys.exit(bool({'numpy', 'nibabel', 'click'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(runtime)})


def test_nothing_is_reported_to_the_makers_of_onnxruntime(tmp_path):
    """Its telemetry, from 1.29 on, begins by giving the machine an identifier below the home folder."""
    code = "from m2s_runtime import Reconstructor; Reconstructor(device='cpu', engine='onnx')"
    runtime = Path(m2s_runtime.__path__[0]).parent
    # Not as a child of CI, where onnxruntime keeps quiet by itself.
    environment = {"PYTHONPATH": str(runtime), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("options", [{"samples": 1.5}, {"seed": float("nan")}, {"steps": "2"}, {"threads": 1.5}])
def test_counts_are_whole_numbers(options):
    (name,) = options
    with pytest.raises(UsageProblem, match=f"{name}=.*whole number"):
        Reconstructor(**options)


@pytest.mark.parametrize("labels", [None, 2])
def test_a_scheme_is_a_word(labels):
    with pytest.raises(UsageProblem, match="choose one of"):
        Reconstructor(labels=labels)
