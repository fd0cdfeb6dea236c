"""The files of a case, as bytes: meshes in the formats asked for, and the intermediate results worth keeping."""

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m2s_runtime import strict_json
from m2s_runtime.measurements import MEASUREMENTS
from m2s_runtime.mesh_files import encode
from m2s_runtime.options import Options
from m2s_runtime.overlay import overlay
from m2s_runtime.report.case_report import REPORT, case_report
from m2s_runtime.shifts_file import SHIFTS, Origin, SliceShifts, slice_shifts

if TYPE_CHECKING:
    from m2s_runtime.measurements import Measured
    from m2s_runtime.pipeline import Reconstruction
    from m2s_runtime.placement import Canonical


def case_files(
    case: str,
    result: "Reconstruction",
    canonical: "Canonical",
    options: Options,
    origin: Origin,
    measured: "Measured",
) -> dict[str, bytes]:
    """File name to content, the meshes first, in the order asked for."""
    files = {
        f"{case}.{name}": encode(result.mesh, name, options.space, result.spread, measured.wall_thickness)
        for name in options.formats
    }
    if "mask" in options.save:
        files[f"{case}_mask.nii.gz"] = nifti((result.sdg < 0).astype(np.uint8), result.affine)
    shifts = slice_shifts(result.shifts - result.common_shift, canonical, origin)
    if "overlay" in options.save:
        files[f"{case}_overlay.nii.gz"] = nifti(_overlay(result, shifts), origin.affine)
    if "sdg" in options.save:
        files[f"{case}_sdg.nii.gz"] = nifti(result.sdg.astype(np.float32), result.affine)
    if "shifts" in options.save:
        files[f"{case}{SHIFTS}"] = strict_json.dumps(shifts).encode()
    files[f"{case}{MEASUREMENTS}"] = strict_json.dumps(measured.document(origin)).encode()
    if options.report:
        files[f"{case}{REPORT}"] = case_report(canonical, result, measured)
    return files


def _overlay(result: "Reconstruction", shifts: SliceShifts) -> npt.NDArray[np.uint8]:
    if result.ended is None:
        return overlay(result.sdg, result.affine, shifts)
    return overlay(result.ended.whole, result.affine, shifts, result.ended.limit)


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
