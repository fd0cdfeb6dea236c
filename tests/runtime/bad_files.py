"""Makes the corpus of broken, hostile and odd label maps: NIfTI-1 and -2, single files and pairs, gzip streams.

Nothing binary is kept. `CORPUS` holds what must be refused, each with the error and a part of its message; `Plan` is
one point of the fuzzed space, which the tests draw with hypothesis and `benchmarks/fuzz_reader.py` at random.
"""

import gzip
import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from m2s_runtime.errors import BadAffine, BadHeader, BadLabels, CaseError, UnreadableVolume

AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])
LABELS = np.random.default_rng(2).integers(0, 4, (12, 11, 6)).astype(np.uint8)
MIB = 2**20


def heart(size: int = 24, slices: int = 6) -> np.ndarray:
    """(size, size, slices) uint8: a cavity (3) in its wall (2), tapering to an apex of wall alone."""
    x, y = np.mgrid[:size, :size] - (size - 1) / 2
    labels = np.zeros((size, size, slices), np.uint8)
    for s in range(slices):
        outer = size / 2 - 1 - s
        labels[:, :, s][np.hypot(x, y) < outer] = 2
        labels[:, :, s][np.hypot(x, y) < outer - 4] = 3
    labels[:, :, -1][labels[:, :, -1] == 3] = 2
    return labels


HEART = heart()
KINDS = {1: nib.Nifti1Image, 2: nib.Nifti2Image}


def raw(labels: np.ndarray = LABELS, affine: np.ndarray = AFFINE, *, version: int = 1, order: str = "<") -> bytearray:
    """A good single-file volume."""
    header = KINDS[version].header_class(endianness=order)
    header.set_data_dtype(labels.dtype)
    return bytearray(KINDS[version](labels, affine, header).to_bytes())


def patched(changes: dict[str, Any], data: bytes | None = None, *, version: int = 1, order: str = "<") -> bytearray:
    """A volume with header fields set to anything: `{"dim": {1: -3}, "scl_slope": 0.5}`, by element or as a whole."""
    content = bytearray(data) if data is not None else raw(version=version, order=order)
    dtype = KINDS[version].header_class.template_dtype.newbyteorder(order)
    fields = np.frombuffer(content, dtype, count=1)
    for name, value in changes.items():
        if isinstance(value, dict):
            for at, element in value.items():
                fields[name][0, at] = element
        else:
            fields[name] = value
    return content


def halves(data: bytes, *, version: int = 1) -> tuple[bytes, bytes]:
    """A single-file volume as header and voxels of a pair."""
    size = KINDS[version].header_class.template_dtype.itemsize
    start = size + 4
    header = patched({"magic": b"ni1" if version == 1 else b"ni2\0\r\n\x1a\n", "vox_offset": 0}, data, version=version)
    return bytes(header[:size]), bytes(data[start:])


def bomb(start: bytes, mib: int, fill: int = 0) -> bytes:
    """A gzip file of `start` and then `mib` MiB of one byte: the same piece of deflate over and over."""
    pack = zlib.compressobj(9, wbits=-15)
    head = pack.compress(start) + pack.flush(zlib.Z_FULL_FLUSH)
    block = bytes([fill]) * MIB
    piece = pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.crc32(start)
    for _ in range(mib):
        checksum = zlib.crc32(block, checksum)
    size = (len(start) + mib * MIB) % 2**32
    return _GZIP + head + piece * mib + pack.flush() + struct.pack("<II", checksum, size)


_GZIP = b"\x1f\x8b\x08\0\0\0\0\0\2\xff"
_EMPTY_MEMBER = gzip.compress(b"", mtime=0)


def endless_name(mib: int) -> bytes:
    """A gzip file whose stored file name does not end."""
    return b"\x1f\x8b\x08\x08\0\0\0\0\2\xff" + b"n" * (mib * MIB)


def in_members(data: bytes, size: int) -> bytes:
    """A gzip file in members of `size` bytes each, as bgzip and `cat a.gz b.gz` make them."""
    return b"".join(gzip.compress(data[k : k + size], 1, mtime=0) for k in range(0, len(data), size))


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 0.1
    return affine


def altered_stored_gzip() -> bytes:
    """Uncompressed blocks with one voxel changed: only the checksum at the end can tell."""
    data = bytearray(gzip.compress(bytes(raw()), 0))
    data[-30] ^= 1
    return bytes(data)


def two_halves(header: bytes, voxels: bytes | None, suffixes: tuple[str, str] = (".hdr", ".img")) -> dict[str, bytes]:
    return {suffixes[0]: header} | ({} if voxels is None else {suffixes[1]: voxels})


Files = bytes | bytearray | dict[str, bytes]
"""The content of one file, or of several by suffix; the first is the one that is read."""


