"""Which processes do a run: one for each device that was named, or a number of them on the CPU."""

from collections.abc import Callable
from dataclasses import replace

from m2s_runtime.errors import UsageProblem
from m2s_runtime.task import TaskSpec
from m2s_runtime.workers import Inline, Pool, Workers


def choose_pool(
    spec: TaskSpec,
    jobs: int | None,
    timeout: float,
    sources: int,
    say: Callable[[str], None],
    cluster: str | None = None,
) -> Pool:
    """The pool for a run.

    Args:
        spec: `spec.device` may name several GPUs, separated by commas.
        jobs: processes on the CPU; 0 means none but this one, None one, or in a cluster as many as it has room for.
        timeout: seconds a case may take, 0 for any number.
        sources: how many sources there are; more processes than that are not started.
        say: hears what libraries in other processes have to say.
        cluster: see `cluster.open_cluster`; None for this machine.

    Raises:
        UsageProblem: devices and jobs that do not go together.
    """
    if cluster:
        from m2s_runtime.cluster import open_cluster

        return open_cluster(cluster, spec, jobs, timeout, sources, say)
    jobs = 1 if jobs is None else jobs
    if jobs == 0:
        if "," in spec.device:
            raise UsageProblem(f"--jobs 0: one process does not serve --device {spec.device}; name one device")
        return Inline(spec)
    return Workers(shared(spec, jobs)[: max(sources, 1)], timeout, say)


def shared(spec: TaskSpec, jobs: int) -> list[TaskSpec]:
    """One spec for each process, each with its device and, unless `spec.threads` says, an equal part of the cores.

    Raises:
        UsageProblem: devices and jobs that do not go together.
    """
    devices = [device.strip() for device in spec.device.split(",")]
    if len(devices) == 1 and jobs > 1:
        if devices[0] not in ("auto", "cpu"):
            raise UsageProblem(f"--jobs {jobs} is for the CPU; a GPU has one process, two are --device cuda:0,cuda:1")
        devices = ["cpu"] * jobs
    elif len(devices) > 1 and (jobs > 1 or len(set(devices)) < len(devices) or {"auto", "cpu"} & set(devices)):
        raise UsageProblem(f"--device {spec.device}: name different GPUs, without --jobs, or --device cpu --jobs N")
    if len(devices) == 1:
        return [spec]
    from m2s_runtime.engines.base import usable_cores  # heavy, where one process has no need of it

    threads = spec.threads or max(usable_cores() // len(devices), 1)
    return [replace(spec, device=device, threads=threads) for device in devices]
