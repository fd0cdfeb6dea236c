"""The best that a device does here: a matrix product and a copy in memory.

On the CPU both run in a process of their own, for the number of threads of NumPy's linear algebra is settled when it is
loaded.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Final

import numpy as np

from m2s.bench.result import Peak
from m2s_runtime.errors import EngineError
from m2s_runtime.versions import installed

_SIDE: Final = 2048
_COPIED: Final = 1 << 28
"""Bytes, far beyond what caches hold."""

_SECONDS: Final = 1.5


def cpu_peak(threads: int) -> Peak:
    """FLOP/s in float32 and bytes/s of this machine with so many threads.

    Raises:
        EngineError: the process that measures it failed.
    """
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    words = [sys.executable, "-m", __name__, str(threads)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the peaks of this machine could not be measured: {done.stderr.strip()[-200:]}")
    flops, copy = json.loads(done.stdout)
    return Peak({"float32": flops}, copy, f"NumPy {installed('numpy')}, {threads} thread(s)")


def cuda_peak(index: int) -> Peak | None:
    """FLOP/s in float32 (no TF32) and float16, and bytes/s, of a card; None where no library reaches it."""
    for measure in (_cupy_peak, _torch_peak):
        try:
            return measure(index)
        except Exception:  # noqa: BLE001, S112 - not installed, not for this driver: each library has its own errors
            continue
    return None


def best_seconds(work: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Of repeated calls over about so many seconds, the shortest; `work` returns when it is done."""
    work()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def _measure_cpu(threads: int) -> tuple[float, float]:
    a, b = (np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    flops = 2 * _SIDE**3 / best_seconds(lambda: np.matmul(a, b, out=out))
    source, target = (np.zeros(_COPIED, np.uint8) for _ in range(2))
    source += 1
    parts = [slice(k * _COPIED // threads, (k + 1) * _COPIED // threads) for k in range(threads)]

    def copy(part: slice) -> None:
        target[part] = source[part]

    with ThreadPoolExecutor(threads) as pool:
        return flops, 2 * _COPIED / best_seconds(lambda: list(pool.map(copy, parts)))


def _cupy_peak(index: int) -> Peak:
    cupy: Any = import_module("cupy")
    with cupy.cuda.Device(index):
        wait = cupy.cuda.Device(index).synchronize
        found = _card_flops(lambda dtype: cupy.ones((8192, 8192), dtype), cupy.matmul, wait)
        source, target = cupy.zeros(_COPIED, "uint8"), cupy.empty(_COPIED, "uint8")
        copy = 2 * _COPIED / best_seconds(lambda: (cupy.copyto(target, source), wait()), 0.5)
    return Peak(found, copy, f"CuPy {cupy.__version__}, cuda:{index}")


def _torch_peak(index: int) -> Peak:
    torch: Any = import_module("torch")
    if index >= torch.cuda.device_count():
        raise EngineError(f"cuda:{index}: no such card")
    device = f"cuda:{index}"

    def wait() -> None:
        torch.cuda.synchronize(index)

    def ones(dtype: str) -> Any:  # noqa: ANN401 - a tensor
        return torch.ones((8192, 8192), dtype=getattr(torch, dtype), device=device)

    found = _card_flops(ones, torch.matmul, wait)
    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * _COPIED / best_seconds(lambda: (target.copy_(source), wait()), 0.5)
    return Peak(found, copy, f"PyTorch {torch.__version__}, {device}")


def _card_flops(
    ones: Callable[[str], Any], product: Callable[[Any, Any], Any], wait: Callable[[], None]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for dtype in ("float32", "float16"):
        a, b = ones(dtype), ones(dtype)
        seconds = best_seconds(lambda a=a, b=b: (product(a, b), wait()), 0.5)
        found[dtype] = 2 * 8192**3 / seconds
    return found


if __name__ == "__main__":
    print(json.dumps(_measure_cpu(int(sys.argv[1]))))  # noqa: T201 - for the process that asked
