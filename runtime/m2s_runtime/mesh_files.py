"""Mesh file writers: PLY, STL, VTP, OBJ and GLB, each saying in which world axes its points are.

Slicer reads the tag `SPACE=LPS` or `SPACE=RAS` (PLY and OBJ comment, STL header, VTP field data) and opens the file in
place. Winding stays right in both spaces, since RAS to LPS is a half turn about the S axis, not a mirror. PLY and VTP
also carry the wall thickness at each vertex, and the spread of the posterior samples where there is one; the others
have no place for them.
"""

import base64
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from m2s_runtime.errors import UsageProblem
from m2s_runtime.options import FORMATS, Space

if TYPE_CHECKING:
    from m2s_runtime.surface import Mesh

Vertices = npt.NDArray[np.float64]
Faces = npt.NDArray[np.int32]
PerVertex = npt.NDArray[np.float32] | None
Values = Mapping[str, npt.NDArray[np.float32]]

_TITLE: Final = "mask2surface, left-ventricular wall, mm"


def encode(
    mesh: "Mesh", format: str, space: Space = "lps", spread: PerVertex = None, thickness: PerVertex = None
) -> bytes:
    """The bytes of a mesh file.

    Args:
        mesh: vertices (V, 3) in RAS world mm, outward winding.
        format: one of `FORMATS`.
        space: axes of the points in the file; GLB has axes of its own (metres, Y up) and ignores it.
        spread: (V,) float32 mm, written to PLY and VTP as `spread_mm`.
        thickness: (V,) float32 mm, written there as `thickness_mm`; NaN where it was not measured.

    Raises:
        UsageProblem: no such format.
    """
    writer = _WRITERS.get(format)
    if writer is None:
        raise UsageProblem(f"--format {format}: choose from {', '.join(FORMATS)}")
    values = {name: found for name, found in (("spread_mm", spread), ("thickness_mm", thickness)) if found is not None}
    return writer(to_space(mesh.vertices, space), mesh.faces, space.upper(), values)


def to_space(vertices: Vertices, space: Space) -> Vertices:
    """RAS mm to the file's axes, (V, 3) to (V, 3)."""
    return vertices * (-1.0, -1.0, 1.0) if space == "lps" else vertices


def _ply(vertices: Vertices, faces: Faces, space: str, values: Values) -> bytes:
    more = "".join(f"property float {name}\n" for name in values)
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"comment {_TITLE}\ncomment SPACE={space}\n"
        f"element vertex {len(vertices)}\nproperty float x\nproperty float y\nproperty float z\n{more}"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    points = np.column_stack([vertices, *values.values()]) if values else vertices
    table = np.empty(len(faces), np.dtype([("count", "u1"), ("index", "<i4", (3,))]))
    table["count"] = 3
    table["index"] = faces
    return header.encode() + points.astype("<f4").tobytes() + table.tobytes()


def _stl(vertices: Vertices, faces: Faces, space: str, _: Values) -> bytes:
    # Readers take a file that begins with "solid" for the text flavour.
    header = f"{_TITLE}. SPACE={space}".encode().ljust(80)
    table = np.zeros(len(faces), np.dtype([("normal", "<f4", (3,)), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]))
    corners = vertices[faces]
    table["corners"] = corners
    table["normal"] = _normals(corners)
    return header + np.uint32(len(faces)).astype("<u4").tobytes() + table.tobytes()


def _normals(corners: Vertices) -> Vertices:
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(length > 0, length, 1)


def _obj(vertices: Vertices, faces: Faces, space: str, _: Values) -> bytes:
    points = "".join(f"v {x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in vertices.tolist())
    triangles = "".join(f"f {a} {b} {c}\n" for a, b, c in (faces + 1).tolist())
    return f"# {_TITLE}\n# SPACE={space}\n{points}{triangles}".encode()


def _vtp(vertices: Vertices, faces: Faces, space: str, values: Values) -> bytes:
    """VTK XML PolyData, inline base64; each block is preceded by its length in bytes as one UInt64."""
    letters = " ".join(str(code) for code in (*space.encode(), 0))
    data = "".join(_vtk_array(name, "Float32", found.astype("<f4")) for name, found in values.items())
    point_data = f'<PointData Scalars="{next(iter(values))}">{data}</PointData>\n' if values else ""
    ends = np.arange(3, 3 * len(faces) + 1, 3)
    return f"""<?xml version="1.0"?>
<!-- {_TITLE} -->
<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">
<PolyData>
<FieldData><DataArray type="String" Name="SPACE" NumberOfTuples="1" format="ascii">{letters}</DataArray></FieldData>
<Piece NumberOfPoints="{len(vertices)}" NumberOfPolys="{len(faces)}">
{point_data}<Points>{_vtk_array("Points", "Float32", vertices.astype("<f4"), components=3)}</Points>
<Polys>
{_vtk_array("connectivity", "Int32", faces.astype("<i4"))}
{_vtk_array("offsets", "Int32", ends.astype("<i4"))}
</Polys>
</Piece>
</PolyData>
</VTKFile>
""".encode()


def _vtk_array(name: str, kind: str, values: npt.NDArray[Any], components: int = 1) -> str:
    data = values.tobytes()
    block = base64.b64encode(np.uint64(len(data)).astype("<u8").tobytes() + data).decode()
    return (
        f'<DataArray type="{kind}" Name="{name}" NumberOfComponents="{components}" format="binary">{block}</DataArray>'
    )


def _glb(vertices: Vertices, faces: Faces, space: str, _: Values) -> bytes:
    """For viewing only: glTF is in metres with Y up, its front towards +Z and its right-hand side towards -X."""
    import trimesh

    left, superior, anterior = (-1 if space == "RAS" else 1), 1, (1 if space == "RAS" else -1)
    points = vertices[:, [0, 2, 1]] * (left, superior, anterior) / 1000.0
    note = "viewing only: metres, +X left, +Y superior, +Z anterior"
    data = trimesh.Trimesh(points, faces, process=False, metadata={"note": note}).export(file_type="glb")
    if not isinstance(data, bytes):
        raise TypeError(f"trimesh returned {type(data).__name__} for a GLB file, not bytes")
    return data


_WRITERS: Final[dict[str, Callable[[Vertices, Faces, str, Values], bytes]]] = {
    "ply": _ply,
    "stl": _stl,
    "vtp": _vtp,
    "obj": _obj,
    "glb": _glb,
}
