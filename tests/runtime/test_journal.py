"""A case is complete only when every hash matches; tables are safe to open in a spreadsheet."""

import csv
import hashlib
import io
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.stub import digests

from m2s_runtime.errors import Occupied, OutputError
from m2s_runtime.journal import Journal
from m2s_runtime.record import Row, read_record, source_seen
from m2s_runtime.table import COLUMNS, to_csv
from m2s_runtime.text import clean

FILES = {"a.ply": b"mesh", "a_mask.nii.gz": b"mask"}


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "out", bundle="b" * 64, options="o" * 64)
    journal.open()
    journal.finish(Row(case="a", input="a.nii.gz", volume_ml=101.5, closed=True, genus=0), FILES, "i" * 64)
    return journal


def test_a_finished_case_is_complete_and_its_row_survives(journal, tmp_path):
    record = journal.complete("a", tmp_path / "unread", "i" * 64)
    assert record.row == Row(case="a", input="a.nii.gz", volume_ml=101.5, closed=True, genus=0)
    assert [path.read_bytes() for path in journal.paths(record)] == [b"mesh", b"mask"]


def test_stale_is_what_was_done_with_other_settings_and_nothing_else(journal):
    assert not journal.stale("a")
    assert not journal.stale("never done")
    assert Journal(journal.out, bundle="b" * 64, options="p" * 64).stale("a")
    assert Journal(journal.out, bundle="c" * 64, options="o" * 64).stale("a")
    (journal.out / "a" / "a.ply").write_bytes(b"mess")  # done again too, but for another reason
    assert not journal.stale("a")


@pytest.mark.parametrize(
    "change", ["input", "bundle", "options", "altered", "missing", "linked", "record cut", "failed"]
)
def test_any_difference_undoes_completeness(journal, change, tmp_path):
    folder = journal.out / "a"
    source = "i" * 64
    match change:
        case "input":
            source = "j" * 64
        case "bundle":
            journal = Journal(journal.out, bundle="c" * 64, options="o" * 64)
        case "options":
            journal = Journal(journal.out, bundle="b" * 64, options="p" * 64)
        case "altered":
            (folder / "a.ply").write_bytes(b"mess")
        case "missing":
            (folder / "a_mask.nii.gz").unlink()
        case "linked":
            (tmp_path / "elsewhere").write_bytes(b"mesh")
            (folder / "a.ply").unlink()
            (folder / "a.ply").symlink_to(tmp_path / "elsewhere")
        case "record cut":
            text = (folder / "a.json").read_text()
            (folder / "a.json").write_text(text[: len(text) // 2])
        case "failed":
            journal.finish(Row(case="a", input="a.nii.gz", status="failed"), {}, source)
    assert journal.complete("a", tmp_path / "unread", source) is None


@pytest.fixture
def seen(journal, tmp_path):
    """An input, and a case that was made of it."""
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"labels")
    journal.finish(Row(case="a", input="a.nii.gz"), FILES, hashlib.sha256(b"labels").hexdigest(), source_seen(path))
    return path


def test_files_that_look_as_before_are_not_read(journal, seen, monkeypatch):
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert journal.complete("a", seen)


@pytest.mark.parametrize("name", ["a.ply", "input"])
def test_a_file_that_was_touched_is_read_again(journal, seen, name):
    path = seen if name == "input" else journal.out / "a" / name
    data = path.read_bytes()
    os.utime(path, ns=(0, 0))
    assert journal.complete("a", seen)
    before = path.stat()
    path.write_bytes(bytes(reversed(data)))
    # Even a change that keeps size and time, for inputs come as they are unpacked.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert journal.complete("a", seen) is None


def test_an_input_that_is_gone_is_not_the_same(journal, seen):
    seen.unlink()
    assert journal.complete("a", seen) is None


def test_a_record_of_the_first_release_is_read(journal, seen):
    path = journal.out / "a" / "a.json"
    document = json.loads(path.read_text())
    del document["seen"], document["looks"]
    path.write_text(json.dumps(document))
    assert journal.complete("a", seen)


def test_a_full_disk_leaves_what_was_finished_before(journal, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    before = digests(journal.out)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        journal.finish(Row(case="a", input="a.nii.gz"), {"a.ply": b"new"}, "j" * 64)
    assert digests(journal.out) == before


def test_what_an_earlier_run_wrote_does_not_linger(journal):
    (journal.out / "a" / "notes.txt").write_text("mine")
    journal.finish(Row(case="a", input="a.nii.gz"), {"a.stl": b"other"}, "i" * 64)
    assert sorted(path.name for path in (journal.out / "a").iterdir()) == ["a.json", "a.stl", "notes.txt"]


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"schema": 1}',
        '{"schema": 2, "row": {}, "stamp": {}, "outputs": {}}',
        '{"schema": 1, "row": {"case": "a"}, "stamp": {}, "outputs": {}}',
    ],
)
def test_a_strange_record_is_no_record(tmp_path, document):
    (tmp_path / "a.json").write_text(document)
    assert read_record(tmp_path / "a.json") is None


def test_a_record_cannot_name_files_elsewhere(journal):
    path = journal.out / "a" / "a.json"
    document = json.loads(path.read_text())
    document["outputs"] = {"../../precious": "0" * 64}
    path.write_text(json.dumps(document))
    precious = journal.out.parent / "precious"
    precious.write_text("keep")
    journal.finish(Row(case="a", input="a.nii.gz"), {}, None)
    assert precious.read_text() == "keep"


def test_a_linked_case_folder_is_refused(journal, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (journal.out / "b").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Occupied, match="link"):
        journal.finish(Row(case="b", input="b.nii"), {"b.ply": b""}, None)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("case", ["..", ".", "", "a/b", "../b"])
def test_a_case_stays_below_the_output_folder(journal, case):
    with pytest.raises(OutputError):
        journal.finish(Row(case=case, input="x"), {}, None)


def test_out_may_not_be_a_file(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="--out"):
        Journal(tmp_path / "out", bundle="", options="").open()


def test_merge_joins_earlier_runs_and_this_one(journal):
    rows = [Row(case="b", input="b.nii", status="failed", error="empty"), Row(case="", input="void", status="failed")]
    journal.merge(rows)
    table = list(csv.DictReader((journal.out / "cases.csv").open()))
    assert [line["case"] for line in table] == ["", "a", "b"]
    assert table[1]["volume_ml"] == "101.5"
    assert table[1]["closed"] == "true"


def test_columns():
    assert to_csv([]).strip().split(",") == list(COLUMNS)
    assert COLUMNS[:7] == ("case", "input", "frame", "time_ms", "status", "error", "message")


@settings(deadline=None)
@given(st.text(st.characters(codec=None, categories=None), max_size=40))
def test_no_text_becomes_a_formula_a_new_line_or_a_terminal_command(text):
    (line,) = csv.DictReader(io.StringIO(to_csv([Row(case="a", input=text, message=text)])))
    assert line["input"][:1] not in tuple("=+-@\t\r")
    assert line["message"].isprintable()
    clean(text).encode()


def test_numbers_are_not_taken_for_formulas():
    (line,) = csv.DictReader(io.StringIO(to_csv([Row(case="a", input="a", common_shift_x_mm=-1.25)])))
    assert float(line["common_shift_x_mm"]) == -1.25


def test_clean_strips_what_moves_the_cursor():
    assert clean("a\x1b[31mred\x07\nnext\u202egnp") == "a?[31mred? next?gnp"
    assert clean("M\u00fcller \u00b5m") == "Müller µm"
