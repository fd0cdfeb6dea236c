"""A bad case ends itself and nothing else; what is complete is not done twice."""

import gzip
import hashlib
import json
import os
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import trimesh
from runtime.stub import AFFINE, NOT_FINITE, StubReconstructor, digests, save, wall

from m2s_runtime.batch import Batch
from m2s_runtime.errors import EngineError, OutputError
from m2s_runtime.inputs import discover
from m2s_runtime.journal import Journal
from m2s_runtime.options import Options


@pytest.fixture
def study(tmp_path):
    """Folder `in`, and a runner of batches over it into `out`."""
    (tmp_path / "in").mkdir()

    def run(options=Options(), trouble=None, *, dry_run=False):  # noqa: B008 - frozen
        found = discover([str(tmp_path / "in")], tmp_path / "out")
        journal = Journal(tmp_path / "out", bundle="b" * 64, options=options.fingerprint(engine="onnx"))
        if not dry_run:
            journal.open()
        reconstructor = StubReconstructor(trouble)
        batch = Batch(found.sources, reconstructor, journal, options)
        outcomes = {}
        for source in found.sources:
            for outcome in batch.run(source, dry_run=dry_run):
                outcomes.setdefault(outcome.row.case, []).append(outcome)
        flat = {case: several[0] for case, several in outcomes.items()}
        return SimpleNamespace(outcomes=flat, all=outcomes, keys=reconstructor.keys)

    return SimpleNamespace(inputs=tmp_path / "in", out=tmp_path / "out", run=run)


def states(result):
    return {case: outcome.state for case, outcome in result.outcomes.items()}


def shifts_of(outcome):
    return json.loads(next(path for path in outcome.paths if path.name.endswith("_shifts.json")).read_text())


def test_a_case_leaves_mesh_record_and_a_full_row(study):
    path = save(study.inputs / "sub" / "a.nii.gz", wall())
    outcome = study.run(Options(labels="acdc", save=("mask", "sdg", "shifts"))).outcomes["sub_a"]
    assert outcome.state == "done"
    names = ["sub_a.ply", "sub_a_mask.nii.gz", "sub_a_sdg.nii.gz", "sub_a_shifts.json", "sub_a_measurements.json"]
    assert [p.name for p in outcome.paths][:-1] == names
    assert outcome.paths[-1].name.startswith("sub_a_report.json")
    assert {p.name for p in outcome.paths[0].parent.iterdir()} == {"sub_a.json", *(p.name for p in outcome.paths)}
    row = outcome.row
    assert (row.input, row.frame, row.status, row.slices, row.step_mm) == ("sub/a.nii.gz", None, "ok", 8, 10.0)
    assert (row.closed, row.components, row.common_shift_x_mm, row.common_shift_y_mm) == (True, 1, 1.0, -2.0)
    assert row.mean_shift_mm == pytest.approx(0.0)
    assert outcome.seconds["mc"] == 0.25
    assert hashlib.sha256(path.read_bytes()).hexdigest() == study.run(Options(overwrite=True)).keys[0]


def test_the_mesh_and_the_saved_mask_lie_where_the_wall_lies(study):
    affine = AFFINE.copy()
    affine[:3, 3] = (-80.0, 40.0, 15.0)
    save(study.inputs / "a.nii.gz", wall(), affine)
    ply, mask = study.run(Options(space="ras", save=("mask", "shifts"))).outcomes["a"].paths[:2]
    voxels = np.argwhere(wall() == 2)
    expected = nib.affines.apply_affine(affine, voxels.mean(axis=0))
    np.testing.assert_allclose(trimesh.load(ply).center_mass, expected, atol=2.0)
    image = nib.load(mask)
    found = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj)).mean(axis=0))
    np.testing.assert_allclose(found, expected, atol=2.0)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_every_format_and_the_shifts(study):
    save(study.inputs / "a.nii.gz", wall())
    outcome = study.run(Options(formats=("stl", "ply", "vtp", "obj", "glb"), save=("shifts",))).outcomes["a"]
    assert [p.suffix for p in outcome.paths[:5]] == [".stl", ".ply", ".vtp", ".obj", ".glb"]
    found = shifts_of(outcome)
    # The stub moves all slices alike, which the placement takes back.
    assert found["slices"] == [{"slice": s, "move_mm": [0.0, 0.0, 0.0], "estimated": True} for s in range(1, 9)]
    assert (found["source"], found["frame"], found["shape"]) == ("a.nii.gz", None, [48, 48, 10])


