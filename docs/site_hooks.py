"""What MkDocs adds while it builds the site: pages taken from elsewhere, and the reference of the commands.

Nothing of it is kept as a copy in docs/, so none of it can drift.
"""

import importlib
import re
import tomllib
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from m2s_runtime.errors import EXIT_CODES, CaseError

ROOT = Path(__file__).resolve().parents[1]
TAKEN = {
    "model-card.md": "models/compact/MODEL_CARD.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
INLINE = re.compile(r"<!-- inline: (\S+) -->")
WIDTH = 84


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are not in docs/, and what pages of docs/ link to outside of it."""
    for page, source in TAKEN.items():
        files.append(File.generated(config, page, content=_taken(source)))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    files.append(File.generated(config, "exit-codes.md", content=codes_page()))
    pages = (file.content_string for file in list(files) if file.is_documentation_page())
    for target in sorted({target for text in pages for target in OUTSIDE.findall(text)}):
        if target not in TAKEN.values():
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def _taken(source: str) -> str:
    """A page from elsewhere; what it shows of docs/ lies beside it on the site."""
    up = "../" * source.count("/")
    return (ROOT / source).read_text("utf-8").replace(f"]({up}docs/", "](")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links out of docs/ lead to what `on_files` added."""
    taken = {source: name for name, source in TAKEN.items()}
    return OUTSIDE.sub(lambda match: f"]({taken.get(match[1], match[1])}", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Drawings are put in whole, so that they follow the theme."""
    return INLINE.sub(lambda match: (ROOT / "docs" / match[1]).read_text("utf-8"), html)


def programs() -> dict[str, click.Command]:
    """Every program that the package installs."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    return {name: command_of(*entry.split(":")) for name, entry in scripts.items()}


def command_of(module: str, function: str) -> click.Command:
    """The click command behind an entry point: itself, or the only one that its module defines."""
    found = vars(importlib.import_module(module))
    if isinstance(found[function], click.Command):
        return found[function]
    (command,) = {id(value): value for value in found.values() if isinstance(value, click.Command)}.values()
    return command


def commands_page() -> str:
    """Every command as its `--help` shows it."""
    parts = ["# Commands", "Made from the programs themselves when this site is built.", ""]
    for name, command in programs().items():
        parts += _described(click.Context(command, info_name=name, max_content_width=WIDTH), level=2)
    return "\n".join(parts)


def _described(context: click.Context, level: int) -> list[str]:
    context.terminal_width = WIDTH
    command = context.command
    parts = [f"{'#' * level} {context.command_path}", "", "```text", command.get_help(context), "```", ""]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                parts += _described(click.Context(below, parent=context, info_name=name), level + 1)
    return parts


_CODES = """# Exit codes and errors

A message names the file or option and what to do about it. A code says who has to act: you (2, 3), the installation
(4, 5), the disk (6), or nobody at once, for 8 means that the rest of the batch is done.

| code | meaning |
|---|---|
{codes}

## Errors of single cases

Column `error` of `cases.csv`; the batch goes on. `crashed` and `timeout` are cases whose process died or took too long,
`bug` is a failure that nobody foresaw, `no-input` an argument under which nothing lay.

| error | meaning |
|---|---|
{errors}
"""


def codes_page() -> str:
    """Exit codes and the errors of single cases, from the module that raises them."""
    codes = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    errors = [f"| `{kind.code}` | {(kind.__doc__ or '').splitlines()[0]} |" for kind in _below(CaseError)]
    return _CODES.format(codes="\n".join(codes), errors="\n".join(errors))


def _below(kind: type[CaseError]) -> list[type[CaseError]]:
    return [found for child in kind.__subclasses__() for found in (child, *_below(child))]
