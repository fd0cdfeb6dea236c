"""TensorRT comes as two Python modules with one interface: which is here, which is wanted.

`tensorrt` builds and runs on the card that is present, any NVIDIA architecture. `tensorrt_rtx` is for RTX cards, and
builds for any of them on any machine. Building and running both choose through this file, so that they agree.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Final

from m2s_runtime.engines.cache import EngineKey, Flavour
from m2s_runtime.errors import EngineError
from m2s_runtime.manifest import Manifest, profile_text

FLAVOURS: Final[tuple[Flavour, ...]] = ("tensorrt", "tensorrt_rtx")

RTX: Final = frozenset({"sm75", "sm86", "sm89", "sm120", "sm121"})
"""Architectures that `tensorrt_rtx` knows and RTX cards have (sm80 and sm90 are data centre cards)."""

INSTALL: Final = '`pip install "mask2surface[trt]"` or, for an RTX card, `pip install "mask2surface[trt-rtx]"`'
"""What brings TensorRT."""


def installed_flavours() -> list[Flavour]:
    """Those of the modules that are here.

    Raises:
        EngineError: none is.
    """
    present: list[Flavour] = [name for name in FLAVOURS if importlib.util.find_spec(name)]
    if not present:
        raise EngineError(f"TensorRT is not installed; run {INSTALL}")
    return present


def choose_flavour(arch: str) -> Flavour:
    """The installed module that serves cards of architecture `arch`; on RTX cards the RTX one if both are there.

    Raises:
        EngineError: none is installed, or none that serves this architecture.
    """
    present = installed_flavours()
    if arch in RTX and "tensorrt_rtx" in present:
        return "tensorrt_rtx"
    if "tensorrt" not in present:
        raise EngineError(
            f"tensorrt_rtx has no engines for {arch}, only for {', '.join(sorted(RTX))}; run `pip install "
            '"mask2surface[trt]"`'
        )
    return "tensorrt"


def load_flavour(flavour: Flavour) -> ModuleType:
    """Import one of the modules.

    Raises:
        EngineError: it is not installed, or not whole.
    """
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:  # its libraries are loaded by hand, and are missed by OSError
        raise EngineError(
            f"{flavour}: {str(error).splitlines()[0] if str(error) else error!r}; run {INSTALL}"
        ) from error


def engine_key(
    manifest: Manifest, graph: str, precision: str, *, flavour: Flavour, version: str, arch: str
) -> EngineKey:
    """Key of the engine of one graph, for the builder and for the runtime.

    A graph that has no file of its own in `precision` is the float32 one, and its engine serves both.
    """
    file = manifest.graph_file(graph, precision)
    real = precision if file != manifest.graph_file(graph) else manifest.precision
    return EngineKey(manifest.files[file].sha256, real, profile_text(manifest.profiles), flavour, version, arch)
