"""The paper's tables: lines of one kind in blocks, as Markdown and as LaTeX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from m2s.evaluate.compare import paired
from m2s.evaluate.published import NOTHING, Published
from m2s.evaluate.scores import COLUMNS, Row, mean_cell, per_subject
from m2s.evaluate.significance import holm, wilcoxon

REFERENCE: Final = "ours"
TESTED: Final = ("dice", "cd")
"""Figures that are tested against ours."""

HEADINGS: Final = (
    "method",
    "subjects",
    "failed",
    "Dice %",
    "paper",
    "cd mm²",
    "paper",
    "ASSD mm",
    "HD95 mm",
    "sound %",
    "CPU s",
    "training s",
    "p Dice",
    "p cd",
)
MARKS: Final[Mapping[str, str]] = {"cpu": "†", "tiny": "‡"}
"""Of the size of the networks."""
LEGEND: Final[Mapping[str, str]] = {
    "cpu": "† smaller than published, a stand-in that two processor cores can train",
    "tiny": "‡ networks of a test: their figures mean nothing",
}
CHAMFER: Final = (
    "cd: mean squared distances between 5000 points on each surface, both ways added up, mm² (the paper calls the same"
    " figure mm); in brackets that of the points which a method completes, before it makes a surface of them. Columns"
    " `paper`: its own figures, on its own data."
)
TESTS: Final = (
    "Failed: stacks that a method could not use; its figures are those of the others, and its tests those of the stacks"
    " that ours could use too. p: two-sided Wilcoxon signed-rank test of the subjects' means against ours,"
    " Holm-corrected within a block and figure. CPU s: processor time a stack. Training s: trainings of a method and of"
    " what it goes on from, without MC-Net's own before MCSR-Net, which notes below tell; of fine-tuned methods, the"
    " fine-tuning. Of the competing methods it is processor time (on a GPU time of the clock), of ours time of the"
    " clock until the chosen weights."
)


@dataclass(frozen=True)
class Line:
    """One method in one block.

    Attributes:
        method: as in the rows.
        title: as in the table.
        rows: of this method.
        published: the paper's own figures.
        size: of its networks where it competes, else empty.
        training_s: seconds that it was trained for; None where nothing was trained or nobody knows.
        tuned: whether those are the seconds of its fine-tuning alone.
    """

    method: str
    title: str
    rows: Sequence[Row]
    published: Published = NOTHING
    size: str = ""
    training_s: float | None = None
    tuned: bool = False


@dataclass(frozen=True)
class Block:
    """Lines on the same stacks; `reference` is the method that the others are tested against."""

    title: str
    lines: Sequence[Line]
    reference: str = REFERENCE

    def p_values(self, column: str) -> dict[str, float]:
        """Holm-corrected p of each method against the reference, where both have figures of the same subjects."""
        mine = next((line.rows for line in self.lines if line.method == self.reference), ())
        others = {line.method: paired(line.rows, mine, column) for line in self.lines if line.method != self.reference}
        tested = {method: wilcoxon(found) for method, found in others.items() if len(found)}
        return dict(zip(tested, holm(list(tested.values())), strict=True))

    def cells(self) -> list[list[str]]:
        """What stands under `HEADINGS`."""
        found = [self.p_values(column) for column in TESTED]
        return [[*_cells(line), *(_p(p.get(line.method)) for p in found)] for line in self.lines]


def markdown(blocks: Sequence[Block], notes: Sequence[str]) -> str:
    """One table a block, notes below."""
    parts: list[str] = []
    for block in blocks:
        rows = [HEADINGS, ("---",) * len(HEADINGS), *block.cells()]
        parts += [f"**{block.title}**", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join([*parts, *notes])


def latex(caption: str, blocks: Sequence[Block], notes: Sequence[str]) -> str:
    r"""A `table*` for the packages booktabs and graphicx, block under block."""
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table*}",
        rf"\caption{{{escape(caption)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}",
        r"\toprule",
        _latex_row(HEADINGS),
    ]
    for block in blocks:
        title = rf"\multicolumn{{{len(HEADINGS)}}}{{l}}{{\textit{{{escape(block.title)}}}}} \\"
        lines += [r"\midrule", title, *map(_latex_row, block.cells())]
    told = r" \\ ".join(map(escape, notes))
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\par\smallskip\footnotesize {told}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


_LATEX: Final[Mapping[str, str]] = {
    "\\": r"\textbackslash{}",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "²": r"$^2$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "×": r"$\times$",
    "<": r"$<$",
    ">": r"$>$",
}


def budget_notes(lines: Sequence[Line], ours: Sequence[str]) -> list[str]:
    """A line for each competing method that was not trained for the time that ours was, within 20 %.

    Args:
        lines: of one block; what was fine-tuned is compared with what was, and the rest with the rest.
        ours: methods that are ours, of whatever bundle; the first is the one that is tested against.
    """
    notes: list[str] = []
    for line in lines:
        alike = [own for own in lines if own.method in ours and own.tuned == line.tuned]
        alike.sort(key=lambda own: ours.index(own.method))
        times = {own.title: own.training_s for own in alike if own.training_s}
        if line.size and line.training_s and times and (told := _budget(line.training_s, times)):
            verb = "fine-tuned" if line.tuned else "trained"
            notes.append(f"Budget: {line.title} was {verb} for {line.training_s:.0f} s, {told}.")
    return notes


def _budget(seconds: float, times: Mapping[str, float]) -> str:
    """How a time differs from the first of some, and which other one it may be compared with; empty if it does not."""
    (first, expected), *others = times.items()
    if _equal(seconds, expected):
        return ""
    alike = [f"{title}, {time:.0f} s" for title, time in others if _equal(seconds, time)]
    if alike:
        return f"where {first} had {expected:.0f} s: the line to compare it with is {alike[0]}"
    return "not within 20 % of " + ", ".join(f"{title} {time:.0f} s" for title, time in times.items())


def _equal(seconds: float, other: float) -> bool:
    return abs(seconds / other - 1) <= 0.2


def _cells(line: Line) -> list[str]:
    done = [row for row in line.rows if not row.get("error")]
    figures = {c: mean_cell(per_subject(done, c), *COLUMNS[c][1:]) for c in ("dice", "cd", "assd", "hd95")}
    drawn = sum(isinstance(row.get("dice"), int | float) for row in done)
    if 0 < drawn < len(done):  # open surfaces have no Dice
        figures["dice"] += f" ({drawn} of {len(done)})"
    if len(points := per_subject(done, "cd_points")):
        figures["cd"] += f" ({mean_cell(points, *COLUMNS['cd_points'][1:])})"
    sound, seconds = per_subject(done, "sound"), per_subject(done, "cpu_seconds")
    return [
        line.title + MARKS.get(line.size, ""),
        str(len({row["subject"] for row in done})),
        str(len(line.rows) - len(done)),
        figures["dice"],
        line.published.dice,
        figures["cd"],
        line.published.cd,
        figures["assd"],
        figures["hd95"],
        f"{100 * sound.mean():.1f}" if len(sound) else "-",
        f"{seconds.mean():.2f}" if len(seconds) else "-",
        "-" if line.training_s is None else f"{line.training_s:.0f}",
    ]


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"
