"""Spoilt stacks, the flags they get, and the calibration of spreads, with pipelines that are made up."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from m2s.data.phantom import phantom
from m2s.data.sdg import signed_distance_grid
from m2s.data.simulate import Normal
from m2s.evaluate import coarse, dice_model, flags, spread
from m2s.evaluate.degrade import SPOILERS, scanned
from m2s.evaluate.hearts import Cohort, Subject, heart_truth
from m2s.evaluate.methods import GRID_TO_MM, Network
from m2s.evaluate.networks import Remembering
from m2s.metrics import dice, spearman
from m2s_runtime.errors import NotFinite, UsageProblem
from m2s_runtime.expected_dice import TRAITS, DiceModel
from m2s_runtime.grid import SPACING
from m2s_runtime.placement import canonicalise
from m2s_runtime.result import Reconstruction
from m2s_runtime.slices import pool_features, wall_slices
from m2s_runtime.surface import extract_surface

COHORT = Cohort(Path("nowhere"))


@pytest.fixture(scope="module")
def heart():
    return phantom(3)


def _rng(seed=0):
    return np.random.default_rng(seed)


def test_a_stack_and_its_truth_share_a_frame(heart):
    stack = scanned(heart, _rng(), Normal(0.0))
    canonical = canonicalise(stack.wall, stack.affine)
    truth = flags.true_mask(stack, heart.faces, canonical.placement)
    held = np.flatnonzero(wall_slices(canonical.masks))
    for slot in held[:-1]:
        # At 10 mm every slice lies in the middle plane of its block.
        assert dice(truth[:, :, 5 * slot + 2], canonical.masks[:, :, slot]) > 0.97


@pytest.mark.parametrize("name", list(SPOILERS))
def test_every_damage_does_what_it_says_and_is_repeatable(heart, name):
    spoilt, again = (SPOILERS[name](heart, _rng(7)) for _ in range(2))
    np.testing.assert_array_equal(spoilt.wall, again.wall)
    still = scanned(heart, _rng(7))
    held, before = (np.flatnonzero(wall_slices(s.wall)) for s in (spoilt, still))
    area, area_before = spoilt.wall.sum(), still.wall.sum()
    spacing, pools = np.linalg.norm(spoilt.affine[:3, :3], axis=0), pool_features(spoilt.wall)[:, 2]
    checks = {
        "none": area == area_before,
        "apex missing": held[0] == before[0] and held[-1] < before[-1],
        "base missing": held[0] > before[0] and held[-1] == before[-1],
        "slices missing": len(held) < len(before) and held[0] == before[0] and held[-1] == before[-1],
        "torn": area < area_before and (pools > 0).sum() < (pool_features(still.wall)[:, 2] > 0).sum(),
        "eroded": area < 0.9 * area_before,
        "dilated": area > 1.1 * area_before,
        "giant": 12.5 <= spacing[2] <= 17 and spacing[0] == spacing[2] / 10,
        "large motion": area > 0,
        "jump": area > 0,
        "wrong step": spacing[0] == 1 and not 8 < spacing[2] < 12.5,
    }
    assert checks[name]
    if name in ("large motion", "jump"):
        centres = np.array([np.argwhere(spoilt.wall[:, :, s]).mean(axis=0) for s in held])
        usual = np.array([np.argwhere(still.wall[:, :, s]).mean(axis=0) for s in before])
        assert np.ptp(centres, axis=0).max() > np.ptp(usual, axis=0).max()
    middle = (spoilt.affine @ (0, 0, (before[0] + before[-1]) / 2, 1))[2]
    low, high = spoilt.truth[:, 2].min(), spoilt.truth[:, 2].max()
    assert low < middle < high


@dataclass
class Pipeline:
    """Answers with a surface that is `off` mm too large everywhere, and an agreement that says so or not."""

    heart: object
    off: float = 0.0
    agrees: float = 0.95
    samples: int = 1
    refuse: bool = False

    @property
    def manifest(self):
        return SimpleNamespace(
            dice_model=None, flag_limits={"few_slices": 2}, step_range_mm=(5.0, 14.0), spread_scale=2.0
        )

    def reconstruct(self, canonical, _noise_key):
        if self.refuse:
            raise NotFinite("NaN")
        to_grid = np.linalg.inv(canonical.placement.affine)
        stack = scanned(self.heart, _rng(), Normal(0.0))
        vertices = (stack.truth @ to_grid[:3, :3].T + to_grid[:3, 3]) * SPACING
        sdg = signed_distance_grid(vertices, self.heart.faces) - np.float32(self.off)
        mesh = extract_surface(sdg, canonical.placement.affine)
        agreed = np.where(wall_slices(canonical.masks), np.float32(self.agrees), np.float32(np.nan))
        none = np.zeros((12, 2), np.float32)
        place = canonical.placement.affine
        return Reconstruction(mesh, none, none[0], sdg, sdg, place, (), {}, None, agreed)


def _row(monkeypatch, heart, pipeline, spoiler="none"):
    monkeypatch.setattr(flags, "base_heart", lambda *_: heart)
    (row,) = flags.SpoiltStack(COHORT, 1400, spoiler, 0).rows({"ours": Network("ours", Remembering(pipeline))})
    return row


def test_a_good_answer_is_not_flagged_and_a_bad_one_that_disagrees_is(monkeypatch, heart):
    good = _row(monkeypatch, heart, Pipeline(heart))
    assert good["dice"] > 0.99
    assert flags.row_flags(good, json.loads(good["limits"])) == ()
    assert np.exp(good[dice_model.PREFIX + "volume"]) == pytest.approx(good["small_wall_ml"])
    bad = _row(monkeypatch, heart, Pipeline(heart, off=3.0, agrees=0.5))
    assert bad["dice"] < 0.85
    assert "slices_disagree" in flags.row_flags(bad, {})
    assert flags.row_flags(bad, {"slices_disagree": 0.4, "slice_disagrees": 0.4, "few_slices": 2}) == ()
    refused = _row(monkeypatch, heart, Pipeline(heart, refuse=True))
    assert str(refused["error"]).startswith("not-finite")
    text = flags.table([good, bad, refused], {"few_slices": 2}).splitlines()
    assert text[2].startswith("| none | 3 | 1 | ")
    assert "| 1 of 1 (100.0 %) | 0 of 1 (0.0 %) |" in text[2]
    assert "| slices_disagree | 1 | 0 |" in text


def test_the_heart_as_a_whole_may_lie_anywhere(heart):
    moved = np.roll(heart.mask, (9, -7), (0, 1))
    assert flags.placed_dice(heart.mask, moved) == 1
    half = moved & (np.arange(60) < np.argwhere(moved)[:, 2].mean())
    assert 0.4 < flags.placed_dice(heart.mask, half) < 0.7
    assert flags.placed_dice(heart.mask, np.zeros_like(moved)) == 0


def test_a_method_without_a_pipeline_is_refused(monkeypatch, heart):
    monkeypatch.setattr(flags, "base_heart", lambda *_: heart)
    with pytest.raises(UsageProblem, match="whole method"):
        list(flags.SpoiltStack(COHORT, 1400, "none", 0).rows({"ours": lambda *_: None}))


def _told(rng, subject, *, spoilt: bool):
    """A row whose Dice follows from two of its traits, and noise."""
    found = dict(zip(TRAITS, rng.normal(0, 1, len(TRAITS)), strict=True)) | {"gap": 0.0}
    found["torn"] += 2.0 * spoilt
    error = np.exp(-2.5 + 0.5 * found["torn"] - 0.2 * found["length"] + rng.normal(0, 0.1))
    return {"spoilt": "x", "subject": subject, "dice": 1 - min(error, 0.6)} | dice_model.columns(found)


def _cohort(seed, hearts=60):
    rng = _rng(seed)
    return [_told(rng, f"h{k}", spoilt=bool(k % 2)) for k in range(hearts) for _ in range(10)]


def test_a_fitted_model_is_that_of_least_squares_where_there_is_much_to_fit_on():
    rows = [*_cohort(1), {"spoilt": "x", "subject": "h0", "error": "range: no"}]
    model = dice_model.fit(rows, flags.GOOD).dice_model
    table = np.array([[row[dice_model.PREFIX + name] for name in TRAITS] for row in rows[:-1]])
    wanted = np.log((1 - np.array([row["dice"] for row in rows[:-1]])).clip(0.02, 0.6))
    oracle = np.linalg.lstsq(np.c_[np.ones(len(table)), table], wanted, rcond=None)[0]
    np.testing.assert_allclose(list(model.weights.values()), oracle[1:], atol=0.02)
    left = wanted - oracle[0] - table @ oracle[1:]
    assert model.intercept == pytest.approx(oracle[0] + np.log(np.exp(left).mean()), abs=0.03)
    assert model.weights["torn"] == pytest.approx(0.5, abs=0.1)


def test_what_it_expects_tells_bad_from_good_on_other_hearts_at_the_agreed_rate_of_alarms():
    fitted, others = dice_model.fit(_cohort(1), flags.GOOD), _cohort(2)
    scored = flags.refitted(others, fitted, {})
    found = flags.Caught.of(scored, fitted.flag_limits, "doubtful")
    assert found.bad_flagged / found.bad > 0.9
    assert found.good_flagged / found.good == pytest.approx(0.08, abs=0.04)
    text = flags.report(scored, fitted.flag_limits)
    assert f"| all | {len(scored)} | 0 |" in text.split("`doubtful` alone:")[1]
    rank = stats.spearmanr([r["expected_dice"] for r in scored], [r["dice"] for r in scored]).statistic
    assert f"Spearman of expected and true Dice: {rank:.3f}, {len(scored)} stacks" in text


def test_the_limit_is_not_fitted_on_the_hearts_that_it_is_taken_from():
    rng = _rng(5)  # nothing to learn: on its own hearts a model would still seem to know something
    rows = [{**_told(rng, f"h{k}", spoilt=False), "dice": rng.choice([0.7, 0.95])} for k in range(40)]
    fitted = dice_model.fit(rows, flags.GOOD)
    own = np.array([dice_model.expected(row, fitted.dice_model) for row in rows if row["dice"] > flags.GOOD])
    assert (own < fitted.flag_limits["expected_dice"]).mean() < 0.05


def test_the_mean_of_what_it_expects_is_the_mean_of_what_is_found():
    rng = _rng(3)
    rows = [row | {"dice": 1 - min((1 - row["dice"]) * np.exp(rng.normal(0, 0.4)), 0.6)} for row in _cohort(1)]
    model = dice_model.fit(rows, flags.GOOD).dice_model
    told = np.mean([dice_model.expected(row, model) for row in rows])
    assert told == pytest.approx(np.mean([row["dice"] for row in rows]), abs=0.005)


def test_nothing_is_expected_of_stacks_unlike_those_of_the_fit_and_they_are_doubtful():
    fitted = dice_model.fit(_cohort(1), flags.GOOD)
    rows = [row | {"few_slices": 9.0} for row in _cohort(2)[:3]]
    rows[0] |= {"few_slices": 3.0}
    rows[1] |= {"fixed": "gap step_out_of_range"}
    scored = flags.refitted(rows, fitted, {})
    assert [row["expected_dice"] is None for row in scored] == [True, True, False]
    assert [flags.row_flags(row, {"expected_dice": 0.0}) for row in scored] == [
        ("few_slices", "doubtful"), ("gap", "step_out_of_range", "doubtful"), (),
    ]  # fmt: skip
    assert [flags.tellable(row, {}) for row in rows] == [False, False, True]
    assert flags.row_flags(rows[0], {}) == ("few_slices",)  # of a bundle without a model


def test_too_little_to_fit_on_is_refused():
    with pytest.raises(UsageProblem, match="--fit-limit"):
        dice_model.fit(_cohort(1, hearts=9), flags.GOOD)
    with pytest.raises(UsageProblem, match="a good stack"):
        dice_model.fit([row | {"dice": 0.5} for row in _cohort(1)], flags.GOOD)
    with pytest.raises(UsageProblem, match=r"without trait_length.*--out"):
        dice_model.fit([{"subject": f"h{k}", "dice": 0.95} for k in range(20)], flags.GOOD)


def test_what_was_fitted_comes_back_from_its_file_and_nothing_else_does(tmp_path):
    fitted, path = dice_model.fit(_cohort(1), flags.GOOD), tmp_path / "fitted.json"
    fitted.write(path)
    assert dice_model.read_fitted(path) == fitted
    path.write_text('{"flag_limits": {}}')
    with pytest.raises(UsageProblem, match=r"fitted.json.*dice_model.*m2s-eval flags --fit"):
        dice_model.read_fitted(path)
    replace(fitted, flag_limits={"expected_dice": 5.0}).write(path)
    with pytest.raises(UsageProblem, match=r"fitted.json: flag_limits"):
        dice_model.read_fitted(path)
    replace(fitted, dice_model=DiceModel(0.0, {"x": 1.0})).write(path)
    with pytest.raises(UsageProblem, match=r"fitted.json: dice_model is of another version"):
        dice_model.read_fitted(path)
    with pytest.raises(UsageProblem, match=r"gone\.json"):
        dice_model.read_fitted(tmp_path / "gone.json")


def test_pairs_measure_vertices_in_the_frame_of_the_truth(heart):
    truth = heart_truth(heart)
    shifted = GRID_TO_MM.copy()
    shifted[:3, 3] = (5.0, -3.0, 0.0)  # as placed, with a common shift
    sdg = signed_distance_grid(heart.grid_vertices, heart.faces) - np.float32(1.0)
    mesh = extract_surface(sdg, shifted)
    one = np.full(len(mesh.vertices), 2.0, np.float32)
    result = Reconstruction(mesh, None, None, sdg, sdg, shifted, (), {}, one, None)
    values, error = spread.pairs(result, truth, scale=2.0)
    assert np.median(error) == pytest.approx(1.0, abs=0.05)
    np.testing.assert_array_equal(values, 1.0)
    with pytest.raises(UsageProblem, match="two samples"):
        spread.pairs(replace(result, spread=None), truth)


def test_a_calibrated_spread_gets_the_scale_it_lacks():
    rng = _rng(1)
    true = rng.uniform(0.2, 2.0, 20_000)
    error = np.abs(rng.normal(0, true))
    scale = spread.fitted_scale(true / 3, error)
    assert scale == pytest.approx(3, rel=0.02)
    assert spread.coverage(true / 3, error, scale) == pytest.approx(0.9, abs=1e-3)
    assert spread.coverage(true, error, 1.0) == pytest.approx(0.9, abs=0.01)
    assert spearman(true, error) == pytest.approx(stats.spearmanr(true, error).statistic)
    assert spearman(np.ones(5), np.arange(5.0)) == 0
    with pytest.raises(UsageProblem, match="no spread"):
        spread.fitted_scale(np.zeros(10), np.ones(10))


def test_the_scale_is_fitted_on_one_cohort_and_scored_on_the_other(monkeypatch, heart):
    def row(cohort, factor, seed):
        rng = _rng(seed)
        true = rng.uniform(0.2, 2.0, 300)
        error = np.abs(rng.normal(0, factor * true))
        text = " ".join(f"{s:.3g}:{e:.3g}" for s, e in zip(true, error, strict=True))
        # A tilt of 1 mm at the ends along x and of 3 mm along y, and nothing else.
        shifts = " ".join(f"{u:.3g}:{-3 * u:.3g}" for u in np.linspace(-1, 1, 9))
        return {"cohort": cohort, "pairs": text, "spearman": 0.5, "error_mm": 1.0, "shift_errors": shifts}

    rows = [row("selection", 2.0, k) for k in range(30)] + [row("validation", 2.0, k) for k in range(50, 80)]
    text = spread.table([*rows, {"cohort": "validation", "error": "empty: gone"}])
    scale = float(text.rsplit(" ", 1)[1])
    assert scale == pytest.approx(2, rel=0.05)
    assert "--shift-error for the manifest: 0.00,2.24,0.00,0.00,0.00" in text
    (scored,) = [line for line in text.splitlines() if line.startswith("| validation")]
    cells = [cell.strip() for cell in scored.strip("|").split("|")]
    assert cells[1] == "30"
    assert float(cells[-1].removesuffix(" %")) == pytest.approx(90, abs=1.5)
    assert float(cells[-2].removesuffix(" %")) < 70

    truth = heart_truth(heart)
    monkeypatch.setattr(coarse, "subject", lambda *_: Subject("h", heart, truth))

    class Spreading(Pipeline):
        def reconstruct(self, canonical, noise_key):
            result = super().reconstruct(canonical, noise_key)
            return replace(result, spread=np.arange(1, len(result.mesh.vertices) + 1, dtype=np.float32))

    methods = {"ours": Network("ours", Remembering(Spreading(heart)))}
    (found,) = spread.SpreadStack(COHORT, 1400, 0).rows(methods)
    assert len(str(found["pairs"]).split()) == 300
    assert -1 <= found["spearman"] <= 1
