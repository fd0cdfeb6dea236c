"""Paired differences and their intervals, laws of motion, slice steps."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats
from toy import copy_toy, edit_manifest

from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER, draw_rng, simulate_stack
from m2s.evaluate.compare import bootstrap, paired, paired_table, steps_table
from m2s.evaluate.hearts import at_step, heart_truth, thinning
from m2s.evaluate.laws import motion_law
from m2s.evaluate.methods import canonical_from_stack, classical_method
from m2s.evaluate.networks import DecodeCondition, ModelOptions, Recorder, Remembering, Sampler, Unconditioned, finished
from m2s.evaluate.scores import score
from m2s.evaluate.simulation import score_stack
from m2s.evaluate.work import Setup
from m2s_runtime import ddim
from m2s_runtime.blend import Blend
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.errors import UsageProblem
from m2s_runtime.grid import GRID
from m2s_runtime.slices import wall_slices


def test_the_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(3).normal(0.5, 2.0, 400)
    found = bootstrap(values)
    half = stats.sem(values) * stats.norm.ppf(0.975)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap(values) == found
    assert bootstrap([1.0]).low == bootstrap([1.0]).high == 1.0
    with pytest.raises(ValueError, match="no pair"):
        bootstrap([])


def test_pairs_are_made_by_stack_and_averaged_by_heart():
    a = [{"subject": s, "draw": d, "method": "ours", "dice": v} for s, d, v in [(1, 0, 0.9), (1, 1, 0.8), (2, 0, 0.75)]]
    b = [{"subject": s, "draw": d, "method": "mcsr", "dice": v} for s, d, v in [(1, 0, 0.8), (1, 2, 0.1), (2, 0, 0.8)]]
    np.testing.assert_allclose(paired(a, b, "dice"), [0.1, -0.05])
    (row,) = [line for line in paired_table([*a, *b]).splitlines() if "ours - mcsr" in line]
    assert row == "| ours - mcsr | 2 | +2.50 [-5.00, +10.00] | - | - |"
    assert paired_table(a) == ""


def test_steps_are_compared_on_hearts_that_both_cover():
    rows = [
        {"subject": s, "draw": 0, "method": "m", "step_mm": step, "covered": c, "dice": d}
        for s, step, c, d in [(1, 10.0, 1.0, 0.9), (1, 5.0, 1.0, 0.88), (2, 10.0, 1.0, 0.9), (3, 14.0, 0.9, 0.5)]
    ]
    lines = steps_table(rows).splitlines()
    assert lines[-1].startswith("| m, 5 - 10 mm | 1 | -2.00 [-2.00, -2.00] |")
    assert len(lines) == 4
    assert steps_table(rows[1:2]) == ""


def test_laws_by_name():
    mask = phantom(3).mask
    rng = np.random.default_rng(1)
    assert motion_law("paper", mask) == PAPER
    assert (motion_law("positive", mask).draw(rng, 12) >= 0).all()
    assert motion_law("normal:4", mask).draw(rng, 5000).std() == pytest.approx(4, rel=0.05)
    held = np.flatnonzero(wall_slices(mask[:, :, 2::5]))
    seen = set()
    for _ in range(50):
        shifts = motion_law("one-off:10", mask).draw(rng, 12)
        (off,) = np.flatnonzero(shifts.any(axis=1))
        assert np.linalg.norm(shifts[off]) == pytest.approx(10)
        seen.add(int(off))
    assert seen == set(held.tolist())
    for wrong in ("normal", "normal:-1", "normal:nan", "one-off:far", "paper:3", ""):
        with pytest.raises(UsageProblem, match="choose"):
            motion_law(wrong, mask)


@pytest.mark.parametrize("step", [8.0, 12.0])
def test_a_heart_at_another_step_is_the_same_surface_and_its_slices_say_so(step):
    heart = phantom(3)
    moved = at_step(heart, step)
    assert moved.plane_mm == pytest.approx(step / 5)
    offset = moved.grid_vertices - heart.grid_vertices
    np.testing.assert_allclose(offset, np.broadcast_to(offset[0], offset.shape), atol=1e-9)
    truth = heart_truth(moved)
    assert truth.covered == pytest.approx(1, abs=0.02)
    stack = simulate_stack(moved.mask, draw_rng(moved.id, 0, 0), motion_law("normal:0", moved.mask))
    figures = score(classical_method("shape-based").predict(stack.slices, (1.0, 1.0, step)), truth)
    assert figures["dice"] > 0.9
    assert at_step(heart, 10.0) is heart
    (row,) = score_stack(moved, truth, {"nni": classical_method("nni")}, draw=0, law="normal:0")
    assert row["shift_raw"] == 0


def test_thinning_is_needed_when_twelve_slices_are_too_short():
    heart = phantom(3)
    length = np.ptp(heart.vertices[:, 2])
    for step in (2.0, 4.0, 5.0, 8.0, 10.0, 14.0):
        k = thinning(heart, step)
        assert length <= 11.6 * k * step + 1e-6
        assert k == 1 or length > 11.6 * (k - 1) * step


@dataclass
class Result:
    sdg: np.ndarray
    probability: np.ndarray
    shifts: np.ndarray


class Given:
    def __init__(self, probability):
        self.result = Result(np.ones(GRID, np.float32), probability, np.zeros((12, 2), np.float32))

    def reconstruct(self, _canonical, _noise_key):
        return self.result


class Linear:
    """A denoiser that returns a tenth of the latent plus the condition; encode and decode copy."""

    name = device = description = "linear"
    threads = 1

    def __init__(self):
        self.ran = []

    def run(self, graph, inputs):
        self.ran.append(graph)
        if graph == "denoise":
            return {"eps": 0.1 * inputs["z"] + inputs["zc"]}
        return {"zc": inputs["csdg"]} if graph == "encode" else {"sdg": inputs["z"]}


def test_without_its_condition_the_diffusion_sees_zeros_and_the_same_noise():
    levels, bars = ddim.timesteps(3), ddim.alpha_bars()
    sampler = Sampler((1, *GRID), levels, bars, seed=4)
    shared = Remembering(Given(np.zeros(GRID, np.float32)), engine := Recorder(Linear()))
    heart = phantom(3)
    stack = canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0)))
    found = Unconditioned(shared, engine, sampler).reconstruct(stack, "ab")
    # A linear denoiser multiplies the noise by a number at each level.
    factor = 1.0
    for t, after in zip(levels, [*levels[1:], None], strict=True):
        bar, following = bars[t], 1.0 if after is None else bars[after]
        factor *= (1 - 0.1 * np.sqrt(1 - bar)) * np.sqrt(following / bar) + 0.1 * np.sqrt(1 - following)
    noise = ddim.draw_noise("ab", 4, 0, (1, *GRID))
    np.testing.assert_allclose(found.sdg, noise[0] * factor, rtol=1e-4, atol=1e-5)
    assert found.shifts is shared.reconstructor.result.shifts


def test_a_condition_is_encoded_once_and_found_again_by_its_wall():
    masks = [np.zeros(GRID, bool) for _ in range(2)]
    masks[0][40:60, 40:60, 20:30] = True
    masks[1][50:60, 40:60, 20:30] = True
    engine = Linear()
    recorder = Recorder(engine)
    grids = [coarse_sdg(mask) for mask in masks]
    for grid in grids:
        recorder.run("encode", {"csdg": grid[None, None]})
    for mask, grid in zip(masks, grids, strict=True):
        for found in recorder.condition(mask.astype(np.float32)):
            np.testing.assert_array_equal(found.squeeze(), grid)
    assert engine.ran == ["encode"] * 2
    recorder.forget()
    np.testing.assert_array_equal(recorder.condition(masks[0].astype(np.float32))[1][0, 0], grids[0])
    assert engine.ran == ["encode"] * 3


class Counting:
    """Counts the graphs that an engine runs."""

    def __init__(self, engine):
        self.engine, self.counts = engine, Counter()
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.description = engine.description

    def run(self, graph, inputs):
        self.counts[graph] += 1
        return self.engine.run(graph, inputs)


def test_all_network_methods_of_a_stack_share_one_run_of_the_real_runtime(tmp_path):
    pytest.importorskip("onnxruntime")
    from m2s_runtime.bundle import load_bundle
    from m2s_runtime.engines import open_engine
    from m2s_runtime.pipeline import Pipeline

    names = ("ours", "mcsr", "coarse", "decode-zc", "unconditioned")
    edit_manifest(toy := copy_toy(tmp_path), lambda document: document.update(csdg_share=0.25, sdg_clamp_mm=4.0))
    methods = Setup(names, ModelOptions(model=str(toy), steps=3)).methods()
    recorder = methods["ours"].shared.recorder
    recorder.engine = counting = Counting(recorder.engine)
    heart = phantom(3)
    stack = canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0)))
    # Not the methods themselves: the toy draws no surface without its condition.
    found = {name: method.reconstructor.reconstruct(stack, "ab") for name, method in methods.items()}
    assert counting.counts == {"mc": 1, "sr": 1, "encode": 1, "denoise": 6, "decode": 3}

    bundle = load_bundle(toy)
    engine = open_engine(bundle, engine="onnx", device="cpu", threads=1)
    alone = Pipeline(bundle, engine, steps=3).reconstruct(stack, "ab")
    np.testing.assert_array_equal(found["ours"].sdg, alone.sdg)
    assert found["ours"].flags == alone.flags
    csdg = coarse_sdg(alone.probability >= 0.5)
    latent = engine.run("encode", {"csdg": csdg[None, None]})["zc"]
    decoded = engine.run("decode", {"z": latent})["sdg"]
    np.testing.assert_array_equal(found["decode-zc"].sdg, finished(Blend(0.25, 4.0).mixed(decoded, csdg[None, None])))
    smooth = Blend(1.0, 4.0).mixed(csdg[None, None], csdg[None, None])
    np.testing.assert_array_equal(found["coarse"].sdg, finished(smooth))


def test_without_diffusion_the_rest_is_as_with_it():
    mask = np.zeros(GRID, bool)
    mask[40:60, 40:60, 20:30] = True
    csdg = coarse_sdg(mask)
    shared = Remembering(Given(mask.astype(np.float32)), recorder := Recorder(Linear()))
    heart = phantom(3)
    stack = canonical_from_stack(simulate_stack(heart.mask, draw_rng(heart.id, 0, 0)))
    found = DecodeCondition(shared, recorder, Blend(0.25)).reconstruct(stack, "ab").sdg
    wanted = Blend(0.25).mixed(csdg[None, None], csdg[None, None])
    np.testing.assert_array_equal(found, finished(wanted))
    plain = DecodeCondition(shared, recorder).reconstruct(stack, "ab").sdg
    np.testing.assert_array_equal(plain, finished(csdg[None, None]))
    assert np.abs(found - plain).max() > 0.1
