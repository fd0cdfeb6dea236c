"""TensorRT engines of all graphs of a bundle, into the user's private cache; nothing here imports torch."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from m2s_export.build import build
from m2s_runtime.atomic import write_bytes
from m2s_runtime.bundle import Bundle
from m2s_runtime.engines.base import graph_bytes
from m2s_runtime.engines.cache import EngineCache, EngineKey
from m2s_runtime.engines.cuda import Cuda
from m2s_runtime.engines.flavours import choose_flavour, engine_key, load_flavour
from m2s_runtime.errors import EngineError
from m2s_runtime.manifest import GRAPHS

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One engine of the table: seconds are None where the cache had it already."""

    graph: str
    key: EngineKey
    seconds: float | None
    megabytes: float
    layers: int
    scratch_mb: float | None


def build_engines(
    bundle: Bundle,
    target: str = "current",
    precision: str = "float32",
    folder: Path | None = None,
    *,
    anew: bool = False,
) -> Iterator[Row]:
    """Builds what the cache lacks, a row for each graph; `anew` builds what it has, too.

    Args:
        bundle: verified.
        target: `current`, the card that is here, or an architecture such as `sm89`.
        precision: `float32`, or a flavour of the bundle.
        folder: of the cache; None means the default one.
        anew: replace engines that are there.

    Raises:
        BundleError: a graph is altered, too large, keeps weights elsewhere, or is none that TensorRT knows.
        EngineError: no TensorRT, none for this architecture, no GPU to build for, or an unsafe cache.
        OutputError: the cache cannot be written.
    """
    graphs = {graph: graph_bytes(bundle, graph, precision) for graph in GRAPHS}
    arch, ahead = target_arch(target)
    flavour = choose_flavour(arch)
    if ahead and flavour != "tensorrt_rtx":
        raise EngineError(
            f"--target {target}: tensorrt builds for the card that is here only; run "
            '`pip install "mask2surface[trt-rtx]"`, which builds for any RTX card'
        )
    module, cache = load_flavour(flavour), EngineCache(folder)
    _LOG.info("%s %s, %s, %s, into %s", flavour, module.__version__, arch, precision, cache.folder)
    for graph, (where, model) in graphs.items():
        key = engine_key(bundle.manifest, graph, precision, flavour=flavour, version=module.__version__, arch=arch)
        ready = None if anew else cache.find(key)
        if ready is not None and (sidecar := cache.sidecar(key)):
            yield Row(graph, key, None, len(ready) / 1e6, len(sidecar.layers), None)
        else:
            yield _build(bundle, graph, where, model, key, module=module, cache=cache, anew=anew)


def target_arch(target: str) -> tuple[str, bool]:
    """Architecture to build for, and whether that is ahead of time, for another card than the one that is here.

    Raises:
        EngineError: `current`, and there is no GPU or no CuPy to ask it.
    """
    try:
        here = Cuda(0).arch
    except EngineError as error:
        if target == "current":
            raise EngineError(
                f"no GPU to build for ({error}); `--target sm89` builds for an RTX 40 card on any machine, "
                "sm86 for RTX 30, sm120 for RTX 50"
            ) from error
        return target, True
    return (here, False) if target == "current" else (target, target != here)


def _build(
    bundle: Bundle, graph: str, where: str, model: bytes, key: EngineKey, *,
    module: ModuleType, cache: EngineCache, anew: bool,
) -> Row:  # fmt: skip
    manifest = bundle.manifest
    _LOG.info("building %s", graph)
    # An RTX engine says itself what it is for; without that it would be for the card here, and want one.
    target = key.arch if key.flavour == "tensorrt_rtx" else None
    timings = cache.folder / f"{key.flavour}-{key.version}-{key.arch}.timing"
    built = build(
        where, model, manifest.graphs[graph], tuple(manifest.profiles.values()),
        module=module, target=target, timing=b"" if anew else _kept(timings),
    )  # fmt: skip
    cache.store(key, built.engine, built.layers)
    if built.timing:
        write_bytes(timings, hashlib.sha256(built.timing).digest() + built.timing, mode=0o600)
    scratch = None if built.scratch_bytes is None else built.scratch_bytes / 1e6
    return Row(graph, key, built.seconds, len(built.engine) / 1e6, len(built.layers), scratch)


def _kept(path: Path) -> bytes:
    """The timing cache of earlier builds, from a folder that `EngineCache.find` has checked; empty when damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else b""
