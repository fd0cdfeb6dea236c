"""Variants of ours, asked twice for one stack."""

from typing import Any

import numpy as np
import pytest
import torch

from m2s_runtime.grid import GRID


def asked_twice(
    method: Any, autoencoder: Any, monkeypatch: pytest.MonkeyPatch, stack: np.ndarray
) -> list[torch.Tensor]:
    """Latents that a variant of ours decodes for a stack, asked twice: the answers have to be the same.

    An untrained decoder finds no heart, so the C-SDG stands for its answer.
    """
    csdg, shifts = method.front.csdg(stack, (1.0, 1.0, 10.0))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(autoencoder, "decode", lambda z: seen.append(z) or torch.from_numpy(csdg)[None, None])
    one, two = (method.predict(stack, (1.0, 1.0, 10.0)) for _ in range(2))
    assert one.level.shape == GRID
    np.testing.assert_array_equal(one.level, two.level)
    np.testing.assert_array_equal(one.shifts, shifts)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    return seen
