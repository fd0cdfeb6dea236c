"""The picture of one heart by all methods: distances are those of known geometry, the file is a picture."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from m2s.baselines.method import BoolArray, Prediction, Spacing, from_mask
from m2s.cli import evaluate
from m2s.data.clinical import write_pairs
from m2s.data.labelmaps import split
from m2s.data.phantom import phantom
from m2s.data.simulate import PAPER
from m2s.evaluate.figure import Panel, Row, row_of, slabs, write_row
from m2s.evaluate.scores import Truth
from m2s.shading import project
from m2s_runtime.errors import EmptyWall
from m2s_runtime.surface import Mesh

X, Y = np.mgrid[:128, :128] - 63.5
RING = (np.hypot(X, Y) <= 30) & (np.hypot(X, Y) > 20)


def tube() -> np.ndarray:
    """Eight slices of a tube, 10 mm apart."""
    slices = np.zeros((128, 128, 12), np.bool_)
    slices[:, :, 2:10] = RING[:, :, None]
    return slices


class Moved:
    """The tube itself, 3 mm off along x."""

    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:
        return from_mask(np.roll(np.repeat(mask, 5, axis=2), 3, axis=0), spacing[2], None)


class Refusing:
    def predict(self, mask: BoolArray, spacing: Spacing) -> Prediction:  # noqa: ARG002
        raise EmptyWall("no")


@pytest.fixture(scope="module")
def row() -> Row:
    found = from_mask(np.repeat(tube(), 5, axis=2), 10.0, None)
    truth = Truth.of(found.mask, found.surface)
    return row_of({"Moved": Moved(), "Refusing": Refusing()}, tube(), 10.0, truth, found.surface, "a note")


def test_distances_are_exact_and_the_rest_is_plain(row: Row) -> None:
    stack, moved, refused, truth = row.panels
    assert (stack.distance, truth.distance) == (None, None)
    assert moved.mesh is not None
    assert moved.distance is not None
    # A tube that moved by 3 mm is 3 mm off where its wall faces along x, and on the truth where it faces along y.
    middle = abs(moved.mesh.vertices[:, 2] - moved.mesh.vertices[:, 2].mean()) < 20
    x, y = (moved.mesh.vertices[:, :2] - (66.5, 63.5)).T
    facing_x, facing_y = middle & (abs(y) < 1) & (x > 0), middle & (abs(x) < 1)
    np.testing.assert_allclose(moved.distance[facing_x], 3.0, atol=1e-6)
    assert moved.distance[facing_y].max() < 0.6
    assert row.limit_mm == 3.0
    assert moved.figures[0].startswith("Dice ")
    assert refused.mesh is None
    assert refused.figures == ("refused: empty",)


def test_slices_are_drawn_apart() -> None:
    """Eight slabs of 6 mm, 10 mm apart: as many pieces."""
    mesh = slabs(tube(), 10.0)
    assert mesh.topology.components == 8
    assert np.ptp(mesh.vertices[:, 2]) == pytest.approx(7 * 10 + 6)


def test_the_base_is_seen_from_above() -> None:
    """Low z is up on paper; of two points at one height the one nearer to the viewer is lower on paper."""
    points = project(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 50.0], [10.0, 0.0, 0.0]]))
    assert points[0, 1] > points[1, 1]
    assert points[2, 2] > points[0, 2]
    assert points[2, 1] < points[0, 1]


def test_pictures_are_written(row: Row, tmp_path: Path) -> None:
    files = write_row(row, tmp_path / "new" / "row.png", dpi=60)
    assert [file.name for file in files] == ["row.png", "row.pdf"]
    with Image.open(files[0]) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 4 * 60
    # White paper, grey truth, and reddish where the tube is off.
    red = (pixels[:, :, 0] - pixels[:, :, 2]) > 60
    columns = np.flatnonzero(red.any(0)) / pixels.shape[1]
    assert ((columns > 0.2) & (columns < 0.5)).any()
    assert not ((columns > 0.02) & (columns < 0.18)).any()
    assert files[1].read_bytes()[:5] == b"%PDF-"


def test_an_open_surface_is_painted_from_both_sides(tmp_path: Path) -> None:
    square = Mesh(np.array([[0.0, 0, 0], [0, 30, 0], [0, 30, 30], [0, 0, 30]]), np.array([[0, 1, 2], [0, 2, 3]], "i4"))
    back = Mesh(square.vertices, np.ascontiguousarray(square.faces[:, ::-1]))
    dark: list[int] = []
    for mesh in (square, back):
        file = write_row(Row((Panel("open", mesh),)), tmp_path / "open.png", dpi=60)[0]
        with Image.open(file) as picture:
            dark.append(int((np.asarray(picture.convert("L"))[:, : picture.width // 2] < 230).sum()))
    assert dark[0] == dark[1] > 100


def test_subjects_of_the_data_set_are_drawn_as_scanned_and_as_simulated(tmp_path: Path) -> None:
    subject, heart = split()["validation"][0], phantom(3)
    write_pairs(tmp_path, [(subject, heart.id, heart.mask)], PAPER, seed=0)
    words = ["figure", "--label-maps", tmp_path, "--row", subject, "--method", "nni", "--out", tmp_path / "x.png"]
    told: set[str] = set()
    for more in ([], ["--clinical"]):
        result = CliRunner().invoke(evaluate, [str(w) for w in (*words, *more)])
        assert result.exit_code == 0, result.output
        told.add(result.stdout.splitlines()[1])
    assert len(told) == 2
    assert all(line.startswith("NNI Dice ") for line in told)
    both = CliRunner().invoke(evaluate, [str(w) for w in (*words, "--atlas", tmp_path)])
    assert both.exit_code == 2
    assert "one of --atlas" in both.output
    for more, told_off in (
        (["--clinical", "--law", "paper"], "--law is of"),
        (["--clinical", "--draw", "0"], "--draw:"),
    ):
        result = CliRunner().invoke(evaluate, [str(w) for w in (*words, *more)])
        assert result.exit_code == 2
        assert told_off in result.output


def test_a_person_of_another_part_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        evaluate, ["figure", "--atlas", str(tmp_path), "--row", "1400", "--out", "x.png", "--method", "nni"]
    )
    assert result.exit_code == 3, result.output
