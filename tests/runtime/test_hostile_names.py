"""Names and files of others against the command: where outputs land, what is shown, what is flagged and recorded."""

import csv
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from runtime.stub import AFFINE, digests, save, wall


def table(out):
    with (out / "cases.csv").open(newline="") as file:
        return {line["case"]: line for line in csv.DictReader(file)}


HOSTILE = (
    "=HYPERLINK(1).nii.gz",
    "\x1b[2J\x1b]0;x\x07.nii.gz",
    "a;=cmd|' C'!A0.nii.gz",
    "-rf.nii.gz",
    "\u202egnp.nii.gz",
    "new\nline.nii.gz",
    "con.nii.gz",
    '"><img src=x onerror=alert(1)>.nii.gz',
)


@pytest.mark.skipif(os.name == "nt", reason="such names cannot be made here")
@pytest.mark.parametrize("good", [True, False])
def test_hostile_names_steer_nothing(run, tmp_path, good):
    for name in HOSTILE:
        path = save(tmp_path / "in" / "x.nii.gz", wall()) if good else tmp_path / "in" / "x.nii.gz"
        path.parent.mkdir(exist_ok=True)
        if not good:
            path.write_bytes(b"no volume")
        path.rename(tmp_path / "in" / name)
    out = tmp_path / "out"
    code, stdout, stderr = run(tmp_path / "in", "--out", out, "-v")
    assert code == (0 if good else 8)
    assert set(tmp_path.iterdir()) == {tmp_path / "in", out}
    shown = stdout + stderr + (out / "cases.csv").read_text()
    assert all(line.isprintable() for line in shown.split("\n"))
    rows = table(out)
    assert len(rows) == len(HOSTILE)
    for row in rows.values():
        texts = [row[name] for name in ("case", "input", "message", "labels", "flags")]
        assert not any(text[:1] in tuple("=+-@") or ";=" in text for text in texts)
        assert (out / row["case"] / f"{row['case']}.ply").is_file() == good


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
@pytest.mark.parametrize("finished", [True, False])
def test_links_among_the_outputs_are_not_followed(run, tmp_path, finished):
    """Neither when something is to be written nor when a finished case seems to lie behind the link."""
    save(tmp_path / "in" / "a.nii.gz", wall())
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    if finished:
        run(tmp_path / "in", "--out", out)
        shutil.move(out / "a", elsewhere)
    else:
        elsewhere.mkdir()
    out.mkdir(exist_ok=True)
    (out / "a").symlink_to(elsewhere)
    before = digests(elsewhere)
    code, stdout, _ = run(tmp_path / "in", "--out", out)
    assert code == 8
    assert stdout == ""
    assert table(out)["a"]["error"] == "occupied"
    assert digests(elsewhere) == before


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_a_link_in_place_of_the_cine_records_is_not_followed(run, tmp_path):
    save(tmp_path / "in" / "a.nii.gz", np.stack([wall(), wall(scale=0.9)], axis=3))
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / ".cines").symlink_to(elsewhere)
    assert run(tmp_path / "in", "--out", out)[0] == 0
    assert not list(elsewhere.iterdir())
    assert [path.name for path in (out / ".cines").iterdir()] == ["a.json"]


def test_a_folder_in_place_of_a_series_costs_its_cine_only(run, tmp_path):
    save(tmp_path / "in" / "a.nii.gz", np.stack([wall(), wall(scale=0.9)], axis=3))
    save(tmp_path / "in" / "b.nii.gz", wall())
    (tmp_path / "out" / "a.pvd").mkdir(parents=True)
    assert run(tmp_path / "in", "--out", tmp_path / "out")[0] == 8
    assert {case: row["error"] for case, row in table(tmp_path / "out").items()} == {"a": "occupied", "b": ""}


def test_a_bids_tree_keeps_its_entities(run, tmp_path):
    cine = np.stack([wall(), wall(scale=0.9)], axis=3)
    for subject in ("sub-01", "sub-02"):
        save(tmp_path / "in" / subject / "ses-1" / "anat" / f"{subject}_ses-1_task-x_bold.nii.gz", wall())
        save(tmp_path / "in" / subject / "ses-1" / "anat" / f"{subject}_ses-1_cine.nii.gz", cine)
    code, _, _ = run(tmp_path / "in", "--out", tmp_path / "out")
    assert code == 0
    expected = {f"{s}_ses-1_{end}" for s in ("sub-01", "sub-02") for end in ("task-x_bold", "cine_t00", "cine_t01")}
    assert set(table(tmp_path / "out")) == expected
    assert all((tmp_path / "out" / case / f"{case}.ply").is_file() for case in expected)


def test_a_mask_that_contradicts_its_scheme_is_flagged(run, tmp_path):
    save(tmp_path / "in" / "a.nii.gz", wall())
    _, _, stderr = run(tmp_path / "in", "--out", tmp_path / "good", "--labels", "ACDC")
    assert "labels_contradict" not in table(tmp_path / "good")["a"]["flags"]
    code, _, stderr = run(tmp_path / "in", "--out", tmp_path / "out", "--labels", "ukbb")
    assert code == 0
    row = table(tmp_path / "out")["a"]
    assert "labels_contradict" in row["flags"].split()
    assert "is it another scheme" in row["message"]
    assert "labels_contradict" in stderr


def test_a_raised_limit_changes_no_output(run, tmp_path):
    save(tmp_path / "in" / "a.nii.gz", np.stack([wall()] * 3, axis=3))
    out = tmp_path / "out"
    code, _, stderr = run(tmp_path / "in", "--out", out, "--max-frames", 2)
    assert code == 8
    assert "a.nii.gz: size 48 x 48 x 10 x 3" in stderr
    assert "add --max-frames 3" in stderr
    assert table(out)["a"]["error"] == "header"
    assert run(tmp_path / "in", "--out", out, "--max-frames", 3)[0] == 0
    before = digests(out / "a_t00")
    code, _, stderr = run(tmp_path / "in", "--out", out)
    assert code == 0
    assert "complete since an earlier run" in stderr
    assert digests(out / "a_t00") == before


@pytest.mark.parametrize(
    ("flag", "value"), [("--max-voxels", 48 * 48 * 10 - 1), ("--max-axis", 47), ("--max-file-mib", 1)]
)
def test_limits_reach_the_reader(run, tmp_path, flag, value):
    path = save(tmp_path / "in" / "a.nii", wall())
    if flag == "--max-file-mib":
        with path.open("ab") as file:
            file.truncate(2 * 2**20)
    code, _, stderr = run(tmp_path / "in", "--out", tmp_path / "out", flag, value)
    assert code == 8
    assert f"add {flag}" in stderr
    assert run(tmp_path / "in", "--out", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("changed", ["a.hdr", "a.img"])
def test_a_pair_is_one_case_and_done_again_when_either_half_changes(run, tmp_path, changed):
    (tmp_path / "in").mkdir()

    def put(labels, affine):
        nib.save(nib.Nifti1Pair(labels, affine), tmp_path / "in" / "a.img")

    put(wall(), AFFINE)
    out = tmp_path / "out"
    assert run(tmp_path / "in", "--out", out)[0] == 0
    assert list(table(out)) == ["a"]
    assert "complete" in run(tmp_path / "in", "--out", out)[2]
    before = digests(out / "a")["a.ply"]
    put(*((wall(), AFFINE * 1.05) if changed == "a.hdr" else (wall(scale=0.9), AFFINE)))
    assert "complete" not in run(tmp_path / "in" / "a.img", "--out", out)[2]
    assert digests(out / "a")["a.ply"] != before