@dataclass(frozen=True)
class Bad:
    """Something that must be refused with `error`, `told` being part of the message."""

    files: Files
    error: type[CaseError]
    told: str

    def write(self, folder: Path) -> Path:
        """Put it into a folder as `case7…` and return what to read."""
        return write(folder, self.files)


def write(folder: Path, files: Files, stem: str = "case7") -> Path:
    """Put files into a folder and return the first."""
    files = files if isinstance(files, dict) else {".nii.gz": bytes(files)}
    for suffix, content in files.items():
        (folder / f"{stem}{suffix}").write_bytes(content)
    return folder / f"{stem}{next(iter(files))}"


def _no_codes(changes: dict[str, Any]) -> bytearray:
    return patched({"sform_code": 0, "qform_code": 0, **changes})


_HEADER, _VOXELS = halves(raw())
_BIG = patched({"dim": {1: 30000, 2: 30000, 3: 30000}}, version=2, order=">")

CORPUS: dict[str, Bad] = {
    "empty file": Bad(b"", UnreadableVolume, "empty, not a NIfTI"),
    "text": Bad(b"label,volume\n" * 60, UnreadableVolume, "not a NIfTI"),
    "header only": Bad(raw()[:300], UnreadableVolume, "not a NIfTI"),
    "header only, version 2": Bad(raw(version=2)[:500], UnreadableVolume, "not a NIfTI"),
    "truncated": Bad(raw()[:-100], UnreadableVolume, "cut short"),
    "truncated gzip": Bad(gzip.compress(raw())[:-200], UnreadableVolume, "cut short"),
    "gzip of nothing": Bad(gzip.compress(b""), UnreadableVolume, "not a NIfTI"),
    "gzip within gzip": Bad(gzip.compress(gzip.compress(raw())), UnreadableVolume, "not a NIfTI"),
    "gzip magic and junk": Bad(b"\x1f\x8b" + b"\x07" * 90, UnreadableVolume, "copy it again"),
    "gzip magic alone": Bad(b"\x1f\x8b", UnreadableVolume, "cut short"),
    "corrupt gzip": Bad(gzip.compress(raw())[:-120] + b"\xff" * 120, UnreadableVolume, "copy it again"),
    "altered gzip": Bad(altered_stored_gzip(), UnreadableVolume, "copy it again"),
    "gzip without its end": Bad(gzip.compress(raw())[:-5], UnreadableVolume, "cut short"),
    "gzip with junk behind": Bad(gzip.compress(raw()) + b"junk", UnreadableVolume, "copy it again"),
    "gzip with an endless name": Bad(endless_name(4), UnreadableVolume, "cut short"),
    "gzip of empty members": Bad(_EMPTY_MEMBER * 20000, UnreadableVolume, "tiny pieces"),
    "gzip in single bytes": Bad(in_members(bytes(raw()), 1), UnreadableVolume, "tiny pieces"),
    "analyze": Bad(patched({"magic": b""}), UnreadableVolume, "Analyze"),
    "header of a pair under another name": Bad(_HEADER, UnreadableVolume, "side by side"),
    "pair without voxels": Bad(two_halves(_HEADER, None), UnreadableVolume, "side by side"),
    "pair without header": Bad({".img": _VOXELS}, UnreadableVolume, ".hdr beside it"),
    "pair with voxels cut short": Bad(two_halves(_HEADER, _VOXELS[:-9]), UnreadableVolume, "case7.img: cut short"),
    "pair with voxels damaged": Bad(
        two_halves(_HEADER, gzip.compress(_VOXELS)[:-8], (".hdr", ".img.gz")), UnreadableVolume, "cut short"
    ),
    "pair with an Analyze header": Bad(two_halves(bytes(348), _VOXELS), UnreadableVolume, "not a NIfTI"),
    "pair that starts far away": Bad(
        two_halves(bytes(patched({"vox_offset": 3e9}, _HEADER)), _VOXELS), BadHeader, "byte 3e"
    ),
    "two axes": Bad(patched({"dim": {0: 2}}), BadHeader, "2 dimensions"),
    "nine axes": Bad(patched({"dim": {0: 9}}), BadHeader, "9 dimensions"),
    "negative size": Bad(patched({"dim": {1: -12}}), BadHeader, "-12 x 11 x 6"),
    "zero size": Bad(patched({"dim": {2: 0}}), BadHeader, "12 x 0 x 6"),
    "giant": Bad(patched({"dim": {1: 30000, 2: 30000, 3: 30000}}), BadHeader, "--max-axis 30000 --max-voxels 27000"),
    "giant, version 2, big-endian": Bad(_BIG, BadHeader, "--max-axis 30000"),
    "as large as int64": Bad(patched({"dim": {1: 2**63 - 1, 2: 2**63 - 1}}, version=2), BadHeader, "--max-voxels"),
    "most negative": Bad(patched({"dim": {1: -(2**63)}}, version=2), BadHeader, "impossible size"),
    "many voxels": Bad(patched({"dim": {1: 1000, 2: 1000, 3: 1000}}), BadHeader, "add --max-voxels 1000000000"),
    "many frames": Bad(patched({"dim": [4, 4, 4, 4, 200, 1, 1, 1]}), BadHeader, "add --max-frames 200"),
    "five axes": Bad(patched({"dim": [5, 4, 4, 4, 1, 3, 1, 1]}), BadHeader, "more than four axes"),
    "offset before header": Bad(patched({"vox_offset": 12}), BadHeader, "byte 12"),
    "offset far away": Bad(patched({"vox_offset": 3e9}), BadHeader, "byte 3e"),
    "offset NaN": Bad(patched({"vox_offset": np.nan}), BadHeader, "byte nan"),
    "unknown type": Bad(patched({"datatype": 77}), BadHeader, "as uint8"),
    "complex": Bad(patched({"datatype": 32}), BadLabels, "no labels"),
    "rgb": Bad(patched({"datatype": 128}), BadLabels, "no labels"),
    "long double": Bad(patched({"datatype": 1536}), BadLabels, "no labels"),
    "slope with NaN intercept": Bad(patched({"scl_slope": 1, "scl_inter": np.nan}), BadHeader, "uint8"),
    "half slope": Bad(patched({"scl_slope": 0.55, "scl_inter": 0}), BadLabels, "whole numbers"),
    "slope beyond measure": Bad(patched({"scl_slope": 3e38, "scl_inter": 0}), BadLabels, "is this an image"),
    "negative labels": Bad(raw(LABELS.astype(np.int16) - 2), BadLabels, "from -2"),
    "huge labels": Bad(raw(LABELS.astype(np.int32) * 90000), BadLabels, "is this an image"),
    "fractions": Bad(raw(LABELS.astype(np.float32) * 0.7), BadLabels, "nearest neighbour"),
    "NaN voxel": Bad(raw(np.where(LABELS == 1, np.nan, 0).astype(np.float32)), BadLabels, "NaN or infinity"),
    "infinite voxel": Bad(raw(np.where(LABELS == 1, np.inf, 0).astype(np.float32)), BadLabels, "NaN or infinity"),
    "NaN sform": Bad(patched({"srow_x": {0: np.nan}}), BadAffine, "NaN"),
    "infinite sform": Bad(patched({"srow_y": {3: np.inf}}), BadAffine, "infinity"),
    "NaN pixdim": Bad(_no_codes({"pixdim": np.nan}), BadAffine, "NaN"),
    "NaN qform alone": Bad(_no_codes({"qform_code": 1, "quatern_b": np.nan}), BadAffine, "write the orientation anew"),
    "quaternion too long": Bad(_no_codes({"qform_code": 1, "quatern_b": 4.0}), BadAffine, "qform unusable"),
    "zero spacing": Bad(patched({"srow_x": 0}), BadAffine, "0 x 1.5 x 8 mm"),
    "giant spacing": Bad(raw(affine=np.diag([1.5, 1.5, 80.0, 1.0])), BadAffine, "80 mm"),
    "far from the scanner": Bad(patched({"srow_x": {3: 1e30}}), BadAffine, "1e+30 mm from the origin"),
    "sheared": Bad(raw(affine=sheared()), BadAffine, "sheared"),
    "flat": Bad(
        patched({"srow_x": [1.5, 1.5, 0, 0], "srow_y": [0, 0, 0, 0]}), BadAffine, "sheared"
    ),
}  # fmt: skip


