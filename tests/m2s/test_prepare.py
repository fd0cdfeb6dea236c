"""`m2s-train prepare` on a small data set in the paper's layout: rows, resume, broken maps, training on its fits."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from m2s.data.fit_file import prepared_cases, prepared_heart, read_fit
from m2s.data.fit_sheet import chosen
from m2s.data.labelmaps import LabelMaps, split
from m2s.data.phantom import shell
from m2s.data.prepare import Row
from m2s.data.quality import Quality
from m2s.data.sdg import signed_distance_grid, voxelise
from m2s.data.store import StoreSpec, open_store
from m2s.train.cli import main
from m2s.train.prepare import parse_subjects
from m2s_runtime.errors import NoInputs, UsageProblem

SPACING = (1.5, 1.5, 2.0)
TRAINING, SELECTION = split()["training"][:2], split()["selection"][:1]
QUICK = ["--iterations", "12", "--jobs", "1"]


def write_map(folder: Path, subject: int, wall: float, phase: str = "ED") -> Path:
    vertices, faces = shell(22.0, 50.0, wall, -15.0)
    labels = np.zeros((60, 60, 50), np.uint8)
    labels[voxelise(vertices + np.array([44.0, 45.0, 30.0]), faces, labels.shape, SPACING)] = 2
    path = folder / str(subject) / f"HR_{phase}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([*SPACING, 1.0])), path)
    return path


def prepare(maps: Path, out: Path, *more: str, code: int = 0) -> str:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, ["prepare", "--label-maps", str(maps), "--out", str(out), *QUICK, *more])
    torch.set_num_threads(threads)
    assert result.exit_code == code, result.output
    return result.output


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "quality.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    write_map(folder, TRAINING[0], 9.0)
    write_map(folder, TRAINING[1], 7.0, "ES")
    write_map(folder, SELECTION[0], 11.0)
    (folder / str(SELECTION[0]) / "HR_ES.nii.gz").write_bytes(b"not a NIfTI file")
    return folder


@pytest.fixture(scope="module")
def done(maps, tmp_path_factory):
    out = tmp_path_factory.mktemp("fits")
    return out, prepare(maps, out, code=8)


def test_a_row_and_a_file_a_case_and_a_typed_row_for_a_broken_map(done, maps):
    out, said = done
    rows = table(out)
    broken = f"labelmap-{SELECTION[0]}-ES"
    assert len(rows) == 4
    assert rows[broken]["status"] == "failed"
    assert rows[broken]["error"] == "unreadable"
    assert "HR_ES.nii.gz" in rows[broken]["message"]
    assert "3 usable, 0 fitted badly, 1 failed" in said
    for name in set(rows) - {broken}:
        row, fit = rows[name], read_fit(out, name)
        assert (row["status"], row["usable"], row["closed"], row["genus"]) == ("ok", "yes", "True", "0")
        assert float(row["mean_mm"]) == pytest.approx(fit.quality.mean_mm)
        assert fit.quality.dice > 0.9
        np.testing.assert_array_equal(fit.heart.mask, LabelMaps(maps).high(int(row["subject"]), row["phase"]).mask)
        exact = signed_distance_grid(fit.heart.grid_vertices, fit.heart.faces)
        assert np.abs(fit.sdg.astype(np.float32) - exact).max() < 0.05
        assert (
            (fit.sdg[:, :, 2:62] < 0) == voxelise(fit.heart.vertices, fit.heart.faces, (128, 128, 60), (1, 1, 2))
        ).all()
    assert (out / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"


def test_vertex_n_is_at_one_place_of_all_hearts(done):
    out, _ = done
    fits = [read_fit(out, f"labelmap-{s}-{p}") for s, p in ((TRAINING[0], "ED"), (TRAINING[1], "ES"))]
    np.testing.assert_array_equal(fits[0].heart.faces, fits[1].heart.faces)
    assert np.linalg.norm(fits[0].heart.vertices - fits[1].heart.vertices, axis=1).max() < 6


def test_a_second_run_makes_only_what_changed(done, maps, tmp_path):
    out, _ = done
    names = [n for n, row in table(out).items() if row["status"] == "ok"]
    before = {n: (out / f"{n}.npz").stat().st_mtime_ns for n in names}
    damaged = out / f"{names[0]}.npz"
    whole = read_fit(out, names[0]).heart
    damaged.write_bytes(damaged.read_bytes()[:5000])
    said = prepare(maps, out, code=8)
    assert said.count("was there") == 2
    np.testing.assert_array_equal(read_fit(out, names[0]).heart.vertices, whole.vertices)
    assert all((out / f"{n}.npz").stat().st_mtime_ns == before[n] for n in names[1:])
    said = prepare(maps, out, "--subjects", str(TRAINING[0]), "--seed", "1")
    assert "was there" not in said
    assert len(table(out)) == 4
    assert prepare(maps, out, "--subjects", str(TRAINING[0])).count("was there") == 0


def until_gone(group):
    """Until the group is empty: the parent may end before the workers that were killed with it."""
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:  # where nobody clears ended processes it never gets empty
            os.killpg(group, 0)
            time.sleep(0.05)


def test_a_run_that_is_told_to_end_does_so_in_order(maps, tmp_path, monkeypatch):
    from m2s.data import prepare as work

    fit = work.fit_label_map
    calls = []

    def told(*given):
        calls.append(given)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return fit(*given)

    monkeypatch.setattr(work, "fit_label_map", told)
    out = tmp_path / "fits"
    said = prepare(maps, out, code=143)
    assert said.splitlines()[-1] == "interrupted: the same command goes on"
    assert [row["status"] for row in table(out).values()] == ["ok"]
    assert prepare(maps, out, code=8).count("was there") == 1


def test_a_killed_run_goes_on(maps, tmp_path):
    out = tmp_path / "fits"
    command = ["prepare", "--label-maps", str(maps), "--out", str(out), "--iterations", "12", "--jobs", "2"]
    child = subprocess.Popen(
        [sys.executable, "-c", "from m2s.train.cli import main; main()", *command], start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("[!.]*.npz")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    until_gone(child.pid)
    kept = len(list(out.glob("[!.]*.npz")))
    assert kept >= 1
    said = prepare(maps, out, code=8)
    assert said.count("was there") == kept
    assert [row["status"] for row in table(out).values()].count("ok") == 3
    assert not list(out.glob(".*"))


def test_training_reads_the_fitted_surfaces(done, maps, tmp_path):
    out, _ = done
    prepared_cases.cache_clear()
    spec = StoreSpec(None, "training", hearts=2, distances=True, label_maps=str(maps), prepared=str(out))
    assert "registered templates" in spec.origin["data"]
    store = open_store(tmp_path / "store", spec)
    fit = read_fit(out, store.id(0))
    np.testing.assert_array_equal(store.mask(0), fit.heart.mask)
    assert np.abs(store.distance(0) - fit.sdg.astype(np.float32)).max() < 0.07
    plain = StoreSpec(None, "training", hearts=2, distances=True, label_maps=str(maps))
    assert not np.array_equal(plain.heart(0).faces, fit.heart.faces)
    with pytest.raises(UsageProblem, match="other options"):
        open_store(tmp_path / "store", plain)


def test_the_training_command_takes_prepared_fits(done, maps, tmp_path):
    out, _ = done
    tiny = ["--preset", "tiny", "--threads", "1", "--workers", "1", "--steps", "1", "--batch", "1", "-q"]
    run = ["vqvae", str(tmp_path / "run"), *tiny, "--prepared", str(out)]
    assert CliRunner().invoke(main, [*run, "--phantom"]).exit_code == UsageProblem.exit_code
    result = CliRunner().invoke(main, [*run, "--label-maps", str(maps)])
    assert result.exit_code == 0, result.output


def test_fits_that_do_not_belong_are_refused(done, maps, tmp_path):
    out, _ = done
    write_map(tmp_path, TRAINING[0], 12.0)
    with pytest.raises(UsageProblem, match="another map"):
        prepared_heart(str(out), LabelMaps(tmp_path).high(TRAINING[0], "ED"))
    with pytest.raises(NoInputs, match=r"quality\.csv"):
        prepared_cases(str(tmp_path), str(maps), "training")
    (tmp_path / f"labelmap-{TRAINING[0]}-ED.npz").write_bytes(b"PK")
    with pytest.raises(UsageProblem, match="run m2s-train prepare again"):
        read_fit(tmp_path, f"labelmap-{TRAINING[0]}-ED")


def test_a_map_that_broke_since_takes_its_fit_with_it(tmp_path):
    path = write_map(tmp_path / "maps", TRAINING[0], 9.0)
    prepare(tmp_path / "maps", tmp_path / "fits", "-q")
    path.write_bytes(b"")
    prepare(tmp_path / "maps", tmp_path / "fits", "-q", code=8)
    assert not list((tmp_path / "fits").glob("*.npz"))
    assert next(iter(table(tmp_path / "fits").values()))["usable"] == "no"


def test_what_cannot_be_asked_for(maps, tmp_path):
    assert parse_subjects("3, 7,10-12") == [3, 7, 10, 11, 12]
    for wrong in ("", "a", "3-", "-3", "5-4"):
        with pytest.raises(UsageProblem, match="--subjects"):
            parse_subjects(wrong)
    assert "has no 99999" in prepare(maps, tmp_path / "a", "--subjects", "99999", code=UsageProblem.exit_code)
    (tmp_path / "empty").mkdir()
    assert "HR_ED" in prepare(tmp_path / "empty", tmp_path / "b", code=NoInputs.exit_code)
    assert len(table_after_limit(maps, tmp_path / "c")) == 1


def table_after_limit(maps: Path, out: Path) -> dict[str, dict[str, str]]:
    prepare(maps, out, "--limit", "1", "--iterations", "2")
    return table(out)


def test_the_sheet_shows_the_worst_first_and_some_of_the_others():
    quality = [Quality(mm, 1.0, 0.9, 0, True, 0) for mm in np.linspace(0.1, 0.9, 40)]
    rows = [Row(f"c{k}", k, "ED", "ok", "no" if k == 3 else "yes", quality=q) for k, q in enumerate(quality)]
    names = [row.case for row in chosen(rows)]
    assert names[:3] == ["c3", "c39", "c38"]
    assert len(set(names)) == 12
    assert names[-1] == "c0"
