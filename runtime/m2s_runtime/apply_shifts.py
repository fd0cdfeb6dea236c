"""`m2s-run SHIFTS.json --apply-shifts IMAGE`: the slices of an image or cine put where they belong.

Stored values are interpolated, not scaled ones, so that header, scaling and type stay as they are. The file is read,
moved and written frame by frame.
"""

import sys
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from m2s_runtime import atomic
from m2s_runtime.errors import BadHeader, CaseError, OutputError, UnreadableVolume, UsageProblem
from m2s_runtime.gzip_stream import MAGIC, GzipStream
from m2s_runtime.limits import Limits
from m2s_runtime.nifti_files import digest, open_regular, split_suffix
from m2s_runtime.nifti_header import read_header, shape_of, skip_of
from m2s_runtime.orientation import AGREE_WITHIN_MM, read_affine
from m2s_runtime.shifts_file import SliceShifts, read_shifts

Stream = BufferedReader | GzipStream
Vectors = npt.NDArray[np.float64]
Values = npt.NDArray[Any]

_LIMITS: Final = Limits(sys.maxsize, sys.maxsize, sys.maxsize, file_mib=64 * 1024)
"""The grid of the label map and the frames one by one are limits enough."""

_LABELS: Final = 1002
"""NIfTI intent of a file whose values are names; these, and the label map itself, take the nearest value."""

_GZIP: Final = 31
"""What zlib calls the gzip wrapper."""


@dataclass(frozen=True)
class _Image:
    """A NIfTI file, open at its first voxel.

    Attributes:
        stream: decompressed, at the first voxel.
        start: every byte before that, as it is in the file.
        header: the same, understood.
        shape: (X, Y, Z, T).
        dtype: of the stored values, with their byte order.
    """

    stream: Stream
    start: bytes
    header: Nifti1Header
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]

    def frames(self) -> Iterator[Values]:
        """(X, Y, Z) each, as stored."""
        size = int(np.prod(self.shape[:3])) * self.dtype.itemsize
        for _ in range(self.shape[3]):
            with _told():
                raw = self.stream.read(size)
            if len(raw) < size:
                raise UnreadableVolume("cut short, fewer voxels than its header declares: copy it again")
            yield np.frombuffer(raw, self.dtype).reshape(self.shape[:3], order="F")
        with _told():
            self.stream.read(1)  # a gzip stream compares its checksum where it ends