def not_files(folder: Path) -> dict[str, Path]:
    """Things that bear the name of a volume and are no regular files, as far as this system can make them."""
    made = {name: folder / f"{name}.nii" for name in ("directory", "dangling", "circle", "pipe", "socket", "device")}
    made["directory"].mkdir()
    makers: dict[str, Callable[[], object]] = {
        "dangling": lambda: made["dangling"].symlink_to(folder / "nowhere"),
        "circle": lambda: made["circle"].symlink_to(made["circle"]),
        "pipe": lambda: os.mkfifo(made["pipe"]),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(made["socket"])),
        "device": lambda: made["device"].symlink_to("/dev/zero"),
    }
    for name, make in makers.items():
        try:
            make()
        except (OSError, AttributeError, NotImplementedError):
            del made[name]
    return made


@dataclass(frozen=True)
class Plan:
    """A good volume and what is done to it.

    Attributes:
        version: 1 or 2.
        big: big-endian header and voxels.
        pair: header and voxels in two files.
        packing: `plain`, `gzip`, `stored` (blocks without compression) or `members` (several, of 100 bytes).
        dtype: of the voxels.
        frames: of the cine; 0 is a volume of three axes.
        fields: (field, element, value) set in the header; what does not fit the field's type wraps.
        header: (where, byte) put into the header, `where` from 0 to 1.
        stream: (where, mask) applied to the finished files by exclusive or.
        keep: the share of the last file that is kept.
        bomb: MiB of zeros (of ones, if odd) that follow the header, which says so, in place of voxels; 0 for none.
            Then always gzip.
    """

    version: int = 1
    big: bool = False
    pair: bool = False
    packing: str = "plain"
    dtype: str = "u1"
    frames: int = 0
    fields: tuple[tuple[str, int, float], ...] = ()
    header: tuple[tuple[float, int], ...] = ()
    stream: tuple[tuple[float, int], ...] = ()
    keep: float = 1.0
    bomb: int = 0

    def files(self) -> dict[str, bytes]:
        """The files that come of it, by suffix, the one to read first."""
        order = ">" if self.big else "<"
        labels = np.repeat(HEART[..., None], self.frames, 3) if self.frames else HEART
        data = raw(labels.astype(self.dtype), version=self.version, order=order)
        size = KINDS[self.version].header_class.template_dtype.itemsize
        if self.pair:
            data = patched({"magic": b"ni1" if self.version == 1 else b"ni2\0\r\n\x1a\n", "vox_offset": 0}, data,
                           version=self.version, order=order)  # fmt: skip
        self._spoil(data, order, size)
        parts = {".hdr": bytes(data[:size]), ".img": bytes(data[size + 4 :])} if self.pair else {".nii": bytes(data)}
        return self._damaged({name: self._packed(part, size) for name, part in parts.items()})

    def _spoil(self, data: bytearray, order: str, size: int) -> None:
        fields = np.frombuffer(data, KINDS[self.version].header_class.template_dtype.newbyteorder(order), count=1)
        if self.bomb:
            fields["dim"][0, :5] = 3, 256, 256, 16 * self.bomb // np.dtype(self.dtype).itemsize, 1
        for name, at, value in self.fields:
            field = fields[name].reshape(-1)
            with np.errstate(all="ignore"):
                field[at % len(field)] = np.array(value).astype(field.dtype)
        for where, byte in self.header:
            data[int(where * (size - 1))] = byte

    def _packed(self, part: bytes, size: int) -> bytes:
        if self.bomb:
            return bomb(part[: size + 4], self.bomb, fill=self.bomb % 2)
        if self.packing == "members":
            return in_members(part, 100)
        return part if self.packing == "plain" else gzip.compress(part, 1 if self.packing == "gzip" else 0)

    def _damaged(self, files: dict[str, bytes]) -> dict[str, bytes]:
        last = list(files)[-1]
        files[last] = files[last][: round(self.keep * len(files[last]))]
        for name, content in files.items():
            changed = bytearray(content)
            for where, mask in self.stream if changed else ():
                changed[int(where * (len(changed) - 1))] ^= mask
            files[name] = bytes(changed)
        return files


DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
FIELDS = ("dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "qform_code",
          "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z",
          "sizeof_hdr")  # fmt: skip
VALUES = (0.0, -0.0, 1.0, -1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 16.0, 32.0, 64.0, 128.0, 255.0, 256.0, 352.0, 512.0, 1024.0,
          1536.0, 32767.0, -32768.0, 2.0**31 - 1, 2.0**62, 0.5, 1e-3, 1e-38, 1e38, float("nan"), float("inf"),
          float("-inf"))  # fmt: skip


def random_plan(rng: np.random.Generator) -> Plan:
    """A plan drawn for benchmarks; about a third of them come out valid."""

    def some(most: int, draw: Callable[[], Any]) -> tuple[Any, ...]:
        return tuple(draw() for _ in range(int(rng.integers(0, most + 1)) * int(rng.random() < 0.5)))

    return Plan(
        version=int(rng.integers(1, 3)),
        big=bool(rng.random() < 0.3),
        pair=bool(rng.random() < 0.3),
        packing=str(rng.choice(["plain", "gzip", "stored", "members"])),
        dtype=str(rng.choice(DTYPES)),
        frames=int(rng.choice([0, 0, 1, 3])),
        fields=some(4, lambda: (str(rng.choice(FIELDS)), int(rng.integers(8)), float(rng.choice(VALUES)))),
        header=some(8, lambda: (float(rng.random()), int(rng.integers(256)))),
        stream=some(3, lambda: (float(rng.random()), int(rng.integers(1, 256)))),
        keep=1.0 if rng.random() < 0.8 else float(rng.random()),
        bomb=int(rng.integers(1, 65)) if rng.random() < 0.02 else 0,
    )
