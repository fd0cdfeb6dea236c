"""What files are found, under which case ids, and what is refused before anything runs."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.inputs import case_id, discover
from m2s_runtime.journal import Journal, Row


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def cases(found):
    return [source.case for source in found.sources]


def test_a_folder_is_walked_in_order_and_clutter_left_alone(tmp_path):
    touch(tmp_path, "in/b.nii", "in/sub/a.nii.gz", "in/C.NII.GZ", "in/._b.nii", "in/.git/x.nii", "in/readme.txt")
    found = discover([str(tmp_path / "in")], tmp_path / "out")
    assert [(s.relative, s.case) for s in found.sources] == [
        ("C.NII.GZ", "C"),
        ("b.nii", "b"),
        ("sub/a.nii.gz", "sub_a"),
    ]


def test_own_outputs_are_no_inputs(tmp_path):
    touch(tmp_path, "a.nii.gz", "meshes/a/a_mask.nii.gz")
    assert cases(discover([str(tmp_path)], tmp_path / "meshes")) == ["a"]


def test_only_own_outputs_there(tmp_path):
    touch(tmp_path, "meshes/a/a_mask.nii.gz")
    with pytest.raises(NoInputs):
        discover([str(tmp_path)], tmp_path / "meshes")


@pytest.mark.parametrize("out", [".", "..", "masks", "masks/a.nii.gz/.."])
@pytest.mark.parametrize("given_as", ["masks", "masks/*.nii.gz"])
def test_out_at_or_above_the_input_hides_nothing(tmp_path, monkeypatch, out, given_as):
    touch(tmp_path, "masks/a.nii.gz", "masks/b.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert cases(discover([given_as], Path(out))) == ["a", "b"]


def test_outputs_beside_the_input_are_known_by_their_record(tmp_path):
    touch(tmp_path, "a.nii.gz", "a/other.nii.gz")
    journal = Journal(tmp_path, bundle="b", options="o")
    journal.finish(Row(case="a", input="a.nii.gz"), {"a_mask.nii.gz": b""}, None)
    for name in (tmp_path, tmp_path / "**" / "*.nii.gz", tmp_path / "a"):
        assert "a_mask" not in " ".join(cases(discover([str(name)], tmp_path)))
    assert cases(discover([str(tmp_path)], tmp_path)) == ["a", "a_other"]


def test_a_file_named_outright_is_taken_even_below_out(tmp_path):
    touch(tmp_path, "meshes/a/a_mask.nii.gz")
    assert cases(discover([str(tmp_path / "meshes/a/a_mask.nii.gz")], tmp_path / "meshes")) == ["a_mask"]


def test_each_file_once(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.nii")
    monkeypatch.chdir(tmp_path)
    found = discover(["in/a.nii", "in", str(tmp_path / "in" / "*.nii")], tmp_path / "out")
    assert cases(found) == ["a"]
    assert not found.problems


def test_patterns_keep_the_folders_that_differ(tmp_path):
    touch(tmp_path, "p1/seg.nii.gz", "p2/seg.nii.gz", "p2/image.nii.gz", "p2/seg.txt")
    assert cases(discover([str(tmp_path / "*" / "seg*")], tmp_path / "out")) == ["p1_seg", "p2_seg"]
    assert cases(discover([str(tmp_path / "**" / "seg.nii.gz")], tmp_path / "out")) == ["p1_seg", "p2_seg"]
    assert cases(discover([str(tmp_path / "p?")], tmp_path / "out")) == ["p1_seg", "p2_image", "p2_seg"]


def test_relative_patterns(tmp_path, monkeypatch):
    touch(tmp_path, "p1/seg.nii.gz", "p2/seg.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert cases(discover(["*/seg.nii.gz"], tmp_path / "out")) == ["p1_seg", "p2_seg"]


def test_brackets_in_a_file_name_are_no_pattern(tmp_path):
    touch(tmp_path, "a[1].nii")
    assert cases(discover([str(tmp_path / "a[1].nii")], tmp_path / "out")) == ["a_1_"]


def test_a_named_file_is_taken_whatever_it_is(tmp_path):
    touch(tmp_path, "scan.mha")
    assert cases(discover([str(tmp_path / "scan.mha")], tmp_path / "out")) == ["scan.mha"]


def test_links_to_nowhere_are_kept_for_the_record(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").symlink_to(tmp_path / "annex")
    assert cases(discover([str(tmp_path / "in")], tmp_path / "out")) == ["a"]


@pytest.mark.parametrize("name", ["empty", "gone.nii.gz", "*.nii"])
def test_nothing_there(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputs, match=re.escape(name)):
        discover([str(tmp_path / name)], tmp_path / "out")


def test_an_empty_part_is_told_and_the_rest_goes_on(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "in/a.nii")
    found = discover([str(tmp_path / "empty"), str(tmp_path / "in")], tmp_path / "out")
    assert cases(found) == ["a"]
    assert [problem.name for problem in found.problems] == [str(tmp_path / "empty")]


@pytest.mark.parametrize("names", [("a b.nii", "a_b.nii"), ("a.nii", "a.nii.gz"), ("p/a.nii", "p_a.nii")])
def test_two_files_for_one_case_are_refused(tmp_path, names):
    touch(tmp_path, *(f"in/{name}" for name in names))
    with pytest.raises(UsageProblem, match="would both be case"):
        discover([str(tmp_path / "in")], tmp_path / "out")


def test_cases_that_differ_in_capitals_only_are_refused(tmp_path):
    touch(tmp_path, "in/a.nii", "in/x/y")
    touch(tmp_path, "in2/A.nii")
    with pytest.raises(UsageProblem, match="would both be case"):
        discover([str(tmp_path / "in"), str(tmp_path / "in2")], tmp_path / "out")


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("sub-01/ses-2/ED_seg.nii.gz", "sub-01_ses-2_ED_seg"),
        ("sub-01/ses-2/anat/sub-01_ses-2_task-x_bold.nii.gz", "sub-01_ses-2_task-x_bold"),
        ("sub-01/anat/sub-01_seg.nii.gz", "sub-01_seg"),
        ("sub-01/anat/seg.nii.gz", "sub-01_anat_seg"),
        ("sub-01/stress/sub-01_seg.nii.gz", "stress_sub-01_seg"),
        ("derivatives/netA/sub-01/sub-01_seg.nii", "derivatives_netA_sub-01_seg"),
        ("sub-02/sub-01_seg.nii", "sub-02_sub-01_seg"),
        ("anat/seg.hdr", "anat_seg"),
        ("run-1of3.json.nii", "case_run-1of3.json"),
        ("../../etc/passwd.nii", "_.._etc_passwd"),
        ("-rf.nii", "rf"),
        ("...nii", "case"),
        (".nii", "case"),
        ("CON.nii.gz", "case_CON"),
        ("com1.x.nii", "case_com1.x"),
        ("cases.csv.nii", "case_cases.csv"),
        ("=cmd|' /C calc'!A0.nii", "_cmd_C_calc_A0"),
        ("Jörg.nii", "J_rg-cf21f5bf"),
        ("a .nii.gz", "a_"),
        ("tail..nii", "tail"),
    ],
)
def test_case_ids(relative, expected):
    assert case_id(relative) == expected


@settings(deadline=None)
@given(st.text(st.characters(codec=None, categories=None, exclude_characters="\0"), min_size=1, max_size=300))
def test_every_name_becomes_a_safe_one(name):
    case = case_id(name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,130}", case)
    assert not case.endswith(".")
    assert case_id(name) == case


def test_long_names_stay_apart():
    assert case_id("x" * 200 + "1") != case_id("x" * 200 + "2")


def test_undecodable_names(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"\xff\x1b[2J.nii")).write_bytes(b"")
    (source,) = discover([str(tmp_path / "in")], tmp_path / "out").sources
    assert re.fullmatch(r"_2J-[0-9a-f]{8}", source.case)
    assert source.relative.isprintable()
    assert source.path.is_file()


def test_names_in_other_scripts_stay_apart(tmp_path):
    for name in ("患者一.nii.gz", "患者二.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    cases = [source.case for source in discover([str(tmp_path)], tmp_path / "out").sources]
    assert len(set(cases)) == 2
    assert all(case.isascii() for case in cases)


def test_what_cannot_be_looked_up_ends_itself_alone(tmp_path):
    (tmp_path / "good.nii").write_bytes(b"x")
    (tmp_path / "loop.nii.gz").symlink_to(tmp_path / "loop.nii.gz")
    found = discover([str(tmp_path), "n" * 300, "b**.nii.gz"], tmp_path / "out")
    assert "good" in [source.case for source in found.sources]
    assert len(found.problems) == 2
    with pytest.raises(UsageProblem, match="empty"):
        discover([""], tmp_path / "out")


BIDS = [f"sub-0{s}/ses-{v}/anat/sub-0{s}_ses-{v}_task-x_bold.nii.gz" for s in (1, 2) for v in (1, 2)]
BARE = [f"sub-0{s}/ses-{v}/seg.nii.gz" for s in (1, 2) for v in (1, 2)]


@pytest.mark.parametrize("given_as", [".", "sub-01 sub-02", "sub-*", "sub-*/ses-*", "sub-*/**/*.nii.gz", None])
@pytest.mark.parametrize(("names", "end"), [(BIDS, "task-x_bold"), (BARE, "seg")])
def test_bids_entities_are_kept_once_however_the_tree_is_given(tmp_path, monkeypatch, given_as, names, end):
    touch(tmp_path, *names)
    monkeypatch.chdir(tmp_path)
    found = discover(given_as.split() if given_as else names, tmp_path / "out")
    assert cases(found) == [f"sub-0{s}_ses-{v}_{end}" for s in (1, 2) for v in (1, 2)]
    assert [source.relative for source in found.sources] == names


def test_entities_are_kept_from_within_a_session(tmp_path, monkeypatch):
    touch(tmp_path, *BIDS, *BARE)
    monkeypatch.chdir(tmp_path / "sub-02" / "ses-1" / "anat")
    assert cases(discover(["."], tmp_path / "out")) == ["sub-02_ses-1_task-x_bold"]
    assert cases(discover(["../seg.nii.gz"], tmp_path / "out")) == ["sub-02_ses-1_seg"]


@pytest.mark.parametrize("given_as", [["in"], ["in/a.hdr"], ["in/a.img"], ["in/a.img", "in/a.hdr", "in"], ["in/a.*"]])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_pair_is_one_case_whichever_file_is_found(tmp_path, monkeypatch, given_as, suffix):
    touch(tmp_path, f"in/a.hdr{suffix}", f"in/a.img{suffix}")
    monkeypatch.chdir(tmp_path)
    named = [name if name == "in" else f"{name}{suffix}" for name in given_as]
    (source,) = discover(named, tmp_path / "out").sources
    assert (source.path.name, Path(source.relative).name, source.case) == (f"a.hdr{suffix}", f"a.hdr{suffix}", "a")


def test_halves_without_their_other_half_are_kept_for_the_record(tmp_path):
    touch(tmp_path, "in/a.hdr", "in/b.img")
    assert cases(discover([str(tmp_path / "in")], tmp_path / "out")) == ["a", "b"]


def test_a_pair_and_a_single_file_of_one_name_are_refused(tmp_path):
    touch(tmp_path, "in/a.hdr", "in/a.img", "in/a.nii.gz")
    with pytest.raises(UsageProblem, match="would both be case"):
        discover([str(tmp_path / "in")], tmp_path / "out")
