"""Trainings without worker processes, which would each pay for importing PyTorch, and trainings that are cut short."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

from torch import Tensor

from m2s.train.checkpoint import load_state
from m2s.train.loop import Recipe, Stage, fit

_RECIPE = Recipe(steps=4, batch=2, rate=1e-3, schedule="cosine", average=0.9, validate_every=2)


@contextmanager
def no_processes() -> Iterator[None]:
    """Hearts, pairs and batches are made by a thread."""

    def pool(workers, prepare=None, arguments=()):
        return ThreadPoolExecutor(workers, initializer=prepare, initargs=arguments)

    with (
        mock.patch("m2s.train.loop.worker_pool", pool),
        mock.patch("m2s.train.pairs.worker_pool", pool),
        mock.patch("m2s.data.store.worker_pool", pool),
    ):
        yield


def whole_and_resumed(make: Callable[[], Stage], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights after four steps at one go, and after being cut short in the fourth and begun again."""
    with no_processes():
        fit(make(), _RECIPE, folder / "whole", quiet=True)
        broken = make()
        with mock.patch.object(broken, "loss", _broken_at(broken, 3)), suppress(InterruptedError):
            fit(broken, _RECIPE, folder / "parted", quiet=True)
        assert load_state(folder / "parted" / "last.safetensors")[1]["step"] == 2
        fit(make(), _RECIPE, folder / "parted", quiet=True)
    whole, parted = (load_state(folder / name / "last.safetensors")[0]["model"] for name in ("whole", "parted"))
    return whole, parted


def _broken_at(stage: Stage, last: int):
    loss = stage.loss

    def told(batch, step):
        if step == last:
            raise InterruptedError
        return loss(batch, step)

    return told
