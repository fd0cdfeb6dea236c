"""Measures of walls given by a formula: volumes, length, thickness, segments, and what is withheld and why."""

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace

import numpy as np
import pytest
import trimesh
from runtime.analytic_wall import ANTERIOR_DEG, HALF_ARC_DEG, SEPTUM_DEG, Tube, reconstructed, scan_of
from runtime.shells import FRAME, reoriented
from scipy.spatial import KDTree

from m2s_runtime import strict_json
from m2s_runtime.aha import SEGMENTS, bulls_eye_svg
from m2s_runtime.cavity import find_cavity
from m2s_runtime.measurements import MeasurementsFile, measure
from m2s_runtime.placement import canonicalise
from m2s_runtime.septum import find_septum
from m2s_runtime.shifts_file import Origin
from m2s_runtime.surface import extract_surface
from m2s_runtime.text import csv_cell
from m2s_runtime.thickness import wall_thickness

ORIGIN = Origin("a.nii.gz", "5" * 64, None, (120, 120, 15), np.eye(4))


def made(tube, *, right=True, flags=(), stored=lambda array, affine: (array, affine)):
    affine, shape = scan_of(tube)
    return reconstructed(tube, *stored(tube.labels(affine, shape), affine), right=right, flags=flags)


def numbers(*case):
    return measure(*case).measurements


def in_voxels(reconstruction):
    to_grid = np.linalg.inv(reconstruction.affine)
    return reconstruction.mesh.vertices @ to_grid[:3, :3].T + to_grid[:3, 3]


def carved(result, sdg):
    return replace(result, sdg=sdg, mesh=extract_surface(sdg, result.affine))


@pytest.fixture(scope="module")
def swinging():
    """Thickest in the middle of the anterior wall."""
    return made(Tube(swing=2.5, thick_deg=ANTERIOR_DEG - 30))


@pytest.mark.parametrize(
    "tube",
    [
        Tube(),
        Tube(radius=14, wall=14, length=35),
        Tube(radius=30, wall=4, length=55),
        Tube(base=1.3),  # between two planes of the grid
        Tube(tilt=0.15),  # the base's height does not change in the mean
    ],
)
def test_volumes_length_and_thickness_of_a_tube_with_a_round_end(tube):
    found = numbers(*made(tube))
    assert found.volume_ml == pytest.approx(tube.wall_ml, rel=0.01)
    assert found.mass_g == pytest.approx(1.05 * tube.wall_ml, rel=0.01)
    assert found.cavity_ml == pytest.approx(tube.cavity_ml, rel=0.01)
    assert found.length_mm == pytest.approx(tube.reach_mm, rel=0.01)
    assert found.thickness_mean_mm == pytest.approx(tube.wall, rel=0.01)
    assert found.thickness_max_mm == pytest.approx(tube.wall, rel=0.02)
    assert found.segments_mm == pytest.approx([tube.wall] * SEGMENTS, rel=0.01)
    assert found.withheld == {}


def test_volume_of_the_cavity_of_half_an_ellipsoid():
    """The shell that other tests sample, without its bulge: no part of it is a tube."""

    class Half(Tube):
        def signed_distance(self, points):
            x, y, h = self.local(points)
            outer = np.sqrt((x**2 + y**2) / 34.0**2 + (h / 85.0) ** 2) - 1
            inner = 1 - np.sqrt((x**2 + y**2) / 25.0**2 + (h / 76.0) ** 2)
            return np.maximum.reduce([outer * 34.0, inner * 25.0, -h])

    found = numbers(*made(Half(radius=25.0, length=60.0)))
    assert found.cavity_ml == pytest.approx(2 / 3 * np.pi * 25**2 * 76 / 1000, rel=0.01)
    assert found.volume_ml == pytest.approx(2 / 3 * np.pi * (34**2 * 85 - 25**2 * 76) / 1000, rel=0.01)
    assert found.length_mm == pytest.approx(85.0, rel=0.01)


