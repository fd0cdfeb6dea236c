"""DDIM with eta 0: the schedule, one step, the loop (Song et al. 2021, Eq. 12; paper section 3.1, ten steps).

Latents may be NumPy, CuPy or torch arrays. The noise comes from NumPy's Philox, so that it is the same
on every machine and for every batch.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from m2s_runtime.slices import A

TRAIN_STEPS: Final = 1000
BETA_START: Final = 0.0015
BETA_END: Final = 0.0195
DEFAULT_STEPS: Final = 10
"""As in the paper."""

Spacing = Literal["linspace", "leading"]


def alpha_bars(start: float = BETA_START, end: float = BETA_END, train_steps: int = TRAIN_STEPS) -> NDArray[np.float64]:
    """Cumulative products of 1 - beta for betas linear from `start` to `end`: float64 (train_steps,)."""
    return np.asarray(np.cumprod(1.0 - np.linspace(start, end, train_steps)), np.float64)


def timesteps(steps: int, spacing: Spacing = "linspace", train_steps: int = TRAIN_STEPS) -> tuple[int, ...]:
    """Decreasing levels to visit, the first the noisiest.

    `linspace` runs from 999 to 0, both included; `leading` (900, 800, ..., 0 for ten) is the older MONAI's choice.

    Raises:
        ValueError: `steps` is not in 1..train_steps.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"DDIM steps must lie in 1..{train_steps}, not {steps}")
    if spacing == "leading":
        return tuple(range((steps - 1) * (train_steps // steps), -1, -(train_steps // steps)))
    return tuple(int(t) for t in np.round(np.linspace(train_steps - 1, 0, steps)))


def step(z: A, eps: A, bar: float, bar_next: float) -> A:
    """From level alpha-bar `bar` to `bar_next`: the clean latent that `eps` implies, noised again with `eps`."""
    clean = (z - eps * (1.0 - bar) ** 0.5) * (1.0 / bar**0.5)
    return clean * bar_next**0.5 + eps * (1.0 - bar_next) ** 0.5


def coefficients(levels: Sequence[int], bars: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Pairs (a, b) with which each step of `sample` is `z * a + eps * b`, for devices that update z in place."""
    following = [*(float(bars[t]) for t in levels[1:]), 1.0]
    pairs: list[tuple[float, float]] = []
    for t, bar_next in zip(levels, following, strict=True):
        keep = (bar_next / float(bars[t])) ** 0.5
        pairs.append((keep, (1.0 - bar_next) ** 0.5 - keep * (1.0 - float(bars[t])) ** 0.5))
    return pairs


def sample(
    denoise: Callable[[A, int], A],
    noise: A,
    levels: Sequence[int],
    bars: NDArray[np.float64],
) -> A:
    """Denoises `noise` along `levels`; the last step goes to alpha-bar 1.

    Args:
        denoise: the noise in z at level t; the condition is the callable's own.
        noise: unit-variance start, (B, D, X, Y, Z) float32.
        levels: from `timesteps`.
        bars: from `alpha_bars`.
    """
    z = noise
    following = [float(bars[t]) for t in levels[1:]] + [1.0]
    for t, bar_next in zip(levels, following, strict=True):
        z = step(z, denoise(z, t), float(bars[t]), bar_next)
    return z


def draw_noise(key: str, seed: int, sample_index: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal float32 of `shape`, a function of (key, seed, sample index) only.

    Args:
        key: sha256 of the source file, hexadecimal; the frames of a cine share it and so share the noise.
        seed: the user's seed.
        sample_index: which posterior sample.
        shape: latent shape (D, X, Y, Z).
    """
    words = np.random.SeedSequence([int(key, 16), seed, sample_index])
    return np.random.Generator(np.random.Philox(words)).standard_normal(tuple(shape), dtype=np.float32)
