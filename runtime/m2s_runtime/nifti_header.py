"""The header of a NIfTI file, judged before anything that follows it is read."""

from typing import Any, Final, Protocol

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from m2s_runtime.errors import BadHeader, BadLabels, UnreadableVolume
from m2s_runtime.limits import Limits

MAX_HEADER_BYTES: Final = 2**20
"""Bytes before the first voxel, extensions included."""


class Stream(Protocol):
    """A file, decompressed if need be."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer than `size` only at the end."""
        ...


def read_header(stream: Stream) -> tuple[Nifti1Header, bool]:
    """The header, read to its last byte, and whether the voxels follow in the same file.

    Raises:
        UnreadableVolume: neither NIfTI-1 nor NIfTI-2.
    """
    start = stream.read(348)
    if not start:
        raise UnreadableVolume("empty, not a NIfTI file: copy it again")
    kinds = {348: Nifti1Header, 540: Nifti2Header}
    sizes = [int.from_bytes(start[:4], order, signed=True) for order in ("little", "big")]
    kind = next((kinds[size] for size in sizes if size in kinds), None)
    if kind is Nifti2Header:
        start += stream.read(540 - 348)
    if kind is None or len(start) < kind.template_dtype.itemsize:
        raise UnreadableVolume("not a NIfTI file: convert it to .nii.gz (the .img of a pair needs its .hdr beside it)")
    header = kind(start, "<" if sizes[0] in kinds else ">", check=False)
    magic = bytes(header["magic"].item())
    if not magic.startswith((b"n+", b"ni")):
        raise UnreadableVolume("an Analyze file, which says too little of its orientation: convert it to .nii.gz")
    return header, magic.startswith(b"n+")


def shape_of(header: Nifti1Header, limits: Limits) -> tuple[int, int, int, int]:
    """The declared (X, Y, Z, T), within the limits.

    Raises:
        BadHeader: another number of axes, sizes that cannot be, or too large; the message holds the flag that helps.
    """
    dim = [int(d) for d in header["dim"]]
    if not 3 <= dim[0] <= 7:
        raise BadHeader(f"{dim[0]} dimensions declared: 3 (x, y, z) or 4 (x, y, z, time) are needed")
    sizes = dim[1 : dim[0] + 1] + [1] * (4 - dim[0])
    declared = " x ".join(map(str, sizes))
    if min(sizes) < 1:
        raise BadHeader(f"impossible size {declared}: write the file anew with its true size")
    if max(sizes[4:], default=1) > 1:
        raise BadHeader(f"size {declared} has more than four axes: store one volume, or one cine (x, y, z, time)")
    x, y, z, frames = sizes[:4]
    found = {"axis": max(x, y, z), "frames": frames, "voxels": x * y * z * frames}
    allowed = {"axis": limits.axis, "frames": limits.frames, "voxels": limits.voxels}
    over = [name for name in found if found[name] > allowed[name]]
    if over:
        told = ", ".join(f"{name} {found[name]} where {allowed[name]} are allowed" for name in over)
        flags = " ".join(f"--max-{name} {found[name]}" for name in over)
        raise BadHeader(f"size {declared} ({told}): crop it round the heart, split the frames, or add {flags}")
    return x, y, z, frames


def skip_of(header: Nifti1Header, *, single: bool) -> int:
    """Bytes between the header (of a pair: the start of the second file) and the first voxel.

    Raises:
        BadHeader: they are negative, or more than any extensions take.
    """
    before = header.template_dtype.itemsize if single else 0
    offset = float(header["vox_offset"])
    if not before <= offset <= MAX_HEADER_BYTES:
        raise BadHeader(f"voxels said to start at byte {offset:g}: write the file anew")
    return int(offset) - before


def scaled_type(header: Nifti1Header) -> tuple[np.dtype[Any], tuple[float, float] | None]:
    """The type of the stored voxels, and slope and intercept where they mean anything.

    Raises:
        BadHeader: an unknown type, or scaling that is no number.
        BadLabels: complex numbers, colours and others that cannot be labels.
    """
    try:
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
    except KeyError:
        raise BadHeader(f"unknown data type {int(header['datatype'])}: write the file anew as uint8") from None
    except HeaderDataError as error:
        raise BadHeader(f"{error}: write the file anew as uint8") from None
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise BadLabels(f"voxels of type {dtype} are no labels: write the file anew as uint8")
    if slope is None or intercept is None or (slope, intercept) == (1, 0):
        return dtype, None
    return dtype, (slope, intercept)