@pytest.mark.parametrize("off", [(0.0, 0.0, 9.0), (0.0, 0.0, -6.0), (5.0, 0.0, 0.0), (0.0, -5.0, 0.0)])
def test_the_mean_thickness_is_that_of_the_area(off):
    """A ball with another one as its cavity, off the middle: vertices lie denser where the surface faces the apex."""

    class Balls(Tube):
        def signed_distance(self, points):
            local = self.local(points)
            outer, inner = (np.linalg.norm(np.stack(local, -1) - middle, axis=-1) for middle in middles)
            return np.maximum.reduce([outer - 34, 22 - inner, -local[2]])

    middles = np.array([0.0, 0.0, 10.0]), np.array([0.0, 0.0, 10.0]) + off
    canonical, result = made(Balls(radius=28.0, length=20.0))
    measured = measure(canonical, result)
    rim = Tube().local(result.mesh.vertices[np.isfinite(measured.wall_thickness)])[2].min()
    expected = []
    for radius, this, other, reach in ((34, *middles, 22), (22, *middles[::-1], 34)):
        ball = this + radius * trimesh.creation.icosphere(5).vertices
        expected.append(abs(np.linalg.norm(ball[ball[:, 2] > rim] - other, axis=1) - reach).mean())
    assert measured.measurements.thickness_mean_mm == pytest.approx(np.mean(expected), rel=0.01)


def test_thickness_at_every_vertex_is_the_distance_to_the_other_surface():
    tube = Tube(wall=7.0)
    canonical, result = made(tube)
    measured = measure(canonical, result)
    x, y, h = tube.local(result.mesh.vertices)
    known = np.isfinite(measured.wall_thickness)
    assert known[h > 4].all()
    assert not known[h < 0.5].any()
    assert np.percentile(abs(measured.wall_thickness[known] - 7.0), 99) < 0.3
    assert abs(measured.wall_thickness[known] - 7.0).mean() < 0.06
    # Against all vertices of the other side, without the shortcuts.
    reach = np.hypot(np.hypot(x, y), np.maximum(h - tube.length, 0))
    inner = known & (reach < tube.radius + 3.5)
    points = result.mesh.vertices
    nearest = KDTree(points[known & ~inner]).query(points[inner])[0]
    assert np.percentile(abs(measured.wall_thickness[inner] - nearest), 99) < 0.35


def test_thickness_where_the_wall_swings(swinging):
    result = swinging[1]
    vertices = in_voxels(result)
    found = wall_thickness(result.sdg, vertices, result.mesh.faces, find_cavity(result.sdg, vertices))
    x, y, h = Tube().local(result.mesh.vertices[found.endo])
    within = h < 50
    angle = np.arctan2(y, x)[within] - np.radians(ANTERIOR_DEG - 30)
    expected = 9.0 + 2.5 * np.cos(angle)
    # A wall that swings is never thicker than along the ray, and at most by the cosine of its slope thinner.
    slope = 2.5 * np.sin(angle) / (22 + expected)
    error = found.thickness[found.endo][within] - expected * np.cos(np.arctan(slope))
    assert abs(error).mean() < 0.05
    assert np.percentile(abs(error), 99) < 0.3


def test_segments_of_a_wall_that_swings(swinging):
    """Means of the cosine over 60 degrees; an insertion found 2 degrees off moves them by up to 1 %."""
    found = numbers(*swinging).segments_mm
    for ring in (0, 6):
        for place, number in enumerate((1, 6, 5, 4, 3, 2)):  # from the anterior insertion over the anterior wall
            low, high = np.radians([60 * place - 30, 60 * place + 30])
            expected = 9.0 + 2.5 * (np.sin(high) - np.sin(low)) / (high - low)
            assert found[ring + number - 1] == pytest.approx(expected, rel=0.02)
    anterior, septal, inferior, lateral = found[12:16]
    assert anterior > max(septal, lateral) > min(septal, lateral) > inferior
    assert found[16] == pytest.approx(9.0, rel=0.02)


def test_segments_follow_the_heart_and_not_the_array(swinging):
    """The same scan stored in other orders and directions, left-handed ones among them, is the same heart."""
    expected = numbers(*swinging)
    tube = Tube(swing=2.5, thick_deg=ANTERIOR_DEG - 30)
    for flips, order in (((0,), (0, 1, 2)), ((1, 2), (1, 0, 2)), ((2,), (2, 0, 1))):
        found = numbers(*made(tube, stored=lambda array, affine, f=flips, o=order: reoriented(array, affine, f, o)))
        assert found.segments_mm == pytest.approx(expected.segments_mm, rel=0.02)
        assert found.cavity_ml == pytest.approx(expected.cavity_ml, rel=0.003)


