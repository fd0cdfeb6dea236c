"""The report's files: what they hold of a case, and what the page does with folders in every state."""

import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from runtime.shells import Shell, scan
from runtime.stub import StubReconstructor, digests, save, wall
from scipy.spatial import cKDTree

from m2s_runtime import batch
from m2s_runtime.grid import SPACING
from m2s_runtime.measurements import measure
from m2s_runtime.placement import canonicalise
from m2s_runtime.report import pages
from m2s_runtime.report.assets import LIBRARY
from m2s_runtime.report.case_report import case_report
from m2s_runtime.report.coarse import coarse

HOSTILE = '"><img src=x onerror=alert(1)>.nii.gz'


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def surface_of(document):
    """Points (N, 3) in mm on the grid and faces (M, 3), put together the slow way."""
    surface = document["surface"]
    steps = unpacked(surface["points"], "<u2").reshape(3, -1).astype(np.int64)
    corners = unpacked(surface["faces"], "<u2").reshape(3, -1).astype(np.int64)
    first = np.cumsum(corners[0]) % 65536
    faces = np.stack([first, (first + corners[1]) % 65536, (first + corners[2]) % 65536], axis=1)
    return (np.cumsum(steps, axis=1) % 65536).T * surface["unit_mm"] + surface["origin_mm"], faces


@pytest.fixture(scope="module")
def heart():
    """An oblique, mirrored scan, what the stub makes of it with thickness and spread, and the file of that."""
    affine, shape = scan()
    affine[:3, 0] *= -1
    affine[:3, 3] -= affine[:3, 0] * (shape[0] - 1)
    canonical = canonicalise(Shell().sample(affine, shape) == 2, affine)
    result = StubReconstructor(spread=1.5).reconstruct(canonical, "00" * 32)
    result = replace(result, affine=canonical.placement.world(result.common_shift))
    measured = measure(canonical, result)
    data = case_report(canonical, result, measured)
    return canonical, result, measured, data, json.loads(gzip.decompress(data)), affine


def test_merged_vertices_stay_on_the_surface():
    ball = trimesh.creation.icosphere(subdivisions=5, radius=30.0)
    points = ball.vertices.astype(np.float32)
    height = points[:, 2].copy()
    height[height > 25] = np.nan
    found = coarse(points, ball.faces.astype(np.int32), {"height": height})
    assert len(found.points) < len(points) / 2
    assert np.linalg.norm(found.points, axis=1) == pytest.approx(30.0, abs=0.1)
    mesh = trimesh.Trimesh(found.points, found.faces, process=False)
    assert mesh.volume == pytest.approx(ball.volume, rel=0.01)  # no hole, and outward still
    known = np.isfinite(found.fields["height"])
    assert found.fields["height"][known] == pytest.approx(found.points[known, 2], abs=1.5)
    assert not known[found.points[:, 2] > 27].any()


def test_the_file_of_a_case_holds_its_surface(heart):
    canonical, result, measured, data, document, _ = heart
    assert len(data) < 200_000
    assert data == case_report(canonical, result, measured)
    points, faces = surface_of(document)
    grid = np.linalg.inv(result.affine)
    fine = (result.mesh.vertices @ grid[:3, :3].T + grid[:3, 3]) * SPACING
    assert cKDTree(fine).query(points)[0].max() < 2.5
    assert cKDTree(points).query(fine)[0].max() < 2.5
    assert faces.max() == len(points) - 1
    fields = {name: unpacked(field["values"], "u1") for name, field in document["surface"]["fields"].items()}
    assert set(fields["spread_mm"]) == {75}  # 1.5 mm in units of 0.02 mm
    thickness = measured.wall_thickness[np.isfinite(measured.wall_thickness)]
    assert fields["thickness_mm"][fields["thickness_mm"] < 255].max() * 0.1 <= thickness.max() + 0.05
    assert document["measurements"]["volume_ml"] == pytest.approx(measured.measurements.volume_ml)
    axes = np.array(document["axes"])
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-5)
    assert np.sign(np.linalg.det(axes)) == np.sign(np.linalg.det(result.affine[:3, :3]))


def test_the_slices_lie_where_they_were_scanned(heart):
    canonical, result, _, _, document, affine = heart
    to_grid = np.linalg.inv(result.affine) @ affine
    axis = canonical.placement.slice_axis
    for one in document["slices"]:
        x, y = one["corner"]
        width, height = one["shape"]
        bits = np.unpackbits(unpacked(one["mask"], "u1"))[: width * height].reshape(width, height)
        k = canonical.placement.slices.index(one["source"])
        assert np.array_equal(bits, canonical.masks[x : x + width, y : y + height, k])
        assert bits.sum() == canonical.masks[:, :, k].sum()
        voxel = np.zeros(3)
        voxel[axis] = one["source"]
        assert (to_grid[:3, :3] @ voxel + to_grid[:3, 3])[2] * SPACING[2] == pytest.approx(one["z_mm"], abs=1e-3)
        assert one["shift_mm"] == pytest.approx(result.shifts[k].tolist())
    assert document["common_mm"] == pytest.approx(result.common_shift.tolist())


