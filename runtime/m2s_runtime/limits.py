"""How large an input may be; judged from its header, before anything is decompressed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What is refused when it is larger; each can be raised with an option of `m2s-run`.

    Attributes:
        voxels: over all frames (`--max-voxels`); 50 frames of 256 x 256 x 20 fit. One byte of memory each.
        axis: voxels along x, y or z (`--max-axis`).
        frames: of a cine (`--max-frames`).
        file_mib: MiB on disk, compressed or not (`--max-file-mib`); twice what the voxels may take as float64.
    """

    voxels: int = 64 * 2**20
    axis: int = 1024
    frames: int = 100
    file_mib: int = 1024
