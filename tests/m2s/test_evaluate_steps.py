"""The tables over steps and over C-SDGs, with a denoiser that knows the answer whatever the way: the condition."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from toy import TOY

from m2s.cli import evaluate
from m2s.data.heart import keyed_rng
from m2s.data.phantom import phantom
from m2s.data.sdg import signed_distance_grid
from m2s.data.simulate import simulate_stack
from m2s.evaluate import coarse, csdg, steps
from m2s.evaluate.hearts import Cohort, Subject, heart_truth
from m2s.evaluate.methods import canonical_from_stack
from m2s.evaluate.networks import ModelOptions, network_methods, pipeline_behind
from m2s.evaluate.scores import markdown
from m2s.evaluate.steps import Way
from m2s_runtime import ddim
from m2s_runtime.apex import close_apex
from m2s_runtime.blend import Blend
from m2s_runtime.csdg import coarse_sdg
from m2s_runtime.grid import GRID, SPACING

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def methods():
    return network_methods(["ours"], ModelOptions(model=str(TOY), engine="onnx", device="cpu", steps=1))


def test_every_way_ends_where_the_denoiser_says(methods):
    pipeline = pipeline_behind(methods["ours"])
    heart = phantom(3)
    distances = signed_distance_grid(heart.grid_vertices, heart.faces)
    zc = pipeline.engine.run("encode", {"csdg": distances[None, None]})["zc"]
    wanted = close_apex(pipeline.engine.run("decode", {"z": zc})["sdg"][0, 0])[0]
    for way in (Way(0), Way(1, 0.0), Way(1), Way(3), Way(1, start=500), Way(2, start=250)):
        found = steps.sampled(pipeline.engine, pipeline.manifest, way, distances, zc, "0" * 64, 0)
        assert np.abs(found - wanted).max() < 0.02, way.name  # one step from t = 999 divides by 0.005
    given = replace(pipeline.manifest, csdg_share=1.0)
    found = steps.sampled(pipeline.engine, given, Way(1), distances, zc, "0" * 64, 0)
    smooth = Blend(1.0, given.sdg_clamp_mm).mixed(distances[None, None], distances[None, None])
    np.testing.assert_array_equal(found, close_apex(smooth[0, 0])[0])


def test_the_bundle_s_own_way_gives_the_pipeline_s_surface(methods):
    pipeline = pipeline_behind(methods["ours"])
    canonical = canonical_from_stack(simulate_stack(phantom(3).mask, keyed_rng("steps")))
    result = pipeline.reconstruct(canonical, "0" * 64)
    csdg = coarse_sdg(result.probability >= 0.5)
    zc = pipeline.engine.run("encode", {"csdg": csdg[None, None]})["zc"]
    way = Way(pipeline.sampling.steps, pipeline.sampling.temperature)
    found = steps.sampled(pipeline.engine, pipeline.manifest, way, csdg, zc, "0" * 64, 0)
    np.testing.assert_allclose(found, result.sdg, atol=1e-5)


def test_refused_stacks_count_against_every_line():
    rows = [{"way": "1 step"}, {"way": "3 steps"}, {"error": "empty: no wall"}]
    assert {name: len(line) for name, line in steps.groups(rows).items()} == {"1 step": 2, "3 steps": 2}
    kinds = [{"csdg": kind} for kind in csdg.KINDS]
    assert all(line[1:] == [{"error": "empty: no wall"}] for line in csdg.groups([*kinds, rows[2]]).values())


def test_a_late_start_skips_the_noisiest_levels(methods):
    manifest = pipeline_behind(methods["ours"]).manifest
    assert Way(4).levels(manifest) == ddim.timesteps(4) == (999, 666, 333, 0)
    assert Way(3, start=500).levels(manifest) == (500, 250, 0)
    assert Way(1, start=500).levels(manifest) == (500,)
    assert len({way.name for way in steps.WAYS}) == len(steps.WAYS)
    plain = [way.steps for way in steps.WAYS if way.start is None and way.temperature == 1]
    assert {1, 2, 5, 10, 50} <= set(plain)
    assert len(Way(50).levels(manifest)) == 50


def test_a_stack_gives_a_row_a_way(monkeypatch, tmp_path, methods):
    heart = phantom(3)
    monkeypatch.setattr(coarse, "subject", lambda *_: Subject("h", heart, heart_truth(heart)))
    item = steps.SteppedStack(Cohort(tmp_path), 1400, 0, ways=(Way(0), Way(2, 0.0)))
    rows = list(item.rows(methods))
    assert [row["way"] for row in rows] == ["no step: condition decoded", "2 steps, temperature 0"]
    assert rows[0]["dice"] == pytest.approx(rows[1]["dice"], abs=1e-3)
    assert rows[0]["dice"] > 0.7
    table = markdown(steps.groups(rows), steps.COLUMNS)
    assert table.splitlines()[0].endswith("| sampling CPU s |")
    assert len(table.splitlines()) == 4


def test_approximate_distances_are_off_by_what_their_surface_is():
    ball = np.zeros(GRID, np.bool_)
    x, y, z = np.meshgrid(*((np.arange(n) - n // 2) * s for n, s in zip(GRID, SPACING, strict=True)), indexing="ij")
    ball[np.sqrt(x**2 + y**2 + z**2) < 30] = True
    exact, vertex, transform = (made(ball) for made in csdg.KINDS.values())
    for found in (exact, vertex, transform):
        np.testing.assert_array_equal(found < 0, ball)
    off = np.abs(vertex) - np.abs(exact)
    assert -1e-4 < off.min() < 0.01 < off.max() < 0.3  # never nearer than the surface
    # Along x the surface runs half-way between two voxels, 1 mm apart: the transform takes each a half too far.
    line = (64 + np.arange(25, 34), 64, 32)
    np.testing.assert_allclose(transform[line] - exact[line], np.where(ball[line], -0.5, 0.5), atol=0.05)


def test_a_stack_gives_a_row_a_csdg(monkeypatch, tmp_path, methods):
    heart = phantom(3)
    monkeypatch.setattr(coarse, "subject", lambda *_: Subject("h", heart, heart_truth(heart)))
    rows = list(csdg.CsdgStack(Cohort(tmp_path), 1400, 0).rows(methods))
    errors = [row["csdg_error"] for row in rows]
    assert errors[0] == 0 < errors[1] < 0.05 < errors[2] < 1
    assert all(row["dice"] > 0.7 for row in rows)
    lines = markdown(csdg.groups(rows), csdg.COLUMNS).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == list(csdg.KINDS)
    assert lines[0].endswith("| C-SDG error mm | C-SDG CPU s |")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("steps", ["--steps", "3"]),
        ("steps", ["--samples", "2"]),
        ("steps", ["--refine", "1"]),
        ("steps", ["--method", "nni"]),
        ("steps", ["--also", "a=b"]),
        ("steps", ["--base-limit", "0"]),
        ("csdg", ["--base-limit", "0"]),
        ("spread", ["--base-limit", "0"]),
        ("flags", ["--base-limit", "0"]),
        ("simulation", ["--base-limit", "0", "--method", "mcsr"]),
    ],
)
def test_options_that_mean_nothing_here_are_refused(command, option, tmp_path):
    done = CliRunner().invoke(evaluate, [command, "--atlas", str(tmp_path), *option])
    assert done.exit_code == 2
    assert "leave" in done.output
