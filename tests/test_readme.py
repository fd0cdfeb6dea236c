"""The README's commands are run as they stand there; its pip lines are those that CI runs."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documented import ROOT, commands

OURS = commands(ROOT / "README.md", "m2s-")
PIP = commands(ROOT / "README.md", "pip ")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def test_there_are_commands() -> None:
    assert len(OURS) >= 8
    assert len(PIP) >= 2


@pytest.mark.parametrize("command", OURS)
def test_command(command: str, workplace: Path) -> None:
    program = Path(sys.executable).with_name(command.split()[0])
    arguments = [str(program), *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_commands_leave(workplace: Path) -> None:
    """Runs after them: the files that the README speaks of are there, and more than a shape of nothing."""
    import trimesh

    assert (workplace / "meshes" / "cases.csv").is_file()
    assert (workplace / "meshes" / "run.json").is_file()
    mesh = trimesh.load_mesh(workplace / "meshes" / "labelled" / "labelled.ply")
    assert mesh.is_watertight
    assert 50e3 < mesh.volume < 400e3


def test_pip_lines_are_those_of_ci() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert '-e ".[cpu,dev]"' in script
    assert any('-e ".[cpu,dev]"' in line for line in PIP)
    assert re.search(r"steps\.sh install \S+ \S+ cpu$", script, re.MULTILINE)
    assert any('".[cpu]"' in line for line in PIP)


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
