"""Encode, denoise and decode on the host: bit for bit what the same calls give one by one."""

import numpy as np
import pytest
from toy import TOY

from m2s_runtime import ddim
from m2s_runtime.bundle import load_bundle
from m2s_runtime.clock import Clock
from m2s_runtime.engines import open_engine
from m2s_runtime.generate import generate

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("samples", [1, 3])
def test_it_is_the_same_bytes_as_the_calls_one_by_one(samples):
    engine, bars, levels = open_engine(load_bundle(TOY), "onnx", "cpu", 1), ddim.alpha_bars(), ddim.timesteps(4)
    rng = np.random.default_rng(0)
    csdg = rng.normal(0, 8, (1, 1, 128, 128, 64)).astype(np.float32)
    z = noise = rng.standard_normal((samples, 64, 32, 32, 16), np.float32)
    zc = np.concatenate([engine.run("encode", {"csdg": csdg})["zc"]] * samples)
    for t, bar_next in zip(levels, [*(float(bars[t]) for t in levels[1:]), 1.0], strict=True):
        eps = engine.run("denoise", {"z": z, "zc": zc, "t": np.full(samples, t, np.int64)})["eps"]
        z = ddim.step(z, eps, float(bars[t]), bar_next)
    clock = Clock()
    found = generate(engine, csdg, noise, levels, bars, clock)
    assert found.tobytes() == engine.run("decode", {"z": z})["sdg"][:, 0].tobytes()
    assert list(clock.seconds) == ["encode", "denoise", "decode"]


def test_each_sample_may_have_a_condition_of_its_own():
    engine, bars, levels = open_engine(load_bundle(TOY), "onnx", "cpu", 1), ddim.alpha_bars(), ddim.timesteps(2)
    rng = np.random.default_rng(1)
    csdg = rng.normal(0, 8, (2, 1, 128, 128, 64)).astype(np.float32)
    noise = rng.standard_normal((2, 64, 32, 32, 16), np.float32)
    together = generate(engine, csdg, noise, levels, bars, Clock())
    for k in range(2):
        alone = generate(engine, csdg[k : k + 1], noise[k : k + 1], levels, bars, Clock())
        np.testing.assert_allclose(alone[0], together[k], atol=1e-5)
