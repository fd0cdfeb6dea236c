"""The blend of drawn and given distances, against SciPy's convolution of their mean."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from toy import TOY

from m2s_runtime.blend import AS_DRAWN, Blend
from m2s_runtime.bundle import load_bundle
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.engines import open_engine
from m2s_runtime.pipeline import Pipeline
from m2s_runtime.placement import canonicalise

Floats = NDArray[np.float32]
SHAPE = (1, 9, 8, 7)


def fields(samples: int, conditions: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(samples)
    return tuple(rng.normal(0, 8, (n, *SHAPE)).astype(np.float32) for n in (samples, conditions))  # pyright: ignore[reportReturnType]


def wanted(sdg: Floats, csdg: Floats, share: float) -> NDArray[np.float64]:
    mean = (1 - share) * sdg.astype(np.float64) + share * csdg.astype(np.float64).clip(-10, 10)
    # A Gaussian of 1 / sqrt(2) mm has these three weights on 1 mm voxels, where its variance counts; 1/4 of it on 2 mm.
    for axis, variance in zip((2, 3, 4), (0.5, 0.5, 0.125), strict=True):
        kernel = [variance / 2, 1 - variance, variance / 2]
        mean = np.asarray(ndimage.convolve1d(mean, kernel, axis=axis, mode="nearest"))
    return mean


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(("samples", "conditions"), [(1, 1), (3, 1), (2, 2)])
def test_it_is_the_smoothed_mean(share: float, samples: int, conditions: int) -> None:
    sdg, csdg = fields(samples, conditions)
    given, oracle = csdg.copy(), wanted(sdg, csdg, share)
    found = Blend(share).mixed(sdg, csdg)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, oracle, atol=1e-5)
    np.testing.assert_array_equal(csdg, given)


class Recorded(np.ndarray):
    """An array as a GPU has it while it records: nothing may be allocated."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        assert out, f"{ufunc.__name__} makes an array"
        plain = [a.view(np.ndarray) if isinstance(a, Recorded) else a for a in (*inputs, *out)]
        getattr(ufunc, method)(*plain[: len(inputs)], out=tuple(plain[len(inputs) :]), **kwargs)
        return out[0]

    def copy(self, *_args: object, **_kwargs: object) -> "Recorded":
        raise AssertionError("a copy is an array more")


def test_in_place_nothing_is_allocated() -> None:
    sdg, csdg = fields(2, 1)
    other = Blend(0.5).mixed(sdg, csdg)
    Blend(0.5).into(sdg.view(Recorded), csdg.view(Recorded), np.full_like(sdg, np.nan).view(Recorded))
    np.testing.assert_array_equal(sdg, other)


def test_what_was_drawn_is_left_alone() -> None:
    sdg, csdg = fields(1, 1)
    before = sdg.copy()
    assert not np.shares_memory(Blend(0.5).mixed(sdg, csdg), sdg)
    np.testing.assert_array_equal(sdg, before)


def test_the_papers_way_leaves_every_bit_alone() -> None:
    sdg, csdg = fields(1, 1)
    before = sdg.tobytes()
    nothing = np.full_like(csdg, np.nan)
    assert AS_DRAWN.mixed(sdg, nothing) is sdg
    AS_DRAWN.into(sdg, nothing, nothing)
    assert sdg.tobytes() == before


def test_planes_stay_planes() -> None:
    x, y, z = np.meshgrid(*map(np.arange, SHAPE[1:]), indexing="ij")
    plane = (0.3 * x - 0.2 * y + 0.5 * z - 2).astype(np.float32)[None, None]
    found = Blend(0.5).mixed(plane, plane)
    np.testing.assert_allclose(found[..., 1:-1, 1:-1, 1:-1], plane[..., 1:-1, 1:-1, 1:-1], atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_bundle_that_says_so_gets_it(share: float) -> None:
    pytest.importorskip("onnxruntime")
    x, y = np.indices((128, 128)) - 63.5
    rings = [(np.hypot(x, y) < 32 - k) & (np.hypot(x, y) >= (23 - 2 * k if k < 7 else 0)) for k in range(9)]
    bundle = load_bundle(TOY)
    engine = open_engine(bundle, "onnx", "cpu", 1)
    canonical = canonicalise(np.stack(rings, -1), np.diag([1.0, 1.0, 10.0, 1.0]))
    blended = replace(bundle, manifest=replace(bundle.manifest, csdg_share=share))
    plain, found = (Pipeline(b, engine, steps=1).reconstruct(canonical, "ab") for b in (bundle, blended))
    csdg = coarse_sdg(found.probability >= 0.5)
    np.testing.assert_array_equal(found.probability, plain.probability)
    oracle = wanted(plain.sdg[None, None], csdg[None, None], share)[0, 0]
    np.testing.assert_allclose(found.sdg, oracle, atol=1e-5)
    assert np.abs(found.sdg - plain.sdg).max() > 0.1