def test_a_picture_that_cannot_be_made_says_so_and_costs_nothing_else(heart):
    canonical, result, measured, *_ = heart
    broken = json.loads(gzip.decompress(case_report(canonical, replace(result, mesh=None), measured)))
    assert broken["failed"].startswith("AttributeError")


def read(page):
    """The data of a page and, by case, the picture or the reason that there is none."""
    html = page.read_text()
    blocks = re.findall(r'<script type="([^"]+)" id="([^"]+)">(.*?)</script>', html, re.S)
    assert blocks[0][:2] == ("application/json", "data")
    data = json.loads(blocks[0][2])
    shown = [item for item in data["cases"] if item["page"] == data["page"]]
    pictures = [base64.b64decode(text) if kind.endswith("stream") else json.loads(text) for kind, _, text in blocks[1:]]
    return data, dict(zip([item["case"] for item in shown], pictures, strict=True))


def test_a_run_leaves_a_report_and_its_bytes_are_the_same_again(run, folder, tmp_path):
    save(folder / HOSTILE, wall(scale=0.9))
    (folder / "cut.nii.gz").write_bytes(b"\x1f\x8b cut short")
    out = tmp_path / "out"
    code, _, err = run(folder, "-o", out)
    assert code == 8
    assert "and report.html" in err
    data, pictures = read(out / "report.html")
    assert data["cases"][0]["case"] == "cut"  # failures first
    assert pictures["cut"] == "There is no surface to show."
    assert pictures["a"] == (out / "a" / "a_report.json.gz").read_bytes()
    assert data["summary"]["counts"]["failed"] == 1
    assert data["summary"]["bundle"]["name"] == "stub"
    assert any(item["input"] == HOSTILE for item in data["cases"])
    html = (out / "report.html").read_bytes()
    assert b"<img" not in html
    assert str(tmp_path).encode() not in html
    (out / "report.html").unlink()
    assert run("--report-only", "-o", out)[:2] == (0, f"{out / 'report.html'}\n")
    assert (out / "report.html").read_bytes() == html