def apply_shifts(documents: Sequence[Path], image: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Move the slices of an image as the shifts of its label map say, and write `<image>_realigned` into `out`.

    A slice is scanned in one breath-hold, so its move is the median over the documents (frames of a cine) that list
    it, in every frame of the image.

    Args:
        documents: JSON files from `--save shifts`, all of one study.
        image: `.nii` or `.nii.gz`, 3-D or 4-D, on the grid of the label map.
        out: folder, made if it is not there.
        overwrite: replace a file of that name.

    Returns:
        The file written.

    Raises:
        UsageProblem: documents or image do not belong together, or the file exists.
        CaseError: the image cannot be read.
        OutputError: it cannot be written.
    """
    shifts = [read_shifts(document) for document in documents]
    _check_one_study(shifts, documents)
    stem, suffix = split_suffix(image.name)
    target = out / f"{stem}_realigned{suffix}"
    if not overwrite and target.exists():
        raise UsageProblem(f"{target}: is already there; add --overwrite, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out}: not usable as a folder ({error.strerror})") from error
    try:
        with _told():
            file = open_regular(image, _LIMITS)
        with file:
            with _told():
                is_source = digest([file]) == shifts[0].source_sha256
            file.seek(0)
            opened = _opened(file)
            _check_grid(opened, shifts[0])
            pieces = _realigned(opened, shifts, labels=is_source or int(opened.header["intent_code"]) == _LABELS)
            atomic.write_bytes(target, _packed(pieces) if suffix.lower().endswith(".gz") else pieces)
    except CaseError as error:
        raise type(error)(f"{image.name}: {error}") from None
    return target


def common_moves(shifts: Sequence[SliceShifts]) -> Vectors:
    """(S, 3) mm for every slice: the median over the documents that list it, 0 where none does."""
    table = np.stack([one.moves for one in shifts])
    listed = np.isfinite(table[..., 0]).any(axis=0)
    moves = np.zeros(table.shape[1:])
    moves[listed] = np.nanmedian(table[:, listed], axis=0)
    return moves


def realign(frame: Values, moves: Vectors, axis: int, *, labels: bool = False) -> Values:
    """Move each slice within its plane, by linear interpolation.

    Args:
        frame: (X, Y, Z) of any real type.
        moves: (S, 2) pixels along the two other axes, in their order.
        axis: along which slices are stacked.
        labels: take the nearest value instead.

    Returns:
        (X, Y, Z) of the same type; 0 where a slice shows nothing of the place.
    """
    moved = np.empty_like(frame)
    stack, into = np.moveaxis(frame, axis, 0), np.moveaxis(moved, axis, 0)
    for plane, target, move in zip(stack, into, moves, strict=True):
        if move.any():
            values = np.asarray(ndimage.shift(plane.astype(np.float64), move, order=0 if labels else 1))
            target[:] = np.rint(values) if frame.dtype.kind in "ui" else values
        else:
            target[:] = plane
    return moved


def _realigned(image: _Image, shifts: Sequence[SliceShifts], *, labels: bool) -> Iterator[bytes]:
    affine, axis = np.array(shifts[0].affine), shifts[0].slice_axis
    pixels = np.delete(common_moves(shifts) @ np.linalg.inv(affine[:3, :3]).T, axis, axis=1)
    yield image.start
    for frame in image.frames():
        yield realign(frame, pixels, axis, labels=labels).tobytes(order="F")


def _packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Gzip without name and time, so that the same input gives the same bytes."""
    packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _opened(file: BufferedReader) -> _Image:
    with _told():
        stream = GzipStream(file) if file.peek(2).startswith(MAGIC) else file
        header, single = read_header(stream)
        if not single:
            raise UnreadableVolume("half of a .hdr/.img pair: convert both to one .nii.gz")
        start = header.binaryblock + stream.read(skip_of(header, single=True))
    return _Image(stream, start, header, shape_of(header, _LIMITS), _type(header))


def _type(header: Nifti1Header) -> np.dtype[Any]:
    try:
        dtype = header.get_data_dtype()
    except (KeyError, HeaderDataError):
        raise BadHeader(f"unknown data type {int(header['datatype'])}: write the file anew") from None
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise BadHeader(f"voxels of type {dtype} cannot be interpolated: convert them to plain numbers")
    return dtype


@contextmanager
def _told() -> Generator[None]:
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise UnreadableVolume(f"damaged or cut short ({error}): copy it again") from None
    except OSError as error:
        raise UnreadableVolume(f"cannot be read ({error.strerror or error}): copy it again") from None


def _check_one_study(shifts: Sequence[SliceShifts], documents: Sequence[Path]) -> None:
    studies = [(one.source_sha256, one.shape, one.affine, one.slice_axis) for one in shifts]
    for study, path in zip(studies, documents, strict=True):
        if study != studies[0]:
            raise UsageProblem(f"{documents[0]} and {path}: from two label maps; give the shifts of one study")


def _check_grid(image: _Image, shifts: SliceShifts) -> None:
    """A pixel of one must be the same pixel of the other."""
    affine, _ = read_affine(image.header)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * [*shifts.shape, 1]
    apart = float(np.linalg.norm(corners @ (affine - np.array(shifts.affine)).T, axis=1).max())
    if image.shape[:3] != shifts.shape:
        found, wanted = (" x ".join(map(str, shape)) for shape in (image.shape[:3], shifts.shape))
        raise BadHeader(f"has {found} voxels and the label map {wanted}: give the image that was segmented")
    if apart > AGREE_WITHIN_MM:
        raise BadHeader(f"lies up to {apart:.1f} mm off the label map: give the image that was segmented")
