"""Samples and refinement through the whole pipeline, with the toy bundle, whose answer is known in closed form."""

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from toy import TOY

from m2s_runtime.agreement import agreement, sections
from m2s_runtime.bundle import Bundle, load_bundle
from m2s_runtime.csdg import coarse_sdg, to_grid
from m2s_runtime.ddim import draw_noise
from m2s_runtime.engines import open_engine
from m2s_runtime.engines.base import Engine
from m2s_runtime.pipeline import Pipeline, Reconstruction
from m2s_runtime.placement import Canonical, canonicalise
from m2s_runtime.slices import centre_shifts, signed_distance

KEY = hashlib.sha256(b"loop").hexdigest()


@dataclass
class Meddling:
    """An engine whose answers are changed on the way out; counts the calls of each graph."""

    engine: Engine
    change: dict = field(default_factory=dict)
    calls: dict = field(default_factory=dict)

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def run(self, graph, inputs):
        self.calls[graph] = self.calls.get(graph, 0) + 1
        outputs = self.engine.run(graph, inputs)
        return self.change[graph](outputs, self.calls[graph]) if graph in self.change else outputs


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(TOY)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    pytest.importorskip("onnxruntime")
    return open_engine(bundle, "onnx", "cpu", 1)


@pytest.fixture(scope="module")
def upright() -> Canonical:
    """Rings and two caps about one line: the toy's estimate of the motion is right and all agree with the answer."""
    x, y = np.indices((128, 128)) - 63.5
    rings = [(np.hypot(x, y) < 32 - k) & (np.hypot(x, y) >= (23 - 2 * k if k < 7 else 0)) for k in range(9)]
    return canonicalise(np.stack(rings, -1), np.diag([1.0, 1.0, 10.0, 1.0]))


@pytest.fixture(scope="module")
def plain(bundle, engine, upright) -> tuple[Reconstruction, dict]:
    """One sample, no refinement; and what super-resolution returned."""
    seen = {}
    keep = Meddling(engine, {"sr": lambda outputs, _: seen.update(outputs) or outputs})
    return Pipeline(bundle, keep, steps=1).reconstruct(upright, KEY), seen


def slip(outputs, _):
    """One slice is taken to lie elsewhere."""
    shifts = outputs["shifts"].copy()
    shifts[0, 6] += (2.5, -1.5)
    return {"shifts": shifts}


def test_a_single_sample_is_what_it_was_before_samples_existed(bundle, engine, upright, plain) -> None:
    """The same stages, spelt out here without the pipeline; the toy's denoiser knows the condition."""
    pool = upright.pool[None]
    slices = signed_distance(upright.masks, bundle.manifest.clip_mm)[None, None]
    shifts = centre_shifts(engine.run("mc", {"slices": slices, "pool": pool})["shifts"], pool)
    planes = engine.run("sr", {"slices": slices, "shifts": shifts})["prob"][0, 0]
    csdg = coarse_sdg(to_grid(planes, upright.placement.step_mm) >= 0.5)
    z = engine.run("encode", {"csdg": csdg[None, None]})["zc"]
    expected = engine.run("decode", {"z": z})["sdg"][0, 0]
    result = plain[0]
    np.testing.assert_allclose(result.sdg, expected, atol=5e-3)
    np.testing.assert_array_equal(result.shifts, shifts[0])
    assert result.spread is None
    agreed = agreement(slices[0, 0], shifts[0], sections(result.sdg, upright.placement.step_mm))
    np.testing.assert_array_equal(result.agreement, agreed)
    assert np.nanmin(agreed) > 0.95


def test_the_surface_is_that_of_the_mean_and_the_spread_that_of_the_samples(bundle, engine, upright, plain) -> None:
    offsets = np.array([-0.6, 0.1, 0.8], np.float32)
    meddling = Meddling(engine, {"decode": lambda o, _: {"sdg": o["sdg"] + offsets[:, None, None, None, None]}})
    limits = {"spread_high_mm": 0.5}
    scaled = replace(bundle, manifest=replace(bundle.manifest, spread_scale=2.0, flag_limits=limits))
    result = Pipeline(scaled, meddling, steps=1, samples=3).reconstruct(upright, KEY)
    assert meddling.calls == {"mc": 1, "sr": 1, "encode": 1, "denoise": 1, "decode": 1}
    np.testing.assert_allclose(result.sdg, plain[0].sdg + offsets.mean(), atol=5e-3)
    assert result.spread.shape == (len(result.mesh.vertices),)
    assert np.median(result.spread) == pytest.approx(2 * offsets.std(ddof=1), rel=0.1)
    assert result.flags == ("spread_high",)
    assert plain[0].flags == ()


