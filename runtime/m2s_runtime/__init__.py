"""Mask2Surface, the lean runtime: from label maps to surfaces, without torch.

    from m2s_runtime import Reconstructor
    result = Reconstructor().run("labels.nii.gz")

Both names are looked up when they are used, so that importing a module of this package costs no more than that module.
"""

import os
from typing import TYPE_CHECKING

# From 1.29 on ONNX Runtime reports models and use to its maker, unless it is told not to before it is loaded (it has
# had two names for that). Nobody who hands over masks of patients expects it: off unless the environment says "0".
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_TELEMETRY_DISABLED", "1")

if TYPE_CHECKING:
    from m2s_runtime.library import Reconstructor, Result

__all__ = ["Reconstructor", "Result"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from m2s_runtime import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