def test_bad_files_do_not_stop_the_good_one(study):
    good = save(study.inputs / "m_good.nii.gz", wall()).read_bytes()
    (study.inputs / "a_cut.nii.gz").write_bytes(good[: len(good) // 2])
    (study.inputs / "b_text.nii").write_text("not an image at all")
    save(study.inputs / "c_zero.nii.gz", np.zeros((32, 32, 8), np.uint8))
    save(study.inputs / "d_one.nii.gz", wall()[:, :, 2:3])
    save(study.inputs / "e_scheme.nii.gz", wall() * 3)
    (study.inputs / "f_gz.nii.gz").write_bytes(gzip.compress(b"x" * 1000))
    (study.inputs / "g_link.nii.gz").symlink_to(study.inputs / "nowhere")
    os.mkfifo(study.inputs / "h_pipe.nii")
    result = study.run(Options(labels="acdc"))
    found = states(result)
    assert found.pop("m_good") == "done"
    assert set(found.values()) == {"failed"}
    for case, outcome in result.outcomes.items():
        if case != "m_good":
            assert outcome.row.error not in (None, "bug"), outcome.row
            assert outcome.row.message.startswith(case + ".nii")
            assert "\n" not in outcome.row.message
            assert str(study.inputs) not in outcome.row.message
            assert (study.out / case / f"{case}.json").is_file()


def test_what_nobody_foresaw_is_a_bug_of_that_case_alone(study):
    for name in "abcd":
        save(study.inputs / f"{name}.nii.gz", wall())
    result = study.run(trouble={1: RuntimeError("boom\x1b[2J"), 2: MemoryError(), 3: NOT_FINITE})
    assert states(result) == {"a": "failed", "b": "failed", "c": "failed", "d": "done"}
    rows = {case: outcome.row for case, outcome in result.outcomes.items()}
    assert (rows["a"].error, rows["b"].error, rows["c"].error) == ("bug", "bug", "not-finite")
    assert rows["a"].message == "a.nii.gz: unexpected RuntimeError: boom?[2J"
    assert "RuntimeError" in result.outcomes["a"].trace
    assert not result.outcomes["c"].trace


def test_a_lost_engine_or_a_full_disk_stops_the_batch(study, monkeypatch):
    save(study.inputs / "a.nii.gz", wall())
    with pytest.raises(EngineError):
        study.run(trouble={1: EngineError("device lost")})

    def full(*_):
        raise OutputError("disk full")

    monkeypatch.setattr("m2s_runtime.atomic.write_bytes", full)
    with pytest.raises(OutputError):
        study.run()


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), SystemExit(143)])
def test_interruption_passes_through(study, trouble):
    save(study.inputs / "a.nii.gz", wall())
    with pytest.raises(type(trouble)):
        study.run(trouble={1: trouble})
    assert not list(study.out.iterdir())


def test_resume_does_only_what_is_missing(study):
    for name in "abc":
        save(study.inputs / f"{name}.nii.gz", wall(scale=1.0 + ord(name) / 1000))
    study.run()
    first = digests(study.out)
    save(study.inputs / "b.nii.gz", wall(scale=0.9))
    (study.out / "c" / "c.ply").unlink()
    result = study.run()
    assert states(result) == {"a": "complete", "b": "done", "c": "done"}
    assert len(result.keys) == 2
    assert digests(study.out)["c/c.ply"] == first["c/c.ply"]
    assert digests(study.out)["b/b.ply"] != first["b/b.ply"]
    assert result.outcomes["a"].row.volume_ml > 0


