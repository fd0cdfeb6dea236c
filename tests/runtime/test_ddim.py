"""The sampler against closed forms: a Gaussian denoiser has an exact recursion, a perfect one an exact answer."""

import numpy as np
import pytest

from m2s_runtime import ddim


def test_schedule_is_the_papers() -> None:
    bars = ddim.alpha_bars()
    assert bars.shape == (1000,)
    # Facts of the linear schedule 0.0015 to 0.0195, worked out by hand for the ends.
    assert bars[0] == pytest.approx(1 - 0.0015)
    assert bars[100] == pytest.approx(0.784, abs=1e-3)
    assert bars[999] == pytest.approx(2.6e-5, rel=0.02)


def test_timesteps() -> None:
    assert ddim.timesteps(10) == (999, 888, 777, 666, 555, 444, 333, 222, 111, 0)
    assert ddim.timesteps(10, "leading") == (900, 800, 700, 600, 500, 400, 300, 200, 100, 0)
    assert ddim.timesteps(1) == (999,)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="1000"):
            ddim.timesteps(steps)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50, 1000])
@pytest.mark.parametrize("spread", [0.1, 0.3, 1.0])
def test_gaussian_data_follow_the_closed_form_recursion(steps: int, spread: float) -> None:
    """For data N(0, s²) the best noise estimate is linear in z, so DDIM multiplies z by a number known beforehand."""
    bars, levels = ddim.alpha_bars(), ddim.timesteps(steps)
    noise = np.random.default_rng(0).standard_normal((1, 2, 3, 3, 3))

    def perfect(z: np.ndarray, t: int) -> np.ndarray:
        return (1 - bars[t]) ** 0.5 * z / (bars[t] * spread**2 + 1 - bars[t])

    factor = 1.0
    for t, following in zip(levels, [*(bars[t] for t in levels[1:]), 1.0], strict=True):
        variance = bars[t] * spread**2 + 1 - bars[t]
        factor *= (following**0.5 * bars[t] ** 0.5 * spread**2 + ((1 - following) * (1 - bars[t])) ** 0.5) / variance
    found = ddim.sample(perfect, noise, levels, bars)
    np.testing.assert_allclose(found, factor * noise, rtol=1e-9)
    if steps == 1000:
        # The last level, alpha-bar 0.9985, still holds noise of 0.04: only s well above it comes out whole.
        assert factor == pytest.approx(spread, rel=0.1 if spread == 0.1 else 0.02)


def test_known_clean_latent_is_recovered_exactly() -> None:
    bars, rng = ddim.alpha_bars(), np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 1, 8, 4, 4, 4))

    def knows(z: np.ndarray, t: int) -> np.ndarray:
        return (z - bars[t] ** 0.5 * clean) / (1 - bars[t]) ** 0.5

    np.testing.assert_allclose(ddim.sample(knows, noise, ddim.timesteps(10), bars), clean, atol=1e-9)


def test_float32_stays_float32() -> None:
    noise = ddim.draw_noise("ab", 0, 0, (8, 2, 2, 2))[None]
    assert noise.dtype == np.float32
    assert ddim.sample(lambda z, _: z, noise, ddim.timesteps(3), ddim.alpha_bars()).dtype == np.float32


def test_noise_is_a_function_of_key_seed_and_sample() -> None:
    base = ddim.draw_noise("0f" * 32, 1, 0, (8, 16, 16, 8))
    assert np.array_equal(base, ddim.draw_noise("0f" * 32, 1, 0, (8, 16, 16, 8)))
    assert abs(float(base.mean())) < 0.02
    assert float(base.std()) == pytest.approx(1.0, abs=0.02)
    for key, seed, index in (("0e" * 32, 1, 0), ("0f" * 32, 2, 0), ("0f" * 32, 1, 1)):
        assert abs(np.corrcoef(base.ravel(), ddim.draw_noise(key, seed, index, base.shape).ravel())[0, 1]) < 0.03
