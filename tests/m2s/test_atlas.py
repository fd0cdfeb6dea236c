import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import trimesh
from skimage.measure import euler_number

from m2s.data.atlas import (
    SELECTION_ROWS,
    TRAINING,
    TRAINING_ROWS,
    VALIDATION,
    VALIDATION_ROWS,
    VALIDATION_SEED,
    Atlas,
    AtlasCohort,
    recorded_validation,
)
from m2s_runtime.errors import NoInputs, UsageProblem
from m2s_runtime.slices import pool_features

SHARED = Path(os.environ.get("M2S_SHARED", Path(__file__).parents[3] / "shared"))
FOLDER = SHARED / "data" / "cap_mesa_lv_pca"


@pytest.fixture(scope="module")
def folder():
    if not (FOLDER / "PCA_ED.mat").is_file():
        pytest.skip(f"the shape atlas is not under {FOLDER} (set M2S_SHARED)")
    return FOLDER


@pytest.fixture(scope="module")
def wide(folder):
    cohort = AtlasCohort(folder, TRAINING_ROWS, 3, augment=TRAINING)
    return [cohort.heart(row, "ES" if row % 2 else "ED") for row in range(8)]


def mean_pool(mask):
    pool = pool_features(mask[:, :, 2::5]).astype(float)
    return (pool[:, :2] * pool[:, 2:]).sum(0) / pool[:, 2].sum()


def test_the_split_keeps_people_apart():
    parts = [set(TRAINING_ROWS), set(SELECTION_ROWS), set(VALIDATION_ROWS)]
    assert [len(p) for p in parts] == [1300, 100, 64]
    assert len(set.union(*parts)) == 1464


@pytest.mark.data
def test_the_committed_cohort_can_be_made_again(folder):
    recorded = recorded_validation()
    cohort = AtlasCohort(folder, VALIDATION_ROWS, VALIDATION_SEED, augment=VALIDATION)
    names = list(recorded)
    assert names == [f"mesa-{row}-{'ES' if row % 2 else 'ED'}-0-2" for row in VALIDATION_ROWS]
    for k in (0, 21, 63):
        row = VALIDATION_ROWS[k]
        heart = cohort.heart(row, "ES" if row % 2 else "ED")
        assert (heart.id, heart.digest) == (names[k], recorded[names[k]])


@pytest.mark.data
def test_draws_seeds_and_people_differ(folder):
    def digest(seed=1, row=5, phase="ED", draw=0):
        return AtlasCohort(folder, TRAINING_ROWS, seed, augment=TRAINING).heart(row, phase, draw).digest

    assert digest() == digest()
    assert len({digest(), digest(seed=2), digest(row=6), digest(phase="ES"), digest(draw=1)}) == 5


@pytest.mark.data
def test_every_heart_is_closed_whole_and_on_the_grid(wide):
    for heart in wide:
        mesh = trimesh.Trimesh(heart.vertices, heart.faces, process=False)
        assert mesh.is_watertight
        assert mesh.euler_number == 2
        assert mesh.volume / 2 == pytest.approx(heart.mask.sum(), rel=0.03)
        # One ball: a hole at the apex would make it a tube.
        assert euler_number(heart.mask, connectivity=3) == 1
        assert heart.vertices[:, 2].min() > -2
        assert heart.vertices[:, 2].max() < 120
        assert heart.mask[1:-1, 1:-1].sum() == heart.mask.sum()


@pytest.mark.data
def test_pool_is_centred_and_stays_so_under_flips_and_turns(wide):
    for heart in wide:
        assert mean_pool(heart.mask) == pytest.approx([63.5, 63.5], abs=0.1)
        centre = mean_pool(heart.mask) - 63.5
        assert mean_pool(heart.mask[::-1]) - 63.5 == pytest.approx(centre * (-1, 1), abs=1e-3)
        assert mean_pool(np.rot90(heart.mask)) - 63.5 == pytest.approx([-centre[1], centre[0]], abs=1e-3)


@pytest.mark.data
def test_base_first_and_slices_in_the_middle(folder):
    cohort = AtlasCohort(folder, TRAINING_ROWS, 3, augment=replace(TRAINING, roll=0.0))
    for row in range(6):
        mask = cohort.heart(row, "ED").mask
        held = np.flatnonzero(mask[:, :, 2::5].any(axis=(0, 1)))
        assert held[0] == (12 - len(held)) // 2
        area = (mask[:, :, 2::5].sum(axis=(0, 1)) + pool_features(mask[:, :, 2::5])[:, 2])[held]
        assert area[: len(area) // 2].mean() > 1.2 * area[len(area) // 2 :].mean()


@pytest.mark.data
def test_sizes_are_those_of_the_people(folder):
    """Mean volumes in the atlas's own README: wall 119 (ED) and 122 ml (ES), sd 33."""
    plain = replace(VALIDATION, scale=(1, 1), thickness_part=0.0, warp_part=0.0, base=(0, 0, 1))
    cohort = AtlasCohort(folder, TRAINING_ROWS, 0, augment=plain)
    for phase, mean in (("ED", 119), ("ES", 122)):
        walls = [cohort.heart(row, phase).mask.sum() * 2e-3 for row in range(0, 1300, 65)]
        assert abs(np.mean(walls) - mean) < 2.5 * 33 / np.sqrt(len(walls))


@pytest.mark.data
def test_other_steps_hold_the_same_shape(folder):
    cohort = AtlasCohort(folder, TRAINING_ROWS, 3, augment=TRAINING)
    plane = cohort.fitting_plane(4, "ED", 0, 1.0, 2.8)
    assert 1.0 <= plane <= 2.8
    fine, nominal = cohort.heart(4, "ED", plane_mm=plane), cohort.heart(4, "ED")
    np.testing.assert_allclose(np.ptp(fine.vertices, axis=0), np.ptp(nominal.vertices, axis=0), atol=1e-6)
    assert fine.mask.sum() * plane == pytest.approx(nominal.mask.sum() * 2, rel=0.02)


@pytest.mark.data
def test_rows_of_another_part_are_refused(folder):
    with pytest.raises(UsageProblem, match="1400"):
        AtlasCohort(folder, TRAINING_ROWS, 0, augment=TRAINING).heart(1400, "ED")


def test_a_missing_atlas_names_the_file(tmp_path):
    with pytest.raises(NoInputs, match=r"PCA_ED\.mat"):
        Atlas(tmp_path)


@pytest.mark.parametrize("content", ["text", "other", "short"])
def test_a_wrong_atlas_is_refused(tmp_path, content):
    path = tmp_path / "PCA_ED.mat"
    if content == "text":
        path.write_bytes(b"<html>not found</html>" * 20)
    elif content == "other":
        scipy.io.savemat(path, {"something": np.eye(3)})
    else:
        fields = {"MEAN": np.ones((1, 30)), "COEFF": np.ones((30, 2)), "SCORE": np.ones((4, 2)), "LATENT": np.ones(2)}
        scipy.io.savemat(path, {"PCA_ED": fields})
    with pytest.raises(UsageProblem, match="PCA_ED"):
        Atlas(tmp_path)