def test_resume_notices_other_options_and_obeys_overwrite(study):
    save(study.inputs / "a.nii.gz", wall())
    study.run()
    assert states(study.run(Options(frames="ed,es"))) == {"a": "complete"}
    assert states(study.run(Options(overwrite=True))) == {"a": "done"}
    assert states(study.run(Options(seed=1))) == {"a": "done"}
    assert states(study.run(Options(seed=1, formats=("stl",)))) == {"a": "done"}
    assert not (study.out / "a" / "a.ply").exists()


def test_failures_are_tried_again_and_leave_no_stale_mesh(study):
    save(study.inputs / "a.nii.gz", wall())
    study.run()
    assert states(study.run(Options(seed=1), trouble={1: NOT_FINITE})) == {"a": "failed"}
    assert [path.name for path in (study.out / "a").iterdir()] == ["a.json"]
    assert states(study.run(Options(seed=1))) == {"a": "done"}


def cine(*scales):
    frames = [wall(scale=scale) if scale else np.zeros_like(wall()) for scale in scales]
    return np.stack(frames, axis=3)


def test_a_cine_gives_a_case_a_frame_under_one_noise(study):
    save(study.inputs / "a.nii.gz", cine(1.0, 0.9, 0.8))
    result = study.run()
    assert states(result) == {"a_t00": "done", "a_t01": "done", "a_t02": "done"}
    assert [outcome.row.frame for outcome in result.outcomes.values()] == [0, 1, 2]
    assert len(set(result.keys)) == 1
    assert set(states(study.run()).values()) == {"complete"}


def test_end_diastole_and_end_systole(study):
    save(study.inputs / "a.nii.gz", cine(0.9, 1.0, 0.8, 0, 0.7))
    assert list(study.run(Options(frames="ed,es")).outcomes) == ["a_t01", "a_t04"]
    assert list(study.run(Options(frames="ed")).outcomes) == ["a_t01"]


def beating(open_rings=False):
    """Ten frames: cavity and wall shrink towards the fifth, the base leaves the first slice for three frames."""
    frames = []
    for frame in range(10):
        part = (1 - np.cos(2 * np.pi * (frame - 1) / 8)) / 2
        labels = wall(scale=1.0 - 0.25 * part)
        if 4 <= frame <= 6:
            labels[:, :, 1] = 0
        if open_rings:
            labels[24:, 23:25][labels[24:, 23:25] == 2] = 0
            labels[:, :, 7:9] = np.where(labels[:, :, 7:9] == 3, 2, labels[:, :, 7:9])
        frames.append(labels)
    return np.stack(frames, axis=3)


@pytest.mark.parametrize("open_rings", [False, True])
def test_phases_of_a_beating_heart(study, open_rings):
    save(study.inputs / "a.nii.gz", beating(open_rings))
    result = study.run(Options(labels="acdc", frames="ed,es"))
    assert list(result.outcomes) == ["a_t01", "a_t05"]
    if not open_rings:
        end_diastole, end_systole = (result.outcomes[case].row.cavity_ml for case in ("a_t01", "a_t05"))
        rings = [np.count_nonzero(wall(scale=scale) == 3) * 0.04 for scale in (1.0, 0.75)]
        assert end_diastole == pytest.approx(rings[0], rel=0.1)
        assert end_systole < 0.6 * end_diastole


def test_all_frames_are_given_the_shifts_of_all_frames(study):
    """The stub finds a slice's number for its shift: so must every frame, though the base moves by a slice."""
    path = save(study.inputs / "a.nii.gz", beating())
    for options in (Options(save=("shifts",)), Options(save=("shifts",), frames="4", overwrite=True)):
        for case, outcome in study.run(options).outcomes.items():
            slices = shifts_of(outcome)["slices"]
            assert [one["slice"] for one in slices] == list(range(2 if case in ("a_t04", "a_t05", "a_t06") else 1, 9))
            assert [one["move_mm"] for one in slices] == [[-one["slice"], 0.0, 0.0] for one in slices]
    own = study.run(Options(save=("shifts",), share_shifts=False)).outcomes["a_t04"]
    assert {tuple(one["move_mm"]) for one in shifts_of(own)["slices"]} == {(0.0, 0.0, 0.0)}
    assert path.is_file()


