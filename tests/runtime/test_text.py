"""Names and messages of others, as they reach terminals and spreadsheets."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2s_runtime.text import clean, csv_cell, without_folders

FORMULA = "=+-@＝＋－＠"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[2Jb", "a?[2Jb"),
        ("a\x9b31mb", "a?31mb"),
        ("one\r\ntwo\u2028three", "one two three"),
        ("in\u202egnp.nii", "in?gnp.nii"),
        ("zero\u200bwidth\ufeff", "zero?width?"),
        ("undecodable \udcff", "undecodable ?"),
        ("\x07\x08\x7f", "???"),
        ("Jörg 患者", "Jörg 患者"),
    ],
)
def test_what_could_steer_a_terminal_is_taken_out(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot import 'x' (/opt/me/y.py)", "cannot import 'x' (y.py)"),
        ("no space: '/tmp/a/b.nii', '/c'", "no space: 'b.nii', '/c'"),
        (r"C:\Users\me\x.nii and \\host\share\f", "x.nii and f"),
        ("sub/seg.nii.gz: 3/4 of https://a.b/c/d", "sub/seg.nii.gz: 3/4 of https://a.b/c/d"),
    ],
)
def test_absolute_paths_lose_their_folders(text, expected):
    assert without_folders(text) == expected


@given(st.text())
def test_any_text_becomes_one_printable_line(text):
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=1+1", "'=1+1"),
        ("\t =cmd", "'=cmd"),
        ("-2", "'-2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("＝1", "'＝1"),
        ("a;=HYPERLINK(1)", "a;'=HYPERLINK(1)"),
        ("a; =1", "a; '=1"),
        ("a; |+2", "a; |'+2"),
        ("sub-01 = 2; 3 mm", "sub-01 = 2; 3 mm"),
    ],
)
def test_no_cell_is_a_formula(text, expected):
    assert csv_cell(text) == expected


@given(st.text(st.sampled_from("=+-@＝＋－＠;| \t\r\n,\"'a1")))
def test_no_cell_is_a_formula_whatever_separates_cells(text):
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["x", csv_cell(text)])
    for separator in ",;|":
        for cell in next(csv.reader([line.getvalue()], delimiter=separator)):
            # A line taken apart at the wrong place keeps its quotes, which are no formula either.
            assert cell.strip()[:1] not in tuple(FORMULA)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ""), (True, "true"), (-3, "-3"), (1 / 3, "0.333333"), (-0.5, "-0.5")]
)
def test_numbers_stay_numbers(value, expected):
    assert csv_cell(value) == expected
