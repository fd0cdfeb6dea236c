"""Which processes do a run: one for each device that was named, or a number of them on the CPU."""

from collections.abc import Callable
from dataclasses import replace

from m2s_runtime.errors import UsageProblem
from m2s_runtime.machine import may_have_gpu, room_for_workers, usable_cores
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
        jobs: processes on the CPU; 0 means none but this one, None as many as there is room for.
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
    if jobs == 0:
        if "," in spec.device:
            raise UsageProblem(f"--jobs 0: one process does not serve --device {spec.device}; name one device")
        if (spec.batch_size or 1) > 1:
            raise UsageProblem(f"--jobs 0 does one case at a time; leave out --batch-size {spec.batch_size}")
        return Inline(replace(spec, threads=spec.threads or 1, batch_size=1))
    specs = shared(spec, jobs, max(sources, 1))
    return Workers(specs, timeout, say, only_first_on_gpu=jobs is None)


def shared(spec: TaskSpec, jobs: int | None, sources: int) -> list[TaskSpec]:
    """One spec for each process, each with its device and with one thread unless `spec.threads` says another number.

    The number of threads can change the last digits of a mesh, so it depends on neither the machine nor the number of
    cases. Cores that are left over do several frames of a cine side by side, which changes nothing.

    Raises:
        UsageProblem: devices and jobs that do not go together.
    """
    devices = [device.strip() for device in spec.device.split(",")]
    threads, cores = spec.threads or 1, 1
    if len(devices) > 1 and ((jobs or 1) > 1 or len(set(devices)) < len(devices) or {"auto", "cpu"} & set(devices)):
        raise UsageProblem(f"--device {spec.device}: name different GPUs, without --jobs, or --device cpu --jobs N")
    if devices[0] not in ("auto", "cpu"):
        if (jobs or 1) > 1:
            raise UsageProblem(f"--jobs {jobs} is for the CPU; a GPU has one process, two are --device cuda:0,cuda:1")
    elif jobs is None:
        most = max(usable_cores() // threads, 1)
        jobs = min(most, room_for_workers(), sources)
        cores = max(min(most, room_for_workers()) // jobs, 1)
        devices = [devices[0] if may_have_gpu() else "cpu"] + ["cpu"] * (jobs - 1)
    elif jobs > 1:
        devices = ["cpu"] * jobs
    return [replace(spec, device=device, threads=threads, cores=cores) for device in devices[:sources]]
