"""What each stage was learnt from, told as one text where all agree and stage by stage where they do not."""

import re
from collections.abc import Mapping, Sequence


def joined(told: Mapping[str, str]) -> str:
    """One text of what is told of each stage."""
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{stage}: {said}" for stage, said in told.items())


def by_stage(text: str, stages: Sequence[str]) -> dict[str, str]:
    """The inverse of `joined`: what a text says of each of its stages."""
    names = "|".join(map(re.escape, stages))
    parts = re.split(rf"(?:^|; )({names}): ", text)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {stage: found.get(stage, text) for stage in stages}