@pytest.mark.parametrize("turn_deg", [0.0, 37.0, 180.0])
def test_the_anterior_insertion_lies_where_it_was_put(turn_deg):
    """In scanner millimetres, whatever the in-plane turn of the slices."""
    tube, turn = Tube(), np.radians(turn_deg)
    affine, shape = scan_of(tube)
    spun = np.eye(4)
    spun[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    middle = affine @ [*(np.array(shape) - 1) / 2, 1]
    to_heart = np.eye(4)
    to_heart[:3, :3] = FRAME @ spun[:3, :3] @ FRAME.T
    affine = to_heart @ affine
    affine[:3, 3] += (middle - affine @ [*(np.array(shape) - 1) / 2, 1])[:3]
    canonical, _ = reconstructed(tube, tube.labels(affine, shape), affine)
    septum = find_septum(canonical)
    axes = canonical.placement.affine[:3, :2]
    found = axes @ [np.cos(septum.insertion), np.sin(septum.insertion)]
    x, y, _ = FRAME.T @ found
    assert (np.degrees(np.arctan2(y, x)) - ANTERIOR_DEG + 180) % 360 - 180 == pytest.approx(0.0, abs=4.0)
    inferior = np.radians(SEPTUM_DEG + HALF_ARC_DEG)
    other = FRAME[:, :2] @ [np.cos(inferior), np.sin(inferior)]
    assert (found - other) @ [-1.0, 1.0, 1.0] > 0  # further left, forward and up than the inferior one


def test_regions_cover_the_wall_below_the_base():
    tube = Tube()
    canonical, result = made(tube)
    regions = measure(canonical, result).regions
    h = tube.local(result.mesh.vertices)[2]
    assert set(regions[h > 0.1]) == set(range(1, 18))
    assert (regions[h > tube.length + tube.radius + 0.5] == 17).all()
    third = (tube.length + tube.radius) / 3
    for low, numbers_of in ((0, range(1, 7)), (third, range(7, 13)), (2 * third, range(13, 17))):
        assert set(regions[(h > low + 1) & (h < low + third - 1)]) == set(numbers_of)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: replace(c, right=None), "name its scheme with --labels"),
        (lambda c: replace(c, right=np.zeros_like(c.right)), "fewer than 2 slices"),
        (lambda c: replace(c, right=~c.masks), "fewer than 2 slices"),  # all round
        (lambda c: replace(c, flags=("base_unclear",)), "not certain (base_unclear)"),
    ],
)
def test_segments_are_withheld_without_a_septum(change, reason):
    canonical, result = made(Tube())
    measured = measure(change(canonical), result)
    assert measured.measurements.segments_mm is None
    assert measured.regions is None
    assert reason in measured.measurements.withheld["segments_mm"]
    assert measured.measurements.cavity_ml is not None


def test_a_header_without_the_patient_is_not_believed():
    tube = Tube()
    affine, shape = scan_of(tube)
    labels = tube.labels(affine, shape)
    for untrue, reason in (
        (np.diag([1.4, 1.4, 8.0, 1.0]), "lost the patient's orientation"),
        (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, "does not point left"),
    ):
        canonical = canonicalise(labels == 2, untrue, labels == 1)
        assert reason in find_septum(canonical)


def test_an_insertion_that_wanders_is_none():
    canonical, _ = made(Tube())
    right = canonical.right.copy()
    right[:, :, 1::2] = right[::-1, :, 1::2]
    assert "scatters by" in find_septum(replace(canonical, right=right))


def test_what_a_cap_at_the_apex_withholds():
    found = numbers(*made(Tube(), flags=("apex_closed",)))
    assert found.segments_mm[16] is None
    assert None not in found.segments_mm[:16]
    assert "4 mm" in found.withheld["segments_mm.17"]
    assert found.cavity_ml is not None


def test_a_cavity_that_is_cut_off():
    canonical, result = made(Tube())
    sdg = result.sdg.copy()
    sdg[:, :, 35:] = 5.0
    found = numbers(canonical, carved(result, sdg))
    assert (found.cavity_ml, found.length_mm) == (None, None)
    assert "cut off at the apex" in found.withheld["cavity_ml"]
    assert found.thickness_mean_mm is not None


