"""The hearts that are measured: files of the user's, or procedural ones written out as files."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m2s_runtime.inputs import Found, discover


def find_hearts(inputs: Sequence[str], out: Path, limit: int | None) -> Found:
    """The NIfTI files under `inputs`, at most `limit` of them, spread evenly.

    Raises:
        NoInputs: not one file.
        UsageProblem: two files would get the same case id.
    """
    found = discover(inputs, out)
    if limit is None or limit >= len(found.sources):
        return found
    chosen = np.linspace(0, len(found.sources) - 1, limit).round().astype(int)
    return Found([found.sources[k] for k in chosen], found.problems)


def write_phantoms(folder: Path, count: int) -> None:
    """Write stacks of procedural hearts, their slices moved as in the paper's simulation, as gzipped NIfTI files."""
    import nibabel as nib

    from m2s.data.phantom import phantom
    from m2s.data.simulate import PAPER, draw_rng, simulate_stack

    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        heart = phantom(seed)
        stack = simulate_stack(heart.mask, draw_rng(heart.id, 0, 0), PAPER)
        image = nib.Nifti1Image(stack.slices.astype(np.uint8), np.diag([1.0, 1.0, 10.0, 1.0]))
        (folder / f"phantom{seed:03d}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))