def test_a_cine_becomes_a_series_for_paraview(study):
    image = nib.Nifti1Image(cine(1.0, 0.9, 0, 0.8), AFFINE)
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 40.0
    nib.save(image, study.inputs / "a.nii.gz")
    series = study.out / "a.pvd"
    study.run()
    assert not series.exists()
    rows = [outcome.row for outcome in study.run(Options(formats=("vtp",), frames="0,3")).outcomes.values()]
    assert [(row.frame, row.time_ms) for row in rows] == [(0, 0.0), (3, 120.0)]
    study.run(Options(formats=("vtp",), frames="1"))
    sets = ET.parse(series).getroot().findall("./Collection/DataSet")  # noqa: S314 - our own bytes
    assert [float(one.get("timestep")) for one in sets] == [0.0, 40.0, 120.0]
    assert [one.get("file") for one in sets] == [f"a_t{frame:02d}/a_t{frame:02d}.vtp" for frame in (0, 1, 3)]
    assert all((study.out / one.get("file")).is_file() for one in sets)
    study.run(Options(formats=("stl",)))
    assert not series.exists()


def test_a_file_named_like_a_series(study):
    save(study.inputs / "a.pvd.nii.gz", wall())
    save(study.inputs / "a.nii.gz", cine(1.0, 0.9))
    assert set(states(study.run(Options(formats=("vtp",)))).values()) == {"done"}
    assert (study.out / "a.pvd").is_file()


def test_frames_without_wall(study):
    save(study.inputs / "a.nii.gz", cine(1.0, 0, 0.8))
    assert list(study.run().outcomes) == ["a_t00", "a_t02"]
    result = study.run(Options(frames="0,1"))
    assert states(result) == {"a_t00": "complete", "a_t01": "empty"}
    assert result.outcomes["a_t01"].row.status == "skipped"


def test_a_frame_that_is_not_there(study):
    save(study.inputs / "a.nii.gz", wall())
    row = study.run(Options(frames="3")).outcomes["a"].row
    assert (row.status, row.error) == ("failed", "header")
    assert "a.nii.gz" in row.message


@pytest.mark.parametrize("before", ["refused", "reconstructed"])
def test_what_a_study_left_goes_once_it_has_frames(study, before):
    if before == "refused":
        (study.inputs / "a.nii.gz").write_bytes(b"")
    else:
        save(study.inputs / "a.nii.gz", wall())
    study.run()
    assert (study.out / "a" / "a.json").is_file()
    save(study.inputs / "a.nii.gz", cine(1.0, 0.8))
    study.run()
    assert sorted(path.name for path in study.out.iterdir()) == [".cines", "a_t00", "a_t01"]


def test_a_frame_cannot_take_the_name_of_another_file(study):
    save(study.inputs / "a.nii.gz", cine(1.0, 0.8))
    save(study.inputs / "a_t01.nii.gz", wall())
    for _ in range(2):
        refused, done = study.run().all["a_t01"]
        assert (refused.state, refused.row.input) == ("failed", "a.nii.gz")
        assert "rename" in refused.row.message
        assert done.state in ("done", "complete")
        assert done.row.input == "a_t01.nii.gz"


def test_dry_run_checks_everything_and_writes_nothing(study):
    save(study.inputs / "a.nii.gz", wall())
    (study.inputs / "b.nii.gz").write_bytes(b"")
    result = study.run(dry_run=True)
    assert states(result) == {"a": "planned", "b": "failed"}
    assert result.outcomes["a"].paths == (study.out / "a" / "a.ply",)
    assert not result.keys
    assert not study.out.exists()


def test_hostile_names_stay_inside(study):
    names = [
        "-rf.nii.gz",
        "a\x1b[2Jb.nii.gz",
        "=SUM(1).nii.gz",
        '"><img src=x>.nii.gz',
        "x..nii.gz.nii.gz",
        "new\nline.nii.gz",
    ]
    for name in names:
        save(study.inputs / "plain.nii.gz", wall()).rename(study.inputs / name)
    result = study.run()
    assert set(states(result).values()) == {"done"}
    assert len(result.outcomes) == len(names)
    for outcome in result.outcomes.values():
        assert outcome.paths[0].resolve().is_relative_to(study.out.resolve())
        assert outcome.row.input.isprintable()
