"""Names of what can be compared; nothing heavy is imported, for --help waits for this."""

from typing import Final

from m2s.baselines.registry import BASELINES

NETWORK_METHODS: Final = ("ours", "mcsr", "coarse", "decode-zc", "unconditioned")
"""`ours` is the whole method, `mcsr` its super-resolved mask alone, `coarse` the C-SDG of that mask smoothed as a
blend is, `decode-zc` the decoded condition without diffusion, `unconditioned` the diffusion without its condition."""

CLASSICAL_METHODS: Final = ("nni", "shape-based", "shape-based-line", "shape-based-uncorrected")
"""`shape-based` puts centroids on one point, `-line` on a straight line, `-uncorrected` leaves the slices alone."""

METHODS: Final = (*NETWORK_METHODS, *CLASSICAL_METHODS, *BASELINES)


def is_plugin(name: str) -> bool:
    """Whether a name says where to import a method from, `package.module:Class`."""
    module, colon, member = name.partition(":")
    return bool(colon) and member.isidentifier() and all(part.isidentifier() for part in module.split("."))