def test_refinement_changes_nothing_where_everything_agrees(bundle, engine, upright, plain) -> None:
    counted = Meddling(engine)
    result = Pipeline(bundle, counted, steps=1, refine=3).reconstruct(upright, KEY)
    assert result.mesh.vertices.tobytes() == plain[0].mesh.vertices.tobytes()
    assert result.mesh.faces.tobytes() == plain[0].mesh.faces.tobytes()
    assert result.sdg.tobytes() == plain[0].sdg.tobytes()
    np.testing.assert_array_equal(result.shifts, plain[0].shifts)
    assert counted.calls["sr"] == 1
    assert "refine" in result.seconds


def test_refinement_mends_a_bad_estimate(bundle, engine, upright, plain) -> None:
    """Super-resolution is not deceived by the slice that slipped, so the slice is brought back to its answer."""
    right, answer = plain
    deceived = {"mc": slip, "sr": lambda *_: answer}
    bad, mended = (
        Pipeline(bundle, Meddling(engine, deceived), steps=1, refine=n).reconstruct(upright, KEY) for n in (0, 1)
    )
    held = upright.masks.any((0, 1))
    assert abs(bad.shifts - right.shifts)[held].max() > 2
    assert abs(mended.shifts - right.shifts)[held].max() < 0.1
    assert mended.agreement[6] > bad.agreement[6] + 0.1
    np.testing.assert_allclose(mended.common_shift, right.common_shift, atol=0.1)


def test_a_pass_that_agrees_less_is_not_kept(bundle, engine, upright) -> None:
    def worse_later(outputs, call):
        return {"prob": outputs["prob"] if call == 1 else np.roll(outputs["prob"], 15, axis=2)}

    meddling = Meddling(engine, {"mc": slip, "sr": worse_later})
    # The toy follows the slice that slipped; between two planes of the grid enough remains to be seen.
    tilted = replace(upright, placement=replace(upright.placement, step_mm=8.0))
    first = Pipeline(bundle, Meddling(engine, {"mc": slip}), steps=1).reconstruct(tilted, KEY)
    kept = Pipeline(bundle, meddling, steps=1, refine=1).reconstruct(tilted, KEY)
    assert meddling.calls["sr"] == 2
    assert kept.mesh.vertices.tobytes() == first.mesh.vertices.tobytes()


def test_the_step_range_is_the_bundles_own(bundle, engine, upright) -> None:
    narrow = replace(bundle, manifest=replace(bundle.manifest, step_range_mm=(5.0, 8.0)))
    assert Pipeline(narrow, engine, steps=1).reconstruct(upright, KEY).flags == ("step_out_of_range",)


def starts(bundle, engine, upright, **asked) -> tuple[np.ndarray, int]:
    """What the denoiser starts from, and how many steps it takes."""
    seen = []

    class Spy(Meddling):
        def run(self, graph, inputs):
            if graph == "denoise":
                seen.append(inputs["z"])
            return super().run(graph, inputs)

    Pipeline(bundle, Spy(engine), **asked).reconstruct(upright, KEY)
    return seen[0], len(seen)


def test_temperature_cools_a_single_sample_of_the_bundles_own_steps(bundle, engine, upright) -> None:
    plain = starts(bundle, engine, upright, steps=1)[0]
    cooled = replace(bundle, manifest=replace(bundle.manifest, steps=1, temperature=0.25))
    np.testing.assert_array_equal(starts(cooled, engine, upright)[0], plain / 4)
    np.testing.assert_array_equal(starts(cooled, engine, upright, steps=2)[0], plain)


def test_several_samples_take_their_own_number_of_steps(bundle, engine, upright) -> None:
    other = replace(bundle, manifest=replace(bundle.manifest, steps=1, sample_steps=3, temperature=0.25))
    noise, steps = starts(other, engine, upright, samples=2)
    assert steps == 3
    np.testing.assert_array_equal(noise[0], draw_noise(KEY, 0, 0, bundle.manifest.latent_shape))
    assert starts(other, engine, upright, samples=2, steps=2)[1] == 2