def test_the_policy_names_what_may_run(run, folder, tmp_path):
    run(folder, "-o", tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    styles = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert len(scripts) == 2
    for text in (*scripts, *styles):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.count(f"'sha256-{digest}'") == 1
    assert not re.search(r"""<[^>]+\s(on\w+|style|src)=["']""", html.partition("<script")[0])


def test_without_a_report_nothing_of_it_is_written_nor_is_anything_done_again(run, folder, tmp_path):
    out = tmp_path / "out"
    assert run(folder, "-o", out, "--no-report")[0] == 0
    assert not list(out.rglob("*report*"))
    before = {name: digest for name, digest in digests(out).items() if name not in ("run.json", "report.html")}
    assert "complete since an earlier run" in run(folder, "-o", out)[2]
    assert "without a report" in read(out / "report.html")[1]["a"]
    after = {name: digest for name, digest in digests(out).items() if name not in ("run.json", "report.html")}
    assert after == before


@pytest.mark.parametrize(("harm", "told"), [("missing", "is missing"), ("altered", "altered or damaged")])
def test_a_picture_that_was_lost_is_told_of_and_made_again_by_the_next_run(run, folder, tmp_path, harm, told):
    out = tmp_path / "out"
    run(folder, "-o", out)
    picture = out / "b" / "b_report.json.gz"
    whole = picture.read_bytes()
    picture.unlink()
    if harm == "altered":
        picture.write_bytes(whole[:-9])
    assert run("--report-only", "-o", out)[0] == 0
    _, pictures = read(out / "report.html")
    assert told in pictures["b"]
    assert isinstance(pictures["a"], bytes)
    run(folder, "-o", out)
    assert picture.read_bytes() == whole
    assert read(out / "report.html")[1]["b"] == whole


def test_a_report_that_cannot_be_written_is_error_6_and_loses_nothing(run, folder, tmp_path):
    out = tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    code, _, err = run(folder, "-o", out)
    assert code == 6
    assert "--report-only" in err
    assert "3 done" in err
    assert sorted(path.name for path in out.glob("*/*.ply")) == ["a.ply", "b.ply", "c.ply"]
    assert (out / "cases.csv").read_text().count(",ok,") == 3


def test_a_bug_in_the_report_is_told_with_the_way_to_try_again(run, folder, tmp_path, monkeypatch):
    def broken(_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(pages, "write_report", broken)
    code, _, err = run(folder, "-o", tmp_path / "out")
    assert code == 6
    assert "(a bug); meshes and cases.csv are complete" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--report-only", "x"], "takes no INPUT"), (["--report-only"], "is no folder"), ([], "INPUT… is missing")],
)
def test_what_makes_no_sense_is_refused(run, tmp_path, arguments, told):
    code, _, err = run(*arguments, "-o", tmp_path / "nothing")
    assert code == 2
    assert told in err


def test_large_runs_go_on_to_further_pages(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    cine = np.stack([wall(scale=scale) for scale in (1.0, 0.9)], axis=-1)
    save(folder / "cine.nii.gz", cine)
    monkeypatch.setattr(pages, "MOST_CASES", 2)
    run(folder, "-o", out)
    names = ["report-2.html", "report-3.html", "report.html"]
    assert sorted(path.name for path in out.glob("report*.html")) == names
    data, pictures = read(out / "report.html")
    everything = {item["case"]: item["page"] for item in data["cases"]}
    assert set(everything) == {"a", "b", "c", "cine_t00", "cine_t01"}
    assert everything["cine_t00"] == everything["cine_t01"]  # one slider
    page, _ = read(out / pages.page_name(everything["cine_t00"]))
    told = {item["case"]: item.get("study") for item in page["cases"]}
    assert told["cine_t00"] == told["cine_t01"]
    assert {"cine_t00", "cine_t01"} == {told["cine_t00"]["ed_case"], told["cine_t00"]["es_case"]}
    assert len(pictures) == 2
    for number in (1, 2, 3):
        page, shown = read(out / pages.page_name(number))
        assert (page["page"], page["pages"]) == (number, 3)
        assert set(shown) == {case for case, place in everything.items() if place == number}
    monkeypatch.setattr(pages, "MOST_CASES", 200)
    run("--report-only", "-o", out)
    assert [path.name for path in out.glob("report*.html")] == ["report.html"]


def test_parts_of_a_run_make_one_report_when_the_last_is_done(run, folder, tmp_path):
    out = tmp_path / "out"
    for part in ("1/2", "2/2"):
        assert not (out / "report.html").exists()
        assert run(folder, "-o", out, "--shard", part)[0] == 0
    assert {item["case"] for item in read(out / "report.html")[0]["cases"]} == {"a", "b", "c"}


def test_names_stay_out_of_an_anonymous_report(run, tmp_path, monkeypatch):
    monkeypatch.setenv("M2S_ANONYMISE_KEY", "secret")
    save(tmp_path / "in" / "Qualdorn_Zwyndel.nii.gz", wall())
    (tmp_path / "in" / "Brixenthwaite.nii.gz").write_bytes(b"nothing")
    assert run(tmp_path / "in", "-o", tmp_path / "out", "--anonymise")[0] == 8
    html = (tmp_path / "out" / "report.html").read_text()
    assert not re.search("Qualdorn|Zwyndel|Brixenthwaite", html)
    assert len(read(tmp_path / "out" / "report.html")[1]) == 2


def test_a_folder_with_nothing_in_it_or_rubbish_gives_a_page(run, tmp_path):
    (tmp_path / "run.json").write_text('{"bundle": 7, "options": [], "shards": {}, "version": NaN}')
    (tmp_path / "cases.csv").write_bytes(b"case,status,frame\n\xff<b>,failed,x\nb,failed,1\nlonger,ok\n\x00")
    (tmp_path / "old").mkdir()
    assert run("--report-only", "-o", tmp_path)[0] == 0
    data, _ = read(tmp_path / "report.html")
    assert [item["status"] for item in data["cases"]] == ["failed", "failed"]


@pytest.mark.parametrize(
    "text",
    ['{"version": 1e999, "options": {"seed": -1e999}}', "[" * 100_000, '{"started": 5, "bundle": {"sha256": 7}}'],
)
def test_a_run_file_of_whatever_kind_gives_a_page(run, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert run("--report-only", "-o", tmp_path)[0] == 0
    summary = read(tmp_path / "report.html")[0]["summary"]
    assert not {"version", "started"} & {name for name, value in summary.items() if not isinstance(value, str)}
    assert summary["bundle"] == {}


def test_a_rendering_that_is_killed_leaves_the_page_and_nothing_else(run, folder, tmp_path, monkeypatch):
    run(folder, "-o", tmp_path)
    before = digests(tmp_path)
    if not (child := os.fork()):
        monkeypatch.setattr(pages, "picture", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        with contextlib.suppress(Exception):
            pages.write_report(tmp_path)
        os._exit(1)
    os.waitpid(child, 0)
    assert digests(tmp_path).items() > before.items()
    assert run("--report-only", "-o", tmp_path)[0] == 0
    assert digests(tmp_path) == before


def test_a_picture_that_is_a_pipe_is_passed_over(run, folder, tmp_path):
    run(folder, "-o", tmp_path)
    picture = tmp_path / "b" / "b_report.json.gz"
    picture.unlink()
    os.mkfifo(picture)
    assert run("--report-only", "-o", tmp_path)[0] == 0
    assert "is missing" in read(tmp_path / "report.html")[1]["b"]


def test_where_this_program_lies_stays_out_of_its_messages(run, folder, tmp_path, monkeypatch):
    def broken(*_):
        raise ImportError(f"cannot import it ({tmp_path / 'deep' / 'file.py'})")

    monkeypatch.setattr(batch, "measure", broken)
    assert run(folder, "-o", tmp_path / "out")[0] == 8
    for name in ("report.html", "cases.csv", "a/a.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "cannot import it (file.py)" in text
        assert str(tmp_path) not in text


def test_the_library_in_the_page_is_the_one_on_record():
    notes = (Path(LIBRARY).parent / "README.md").read_text()
    assert hashlib.sha256(LIBRARY.read_bytes()).hexdigest() in notes
