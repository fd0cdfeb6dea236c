"""Each format is read back by another implementation and must lie where the mesh lies, wound the right way round."""

import base64
import io
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh

from m2s_runtime.errors import UsageProblem
from m2s_runtime.mesh_files import encode
from m2s_runtime.options import FORMATS

CENTRE = np.array([30.0, -50.0, 120.0])
LPS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def mesh():
    ball = trimesh.creation.icosphere(subdivisions=2, radius=20.0)
    # Unequal half axes, so that any swap of axes shows.
    return SimpleNamespace(vertices=ball.vertices * (1.0, 1.5, 2.0) + CENTRE, faces=ball.faces.astype(np.int32))


def read_vtp(data):
    """Minimal VTK XML reader of the inline base64 flavour."""
    root = ET.fromstring(data)  # noqa: S314 - our own bytes
    arrays = {element.get("Name"): element for element in root.iter("DataArray")}

    def values(name, kind):
        raw = base64.b64decode(arrays[name].text)
        assert np.frombuffer(raw[:8], "<u8")[0] == len(raw) - 8
        return np.frombuffer(raw[8:], kind)

    points = values("Points", "<f4").reshape(-1, 3)
    faces = values("connectivity", "<i4").reshape(-1, 3)
    np.testing.assert_array_equal(values("offsets", "<i4"), np.arange(1, len(faces) + 1) * 3)
    space = bytes(int(code) for code in arrays["SPACE"].text.split()).rstrip(b"\0").decode()
    return trimesh.Trimesh(points, faces, process=False), space


def read(data, kind):
    if kind == "vtp":
        return read_vtp(data)[0]
    loaded = trimesh.load(io.BytesIO(data), file_type=kind, process=False)
    return loaded.to_geometry() if isinstance(loaded, trimesh.Scene) else loaded


@pytest.mark.parametrize("space", ["lps", "ras"])
@pytest.mark.parametrize("kind", ["ply", "stl", "vtp", "obj"])
def test_round_trip_in_both_spaces(mesh, kind, space):
    back = read(encode(mesh, kind, space), kind)
    sign = LPS if space == "lps" else 1.0
    corners = (mesh.vertices * sign)[mesh.faces]
    np.testing.assert_allclose(back.triangles, corners, atol=1e-4)
    assert back.volume == pytest.approx(trimesh.Trimesh(mesh.vertices, mesh.faces).volume, rel=1e-4)
    assert back.volume > 0


@pytest.mark.parametrize("kind", FORMATS)
def test_the_spread_goes_with_its_vertices_where_the_format_has_a_place(mesh, kind):
    spread = np.linspace(0.1, 2.0, len(mesh.vertices), dtype=np.float32)
    data, plain = (encode(mesh, kind, "lps", numbers) for numbers in (spread, None))
    if kind == "ply":
        assert b"property float z\nproperty float spread_mm\n" in data
        table = read(data, kind).metadata["_ply_raw"]["vertex"]["data"]
        np.testing.assert_allclose(np.column_stack([table[a] for a in "xyz"]), mesh.vertices * LPS, atol=1e-4)
        np.testing.assert_array_equal(table["spread_mm"], spread)
    elif kind == "vtp":
        array = ET.fromstring(data).find(".//Piece/PointData[@Scalars='spread_mm']/DataArray")  # noqa: S314
        assert array.get("Name") == "spread_mm"
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(array.text)[8:], "<f4"), spread)
    else:
        assert data == plain
    np.testing.assert_allclose(read(data, kind).triangles, read(plain, kind).triangles)


