"""The script that compares volumes with the sums over the slices runs, and its figures are right."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="m2s is not installed without torch")

from runtime.stub import save, wall

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "measurement_agreement.py"


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.skipif(not SCRIPT.is_file(), reason=f"no {SCRIPT}")
def test_measurement_agreement(tmp_path):
    masks, out = tmp_path / "masks", tmp_path / "out"
    out.mkdir()
    labels = {name: wall(scale=scale) for name, scale in (("p_ED", 1.0), ("p_ES", 0.75), ("q_ED", 0.9))}
    for name, found in labels.items():
        save(masks / f"{name}.nii.gz", found)
    table(masks / "cases.csv", [{"file": f"{name}.nii.gz", "group": name[0].upper()} for name in labels])
    # 2 x 2 x 10 mm voxels; the first is 3 ml more, the second 1 ml less, the third withheld.
    cavities = {name: np.count_nonzero(found == 3) * 0.04 for name, found in labels.items()}
    walls = {name: np.count_nonzero(found == 2) * 0.04 for name, found in labels.items()}
    said = {"p_ED": cavities["p_ED"] + 3, "p_ES": cavities["p_ES"] - 1, "q_ED": ""}
    rows = [
        {"case": n, "input": f"{n}.nii.gz", "status": "ok", "volume_ml": walls[n] + 2, "cavity_ml": said[n]}
        for n in labels
    ]
    table(out / "cases.csv", rows)
    study = {"ed_case": "p_ED", "es_case": "p_ES", "ed_volume_ml": 100, "es_volume_ml": 110, "ef_percent": 50}
    table(out / "studies.csv", [study])
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--masks", str(masks)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    mean, reach = (cavities["p_ED"] + cavities["p_ES"]) / 2, 1.96 * 8**0.5
    expected = f"| P | 2 | {mean:.1f} | +1.0 ({100 / mean:+.1f} %) | {1 - reach:+.1f} to {1 + reach:+.1f} | 0 |"
    assert expected in text
    assert "| Q | 0 | | | | 1 |" in text
    assert "| all | 3 | " in text
    assert "| P | 1 | +10.0 ± 0.0 |" in text
