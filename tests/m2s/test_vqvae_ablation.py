"""The ablation of the VQ-VAE on phantoms and a tiny network: equal CPU time, resumed, never mixed, one change a row."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from benchmarked import benchmark
from click.testing import CliRunner

from m2s.nets.presets import PRESETS


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch):
    module = benchmark("vqvae_ablation")
    monkeypatch.setitem(module.VARIANTS, "compact", module.Variant("compact", PRESETS["tiny"].vqvae))
    return module


def test_every_variant_changes_one_thing(ablation) -> None:
    base = ablation.Variant("compact")
    changes = {
        v.name: {k for k, value in asdict(v.size).items() if value != asdict(base.size)[k]}
        | ({"near_weight"} if v.near_weight != base.near_weight else set())
        for v in ablation.VARIANTS.values()
    }
    assert changes["latent 32x32x16"] == {"patch", "channels"}
    assert changes["clamp 5 mm"] == changes["clamp 20 mm"] == {"clamp_mm"}
    assert changes["gradient codebook"] == {"codebook"}
    assert changes["plain L1"] == {"near_weight"}


def test_a_run_of_seconds(ablation, tmp_path: Path) -> None:
    runs, out = tmp_path / "runs", tmp_path / "table.md"
    words = ["--phantom", "--minutes", "0.05", "--hearts", "2", "--judged", "2", "--variant", "compact"]
    words += ["--runs", str(runs), "--out", str(out)]
    first = CliRunner().invoke(ablation.main, words, standalone_mode=False)
    assert first.exception is None, first.output
    folder = runs / "compact-seed0"
    figures = json.loads((folder / "result.json").read_text())
    assert figures["cpu_minutes"] >= 0.05
    assert figures["steps"] > 1
    row = out.read_text().splitlines()[-1].split(" | ")
    assert row[:4] == ["| compact", "16x16x8", "10", "ema"]
    assert row[6] == f"{figures['steps']:.0f}"
    assert row[8] == f"{figures['dice']:.4f}"
    assert row[12].startswith(f"{figures['dead_codes']:.0f}")
    # Finished trainings are not repeated: neither with their result nor without it.
    trained = (folder / "last.safetensors").read_bytes()
    (folder / "result.json").unlink()
    assert CliRunner().invoke(ablation.main, words).exit_code == 0
    assert (folder / "last.safetensors").read_bytes() == trained
    assert json.loads((folder / "result.json").read_text()) == figures
    words[2] = "0.06"
    other = CliRunner().invoke(ablation.main, words)
    assert other.exit_code == 1
    assert "other settings" in other.output
