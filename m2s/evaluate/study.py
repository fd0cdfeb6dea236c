"""From units of work to the blocks of a table: quick methods on every stack, slow ones on a few, and all of them there.

What a table may compare is what was measured on the same stacks: a method that is too slow for all of them is never put
beside one that saw more.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from m2s.baselines.registry import BASELINES
from m2s.evaluate.names import NETWORK_METHODS
from m2s.evaluate.options import collect
from m2s.evaluate.published import NOTHING, Published, title_of
from m2s.evaluate.rows import RowFile
from m2s.evaluate.scores import Row
from m2s.evaluate.settings import TUNED, Tuned
from m2s.evaluate.tables import CHAMFER, LEGEND, TESTS, Block, Line, budget_notes
from m2s.evaluate.trained import torch_device, trained
from m2s.evaluate.work import EVERY_METHOD, Item, Setup
from m2s_runtime.manifest import Manifest, NotedStage, Stage

Extent = Literal["every", "few"]


@dataclass(frozen=True)
class Stacks:
    """What a block is measured on.

    Attributes:
        title: setting and data.
        every: for methods that are quick enough.
        few: for all methods.
    """

    title: str
    every: Sequence[Item]
    few: Sequence[Item]

    @property
    def tuned(self) -> "Stacks":
        """The same for fine-tuned methods."""
        return replace(self, every=[Tuned(i) for i in self.every], few=[Tuned(i) for i in self.few])

    @property
    def all_few(self) -> bool:
        """Whether slow methods see no fewer than the others."""
        return list(self.few) == list(self.every)


@dataclass(frozen=True)
class Study:
    """How stacks are measured.

    Attributes:
        slow: methods that only see the few stacks; without one there is no block of few.
        table: where rows are kept.
        jobs: processes.
    """

    slow: Collection[str]
    table: RowFile
    jobs: int = 1

    def measure(self, stacks: Stacks, setup: Setup) -> dict[Extent, list[Row]]:
        """Rows of both blocks, or of one where both would be on the same stacks."""
        found: dict[Extent, list[Row]] = {}
        quick = tuple(name for name in setup.names if name not in self.slow)
        if quick and not (self.slow and stacks.all_few):
            found["every"] = collect(stacks.every, replace(setup, names=quick), self.table, self.jobs)
        if self.slow:
            found["few"] = collect(stacks.few, setup, self.table, self.jobs)
        return found

    def blocks(self, stacks: Stacks, setup: Setup, published: Mapping[str, Published], suffix: str = "") -> list[Block]:
        """Blocks of methods as they were trained."""
        return [
            Block(self._title(stacks, extent, suffix), lines_of(rows, setup, published))
            for extent, rows in self.measure(stacks, setup).items()
        ]

    def tuned_blocks(
        self, stacks: Stacks, setup: Setup, tuned: Setup, published: Mapping[str, Published]
    ) -> list[Block]:
        """Blocks of methods as they were fine-tuned, beside those that pairs teach nothing.

        Args:
            stacks: as for the methods of `setup`.
            setup: the methods as they were trained.
            tuned: some of them, fine-tuned.
            published: the paper's figures.
        """
        before, after = self.measure(stacks, setup), self.measure(stacks.tuned, tuned)
        blocks: list[Block] = []
        for extent in before:
            still = [line for line in lines_of(before[extent], setup, published) if not _tunable(line.method, setup)]
            lines = [*still, *lines_of(after.get(extent, []), tuned, published, tuning=True)]
            lines.sort(key=lambda line: setup.names.index(line.method))
            blocks.append(Block(self._title(stacks, extent, f", {TUNED}"), lines))
        return blocks

    def _title(self, stacks: Stacks, extent: Extent, suffix: str) -> str:
        items = stacks.every if extent == "every" else stacks.few
        which = "methods quick enough for them" if extent == "every" and self.slow else "every method"
        return f"{stacks.title}{suffix}: {len(items)} stack{'' if len(items) == 1 else 's'}, {which}"


def slow_methods(setup: Setup, told: Collection[str]) -> set[str]:
    """Those of a setup that are scored on a few stacks only: what the user says, and what `Trained.slow` tells."""
    competing = [name for name in setup.names if name in BASELINES]
    device = torch_device(setup.options.device) if competing else "cpu"
    known = {name for name in competing if trained(name, setup.run_of(name)).slow(device)}
    return known | (set(told) & set(setup.names))


def lines_of(
    rows: Sequence[Row], setup: Setup, published: Mapping[str, Published], *, tuning: bool = False
) -> list[Line]:
    """A line a method, in the order of the setup; stacks that no method could use count against each.

    Args:
        rows: of one block.
        setup: that gave them.
        published: the paper's figures.
        tuning: whether the seconds are those of the fine-tuning alone.
    """
    unread = [row for row in rows if row["method"] == EVERY_METHOD]
    lines: list[Line] = []
    for name in setup.names:
        mine = [row for row in rows if row["method"] == name]
        if not mine and not unread:
            continue
        size, seconds = provenance(setup, name, tuning=tuning)
        told = published.get(name, NOTHING)
        lines.append(Line(name, title_of(name), [*mine, *unread], told, size, seconds, tuning))
    return lines


def provenance(setup: Setup, name: str, *, tuning: bool = False) -> tuple[str, float | None]:
    """Size of a method's networks, where it competes, and the seconds of its trainings."""
    if name in BASELINES:
        found = trained(name, setup.run_of(name))
        return found.size, found.seconds
    if name not in NETWORK_METHODS and name not in dict(setup.also):
        return "", None
    stages = _stages_of(name, setup)
    # Of ours only the MCSR-Net is fine-tuned; its mask alone was trained for nothing else.
    only = {"mcsr"} if tuning or name == "mcsr" else set(stages)
    return "", float(sum(stage.seconds for key, stage in stages.items() if key in only))