def test_a_wall_that_is_open_on_one_side():
    canonical, result = made(Tube())
    sdg = result.sdg.copy()
    open_down = sdg.copy()
    open_down[60:68, 64:, :25] = 5.0  # a slit through the basal half
    found = numbers(canonical, carved(result, open_down))
    assert found.cavity_ml is None
    assert "not closed all round" in found.withheld["cavity_ml"]
    sdg[60:68, 64:, :] = 5.0
    found = numbers(canonical, carved(result, sdg))
    names = {"cavity_ml", "length_mm", "thickness_mean_mm", "thickness_max_mm", "segments_mm"}
    assert set(found.withheld) == names
    assert all(getattr(found, name) is None for name in names)
    assert found.volume_ml > 0


def test_three_slices_are_measured():
    tube = Tube(length=40.0)
    affine, shape = scan_of(tube, spacing=(1.4, 1.4, 25.0), shape=(120, 120, 3))
    canonical, result = reconstructed(tube, tube.labels(affine, shape), affine)
    assert canonical.masks.any(axis=(0, 1)).sum() == 3
    found = numbers(canonical, result)
    assert found.cavity_ml == pytest.approx(tube.cavity_ml, rel=0.01)
    assert found.segments_mm == pytest.approx([9.0] * SEGMENTS, rel=0.02)


def test_shifts_in_scanner_axes():
    canonical, result = made(Tube())
    held = np.flatnonzero(canonical.masks.any(axis=(0, 1)))
    shifts = np.zeros((12, 2), np.float32)
    shifts[held[0]] = (3.0, -4.0)
    found = numbers(canonical, replace(result, shifts=shifts + 1, common_shift=np.ones(2, np.float32)))
    axes = canonical.placement.affine[:3, :2]
    moved = abs(axes @ [3.0, -4.0]) / len(held)
    assert found.max_shift_mm == pytest.approx(5.0)
    assert found.mean_shift_mm == pytest.approx(7.0 / len(held) / 2)
    ras = [found.shift_right_mm, found.shift_anterior_mm, found.shift_superior_mm]
    np.testing.assert_allclose(ras, moved, rtol=1e-5)
    assert (found.agreement_mean, found.agreement_least) == (pytest.approx(0.9), pytest.approx(0.9))


def test_spread_of_the_samples():
    canonical, result = made(Tube())
    found = numbers(canonical, replace(result, sample_volumes_ml=(100.0, 104.0, 108.0)))
    assert (found.volume_sd_ml, found.mass_sd_g) == (pytest.approx(4.0), pytest.approx(4.2))
    assert numbers(canonical, result).volume_sd_ml is None


def test_the_document_is_strict_and_reads_back():
    canonical, result = made(Tube(), right=False)
    text = strict_json.dumps(measure(canonical, result).document(ORIGIN))
    read = strict_json.loads(MeasurementsFile, text)
    assert (read.schema, read.source, read.frame) == (1, "a.nii.gz", None)
    assert read.measurements.withheld.keys() == {"segments_mm"}
    assert json.loads(text)["measurements"] == json.loads(json.dumps(asdict(read.measurements)))
    columns = read.measurements.columns()
    assert columns["withheld"] == "segments_mm"
    assert columns["segments_mm"] is None
    some = replace(read.measurements, segments_mm=(None, 8.0, *[None] * 15)).columns()["segments_mm"]
    assert csv_cell(some) == some == " ".join(["NA", "8.00", *["NA"] * 15])


def test_the_bulls_eye_shows_every_value():
    values = [None, *np.linspace(4.2, 15.8, 16)]
    svg = bulls_eye_svg(values)
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    groups = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.find("{*}title") is not None]
    assert [g.find("{*}text").text for g in groups] == ["–", *(f"{v:.1f}" for v in values[1:])]
    assert groups[1].find("{*}title").text == "2 basal anteroseptal: 4.2 mm"
    assert "style" not in svg
    assert "script" not in svg
    # Anterior on top, septum on the left, in every ring.
    where = [(float(g.find("{*}text").get("x")), float(g.find("{*}text").get("y"))) for g in groups]
    assert where[0][1] < where[6][1] < where[12][1] < 0 < where[14][1] < where[9][1] < where[3][1]
    assert where[1][0] < 0 > where[2][0]
    assert where[13][0] < 0 < where[15][0]
    with pytest.raises(ValueError, match="17"):
        bulls_eye_svg(values[:16])
