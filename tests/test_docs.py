"""The pages of docs/: commands and Python in them run as they stand there, and the site holds what it promises."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from documented import PAGES, ROOT, blocks, commands

from m2s_runtime.errors import EXIT_CODES, CaseError
from m2s_runtime.table import COLUMNS

# In the order of the pages; what two of them say runs once.
OURS = list(dict.fromkeys(command for page in PAGES for command in commands(page, "m2s-")))
PYTHON = [block for page in (ROOT / "README.md", *PAGES) for block in blocks(page, "python")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


def test_there_is_something_to_run():
    assert len(OURS) >= 5
    assert len(PYTHON) >= 2


@pytest.mark.parametrize("command", OURS)
def test_command(command: str, workplace: Path):
    if command.startswith("m2s-view") and "--screenshot" in command:
        pytest.importorskip("pyvista")
    program = Path(sys.executable).with_name(command.split()[0])
    arguments = [str(program), *shlex.split(command)[1:]]
    done = subprocess.run(arguments, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number: int, workplace: Path):
    arguments = [sys.executable, "-c", PYTHON[number]]
    done = subprocess.run(arguments, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI builds it: a warning is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    arguments = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_none_fetches_anything(site: Path):
    pages = {page.name: page.read_text() for page in site.glob("*.html")}
    assert {page.with_suffix(".html").name for page in PAGES} <= set(pages)
    fetched = re.compile(r"<(?:script|img|iframe|link|source|object)\b[^>]*(?:src|href|data)=\"?(?:https?:)?//")
    for name, text in pages.items():
        assert not fetched.search(text), name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"""url\(["']?(?:https?:)?//|@import""", sheet.read_text()), sheet.name


def test_every_column_of_cases_csv_is_explained():
    told = "".join((ROOT / "docs" / page).read_text() for page in ("batches.md", "measurements.md"))
    assert [column for column in COLUMNS if f"`{column}`" not in told] == []


def test_every_picture_of_the_site_is_there(site: Path):
    shown = {
        (page, src) for page in site.glob("*.html") for src in re.findall(r'<img[^>]*\ssrc="([^"]+)"', page.read_text())
    }
    assert any(page.name == "model-card.html" for page, _ in shown)
    assert not [(page.name, src) for page, src in shown if not (page.parent / src).is_file()]


def test_the_drawing_is_part_of_its_page(site: Path):
    page = (site / "how-it-works.html").read_text()
    assert '<svg xmlns="http://www.w3.org/2000/svg" class="m2s-figure"' in page
    assert "<!-- inline" not in page


def test_the_reference_has_every_program_and_every_option(site: Path):
    hooks = _hooks()
    page = (site / "commands.html").read_text()
    programs = hooks.programs()
    assert {"m2s-run", "m2s-train", "m2s-eval", "m2s-export", "m2s-bench", "m2s-view"} <= set(programs)
    for name, command in programs.items():
        assert f">{name}<" in page
        for option in (option for parameter in command.params for option in parameter.opts):
            if option.startswith("--"):
                assert option in page, f"{name} {option}"


def test_exit_codes_and_errors_are_those_of_the_module(site: Path):
    page = (site / "exit-codes.html").read_text()
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"<td>{code}</td>\s*<td>{meaning}</td>", page)
    for kind in (k for k in CaseError.__subclasses__() if k.__module__ == CaseError.__module__):
        assert f"<code>{kind.code}</code>" in page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) in readme


def _hooks():
    spec = util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