def notes_of(blocks: Sequence[Block], setup: Setup) -> list[str]:
    """What has to be said below the table of some blocks."""
    sizes = {line.size for block in blocks for line in block.lines}
    legend = [text for size, text in LEGEND.items() if size in sizes]
    ours = [name for name in ("ours", *dict(setup.also)) if name in setup.names]
    told = [note for block in blocks for note in budget_notes(block.lines, ours)]
    before = [note for name in ours for note in (*_before(name, setup), *_blended(name, setup))]
    return [CHAMFER, TESTS, *legend, *dict.fromkeys(told), *before]


def _before(name: str, setup: Setup) -> list[str]:
    """What the manifest of a bundle tells of trainings beside the seconds of their stages."""
    noted = {k: stage.note for k, stage in _stages_of(name, setup).items() if isinstance(stage, NotedStage)}
    return [f"Training of {title_of(name)}, stage {stage}: {note}." for stage, note in noted.items()]


def _blended(name: str, setup: Setup) -> list[str]:
    """What a bundle has and no competing method or ablation does."""
    share = _manifest_of(name, setup).csdg_share
    if not share:
        return []
    told = f"Surfaces of {title_of(name)}: {100 * share:.3g} % C-SDG in the drawn distances, smoothed"
    return [f"{told}; m2s-export --csdg-share 0 leaves it out."]


def _stages_of(name: str, setup: Setup) -> Mapping[str, Stage]:
    return _manifest_of(name, setup).training.stages


def _manifest_of(name: str, setup: Setup) -> Manifest:
    from m2s_runtime.bundle import load_bundle

    return load_bundle(dict(setup.also).get(name, setup.options.model)).manifest


def _tunable(name: str, setup: Setup) -> bool:
    if name in BASELINES:
        return BASELINES[name].tunable
    return name in NETWORK_METHODS or name in dict(setup.also)