def test_thickness_lies_beside_the_spread(mesh):
    spread = np.linspace(0.1, 2.0, len(mesh.vertices), dtype=np.float32)
    thickness = spread + 5
    thickness[0] = np.nan
    table = read(encode(mesh, "ply", "ras", spread, thickness), "ply").metadata["_ply_raw"]["vertex"]["data"]
    np.testing.assert_array_equal(table["spread_mm"], spread)
    np.testing.assert_array_equal(table["thickness_mm"], thickness)
    root = ET.fromstring(encode(mesh, "vtp", "ras", None, thickness))  # noqa: S314
    (array,) = root.iterfind(".//Piece/PointData[@Scalars='thickness_mm']/DataArray")
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(array.text)[8:], "<f4"), thickness)


@pytest.mark.parametrize("space", ["lps", "ras"])
def test_the_space_tag_is_where_slicer_looks(mesh, space):
    tag = f"SPACE={space.upper()}".encode()
    assert tag in encode(mesh, "ply", space).split(b"end_header")[0].split(b"comment", 1)[1]
    stl = encode(mesh, "stl", space)
    assert tag in stl[:80]
    assert not stl.startswith(b"solid")
    assert any(line.startswith(b"#") and tag in line for line in encode(mesh, "obj", space).splitlines()[:3])
    assert read_vtp(encode(mesh, "vtp", space))[1] == space.upper()


@pytest.mark.parametrize("space", ["lps", "ras"])
def test_glb_is_metres_left_superior_anterior(mesh, space):
    data = encode(mesh, "glb", space)
    back = read(data, "glb")
    right, anterior, superior = CENTRE / 1000
    np.testing.assert_allclose(back.bounds.mean(axis=0), (-right, superior, anterior), atol=1e-6)
    np.testing.assert_allclose(np.ptp(back.bounds, axis=0), (0.04, 0.08, 0.06), rtol=0.02)
    assert back.volume > 0
    assert b"viewing only" in data


def test_stl_normals_point_outward(mesh):
    data = encode(mesh, "stl", "ras")
    table = np.frombuffer(data[84:], np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")]))
    outward = table["corners"].mean(axis=1) - CENTRE
    assert ((outward * table["normal"]).sum(axis=1) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(table["normal"], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", FORMATS)
def test_same_mesh_same_bytes(mesh, kind):
    assert encode(mesh, kind) == encode(mesh, kind)


def test_unknown_format(mesh):
    with pytest.raises(UsageProblem, match=r"ply, stl, vtp"):
        encode(mesh, "fbx")


def slicers_tag(kind, reader):
    """Where 3D Slicer's vtkMRMLModelStorageNode looks: PLY comments, STL header, OBJ comment, VTP field data."""
    if kind == "ply":
        comments = reader.GetComments()
        return " ".join(comments.GetValue(k) for k in range(comments.GetNumberOfValues()))
    if kind == "vtp":
        return "SPACE=" + reader.GetOutput().GetFieldData().GetAbstractArray("SPACE").GetValue(0)
    return reader.GetHeader() if kind == "stl" else reader.GetComment()


@pytest.mark.parametrize("space", ["lps", "ras"])
@pytest.mark.parametrize(
    ("kind", "reader"),
    [("ply", "vtkPLYReader"), ("stl", "vtkSTLReader"), ("obj", "vtkOBJReader"), ("vtp", "vtkXMLPolyDataReader")],
)
def test_the_readers_of_slicer_and_paraview(mesh, tmp_path, kind, reader, space):
    vtk = pytest.importorskip("vtk", reason="pip install vtk to read the files as 3D Slicer and ParaView do")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encode(mesh, kind, space))
    opened = getattr(vtk, reader)()
    opened.SetFileName(str(path))
    opened.Update()
    assert f"SPACE={space.upper()}" in slicers_tag(kind, opened)
    output = opened.GetOutput()
    assert output.GetNumberOfPolys() == len(mesh.faces)
    points = mesh.vertices * (LPS if space == "lps" else 1.0)
    low, high = np.reshape(output.GetBounds(), (3, 2)).T
    np.testing.assert_allclose([low, high], [points.min(axis=0), points.max(axis=0)], atol=1e-3)
