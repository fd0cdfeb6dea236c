"""The files of a case, as bytes: meshes in the formats asked for, and the intermediate results worth keeping."""

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m2s_runtime.mesh_files import encode
from m2s_runtime.options import Options

if TYPE_CHECKING:
    from m2s_runtime.pipeline import Reconstruction
    from m2s_runtime.placement import Canonical


def case_files(case: str, result: "Reconstruction", canonical: "Canonical", options: Options) -> dict[str, bytes]:
    """File name to content, the meshes first, in the order asked for."""
    files = {f"{case}.{name}": encode(result.mesh, name, options.space, result.spread) for name in options.formats}
    if "mask" in options.save:
        files[f"{case}_mask.nii.gz"] = nifti((result.probability >= 0.5).astype(np.uint8), result.affine)
    if "sdg" in options.save:
        files[f"{case}_sdg.nii.gz"] = nifti(result.sdg.astype(np.float32), result.affine)
    if "shifts" in options.save:
        files[f"{case}_shifts.csv"] = shift_table(result.shifts, canonical)
    return files


def nifti(data: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> bytes:
    """A gzipped NIfTI-1 volume in millimetres, RAS; the same bytes for the same input.

    Args:
        data: (X, Y, Z), any type that NIfTI knows.
        affine: (4, 4) voxel index to world mm, put into sform and qform.
    """
    import nibabel as nib

    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def shift_table(shifts: npt.NDArray[np.floating[Any]], canonical: "Canonical") -> bytes:
    """CSV of the in-plane motion found, one line per canonical slice that was acquired.

    Columns: canonical slice (0 = base), slice of the source file, motion along x and y in mm; moving the slice by
    minus that much re-aligns it.
    """
    lines = ["slice,source_slice,x_mm,y_mm"]
    for index, source in enumerate(canonical.placement.slices):
        if source >= 0:
            lines.append(f"{index},{source},{shifts[index][0]:.4f},{shifts[index][1]:.4f}")
    return ("\n".join(lines) + "\n").encode()
