"""The example notebook runs from first cell to last in a kernel as Jupyter starts one, and is kept without outputs."""

import shutil
from pathlib import Path

import pytest
import trimesh

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOK = EXAMPLES / "reconstruct.ipynb"


def test_it_runs(tmp_path, monkeypatch):
    for file in EXAMPLES.glob("*.nii.gz"):
        shutil.copy(file, tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    told = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if cell.outputs
    )
    assert "label 2 is the wall in scheme acdc" in told
    assert "closed: True" in told
    assert "ejection fraction" in told
    mesh = trimesh.load_mesh(tmp_path / "labelled.ply")
    assert f"True {mesh.volume / 1000:.1f} ml" in told


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
