"""Phases of one heart are put together where that is certain, and what they amount to is right."""

import csv

import numpy as np
import pytest
from runtime.stub import StubReconstructor, save, wall

from m2s_runtime.batch import Batch
from m2s_runtime.inputs import discover
from m2s_runtime.journal import Journal
from m2s_runtime.options import Options
from m2s_runtime.record import Row
from m2s_runtime.studies import studies_of


def row(name, cavity, frame=None, volume=100.0, status="ok"):
    case = name.split(".")[0].replace("/", "_") + ("" if frame is None else f"_t{frame:02d}")
    return Row(
        case=case, input=name, frame=frame, cavity_ml=cavity, volume_ml=volume, mass_g=volume * 1.05, status=status
    )


def test_the_numbers_of_a_known_pair():
    (study,) = studies_of([row("a/p1_frame01_gt.nii.gz", 150.0), row("a/p1_frame12_gt.nii.gz", 60.0, volume=104.0)])
    assert (study.study, study.ed_case, study.es_case) == ("a/p1_*_gt", "a_p1_frame01_gt", "a_p1_frame12_gt")
    assert (study.stroke_ml, study.ef_percent) == (pytest.approx(90.0), pytest.approx(60.0))
    assert (study.volume_change_percent, study.ed_mass_g) == (pytest.approx(4.0), pytest.approx(105.0))
    assert study.withheld is None


@pytest.mark.parametrize(
    ("names", "phases"),
    [
        (("p_frame13.nii", "p_frame01.nii"), ["p_frame13", "p_frame01"]),  # the larger cavity, not the earlier frame
        (("sub-1_frame-3_seg.nii", "sub-1_frame-9_seg.nii"), ["sub-1_frame-3_seg", "sub-1_frame-9_seg"]),
        (("7/label_sa_ED.nii.gz", "7/label_sa_ES.nii.gz"), ["7_label_sa_ED", "7_label_sa_ES"]),
        (("p-ed.nii", "p-es.nii"), ["p-ed", "p-es"]),
        (("7/sa_ED.nii", "8/sa_ES.nii"), None),  # two people
        (("p_ED_a.nii", "p_ES_b.nii"), None),
        (("p_frame01.nii", "p_frame01.nii.gz"), None),
        (("p_frame01.nii", "p_frame1.nii"), None),
        (("p_ED_ES.nii", "p_ES_ED.nii"), None),
        (("edited.nii", "est.nii"), None),
    ],
)
def test_which_files_are_one_heart(names, phases):
    found = studies_of([row(names[0], 120.0), row(names[1], 50.0)])
    assert [[study.ed_case, study.es_case] for study in found] == ([] if phases is None else [phases])


def test_three_files_of_one_name_are_not_told_apart():
    assert not studies_of([row(f"p_frame{n:02d}.nii", 100.0 - n) for n in (1, 2, 3)])


def test_a_name_that_the_volumes_contradict():
    (study,) = studies_of([row("p_ED.nii", 50.0), row("p_ES.nii", 120.0)])
    assert (study.ed_case, study.ef_percent, study.stroke_ml) == ("p_ED", None, None)
    assert "not the larger" in study.withheld


def test_a_missing_cavity_volume_withholds_the_ejection_fraction():
    (by_name,) = studies_of([row("p_ED.nii", 120.0), row("p_ES.nii", None)])
    assert by_name.ef_percent is None
    assert "no cavity volume" in by_name.withheld
    assert by_name.volume_change_percent == pytest.approx(0.0)
    (by_size,) = studies_of([row("p_frame1.nii", 120.0), row("p_frame2.nii", None, status="failed")])
    assert (by_size.ed_case, by_size.ef_percent) == (None, None)
    assert by_size.decided.startswith("1 of 2")


@pytest.mark.parametrize(("missing", "ef"), [(2, 50.0), (3, None)])
def test_a_cine_stands_a_few_frames_without_cavity(missing, ef):
    rows = [row("c.nii", 100.0 - 2.5 * t, t) for t in range(21)] + [row("c.nii", None, 21 + t) for t in range(missing)]
    (study,) = studies_of([*rows, row("other.nii", 500.0)])
    assert (study.study, study.ed_case, study.es_case) == ("c", "c_t00", "c_t20")
    assert study.ef_percent == (None if ef is None else pytest.approx(ef))
    assert study.decided == f"largest and smallest cavity of 21 volumes; {missing} more have no cavity volume"


def test_the_table_of_a_run_follows_its_cases(tmp_path):
    frames = np.stack([wall(scale=1.0), wall(scale=0.9), wall(scale=0.75)], axis=3)
    save(tmp_path / "in" / "cine.nii.gz", frames)
    save(tmp_path / "in" / "p_ED.nii.gz", wall(scale=1.0))
    save(tmp_path / "in" / "p_ES.nii.gz", wall(scale=0.75))
    journal = Journal(tmp_path / "out", bundle="b", options="o")
    journal.open()
    found = discover([str(tmp_path / "in")], tmp_path / "out")
    batch = Batch(found.sources, StubReconstructor(), journal, Options(labels="acdc", report=False))
    done = {o.row.case: o.row for source in found.sources for o in batch.run(source)}
    journal.merge([])
    with (tmp_path / "out" / "studies.csv").open(newline="") as file:
        cine, pair = csv.DictReader(file)
    assert (cine["study"], cine["ed_case"], cine["es_case"]) == ("cine", "cine_t00", "cine_t02")
    assert (pair["ed_case"], pair["es_case"]) == ("p_ED", "p_ES")
    ed, es = done["p_ED"].cavity_ml, done["p_ES"].cavity_ml
    assert float(pair["ef_percent"]) == pytest.approx(100 * (ed - es) / ed, rel=1e-5)
    for source in found.sources:
        for case in [case for case in done if case.startswith(source.case)]:
            journal.forget(case)
    journal.merge([])
    assert not (tmp_path / "out" / "studies.csv").exists()
