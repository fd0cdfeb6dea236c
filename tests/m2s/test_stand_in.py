"""The clinical stand-in: its truth is the heart itself, in the frame in which the runtime reads the stack."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from m2s.data.clinical import read_pair
from m2s.data.heart import Heart
from m2s.data.labelmaps import LabelMaps, split
from m2s.data.phantom import phantom
from m2s.data.stand_in import CLINIC, Clinic, scan_heart, stand_in_stack, write_stand_in_pairs
from m2s.metrics import dice
from m2s.train.cli import main
from m2s_runtime.slices import pool_features, pool_weights, wall_slices
from m2s_runtime.surface import Mesh, signed_volume

STILL = Clinic(
    step_mm=((10.0, 1.0),),
    scatter_mm=(1e-6, 0.0),
    drift_mm=0.0,
    hand_mm=(0.0, 0.0),
    smooth_mm=0.01,
    wobble_mm=0.0,
    breath_mm=(0.0, 0.0),
    lost_base=(1.0,),
    lost_apex=(1.0,),
    open_base=0.0,
)
"""Nothing that goes wrong in a clinic."""


@pytest.fixture(scope="module")
def heart() -> Heart:
    return phantom(7)


def test_a_still_stack_is_the_heart_and_the_heart_is_only_moved(heart: Heart) -> None:
    found = stand_in_stack(heart, 0, clinic=STILL)
    assert found.step_mm == 10.0
    assert dice(found.slices, found.clean) > 0.98
    assert abs(found.shifts).max() < 0.3
    # The truth's surface is the heart's, moved as a whole, and its mask is what that surface encloses.
    moved = found.heart.vertices - heart.vertices
    assert np.ptp(moved, axis=0).max() < 1e-9
    inside = np.count_nonzero(found.heart.mask) * found.heart.plane_mm
    assert inside == pytest.approx(signed_volume(Mesh(found.heart.vertices, heart.faces)), rel=0.02)


def test_shifts_lead_back_to_the_truth(heart: Heart) -> None:
    """Each slice brought back by its shift lies on the plane of the truth that it was cut at."""
    found = stand_in_stack(heart, 1, clinic=replace(STILL, scatter_mm=(4.0, 0.0), drift_mm=3.0))
    held = np.flatnonzero(wall_slices(found.slices))
    assert dice(found.slices, found.clean) < 0.85
    for s in held[:-1]:
        back = ndimage.shift(found.slices[:, :, s].astype(float), -found.shifts[s], order=1) > 0.5
        assert dice(back, found.clean[:, :, s]) > 0.93
    pool = pool_features(found.clean[:, :, held]).astype(float)
    weights = pool_weights(pool)
    np.testing.assert_allclose((pool[:, :2] * weights).sum(0) / weights.sum(0), 63.5, atol=0.1)


def test_another_hand_and_another_breath(heart: Heart) -> None:
    thick = stand_in_stack(heart, 0, clinic=replace(STILL, hand_mm=(1.0, 0.0)))
    s = int(np.flatnonzero(wall_slices(thick.clean))[2])
    grown = np.asarray(ndimage.distance_transform_edt(~thick.clean[:, :, s])) <= 1.5
    assert dice(thick.slices[:, :, s], grown) > 0.96
    # A breath of one plane makes every slice that of the plane below it.
    deep = stand_in_stack(heart, 0, clinic=replace(STILL, breath_mm=(2.0, 0.0)))
    planes = np.flatnonzero(wall_slices(deep.slices))[1:-1] * 5 + 2
    below, here = (dice(deep.slices[:, :, planes // 5], deep.heart.mask[:, :, planes + k]) for k in (1, 0))
    assert below > 0.98 > here


def test_pairs_of_files_say_the_same(heart: Heart, tmp_path: Path) -> None:
    """What fine-tuning reads is what is scored, though one comes from label maps and the other from the surface."""
    subject = split()["training"][0]
    write_stand_in_pairs(tmp_path, [(subject, heart)], seed=3)
    pair, found = read_pair(LabelMaps(tmp_path), subject, "ED"), stand_in_stack(heart, 0, 3)
    np.testing.assert_array_equal(pair.slices, found.slices)
    assert dice(pair.mask, found.heart.mask) > 0.97


def test_draws_are_keyed_and_follow_the_law(heart: Heart) -> None:
    clinic = replace(CLINIC, drift_mm=0.0)
    scans = [scan_heart(heart, draw, 0, clinic) for draw in range(16)]
    np.testing.assert_array_equal(scan_heart(heart, 5, 0, clinic).wall, scans[5].wall)
    rms = [np.sqrt((scan.moved**2).sum(1).mean()) for scan in scans]
    # Median over stacks, with heavy tails that a few slices sample badly.
    assert 0.6 * CLINIC.scatter_mm[0] < np.median(rms) < 1.3 * CLINIC.scatter_mm[0]
    assert max(np.linalg.norm(scan.moved, axis=1).max() for scan in scans) > 2 * CLINIC.scatter_mm[0]
    lengths = {int(wall_slices(scan.wall).sum()) for scan in scans if scan.affine[2, 2] == 10.0}
    assert len(lengths) > 2
    assert {scan.affine[2, 2] for scan in scans} > {10.0}


def test_pairs_by_command(tmp_path: Path) -> None:
    words = ["pairs", str(tmp_path), "--phantom", "--stand-in", "--hearts", "2", "--held", "1"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    maps = LabelMaps(tmp_path)
    assert [len(maps.pairs(part)) for part in ("training", "selection", "validation")] == [2, 1, 1]
    assert read_pair(maps, *maps.pairs("training")[0]).mask.any()
