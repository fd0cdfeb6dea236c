"""Many machines as one pool of workers. `open_cluster` picks the system; a system's own library is imported there."""

from collections.abc import Callable

from m2s_runtime.errors import UsageProblem
from m2s_runtime.task import TaskSpec
from m2s_runtime.workers import Pool


def open_cluster(
    cluster: str, spec: TaskSpec, jobs: int | None, timeout: float, sources: int, say: Callable[[str], None]
) -> Pool:
    """The pool of a cluster; nothing is connected before its `open`.

    Args:
        cluster: `ray`, or `ray=ADDRESS` with HOST:PORT, `auto` (the cluster that this machine is part of) or `local`
            (this machine alone). Without an address that of RAY_ADDRESS is taken, else `local`.
        spec: as for one machine; paths in it have to mean the same on every node.
        jobs: workers; None means as many as the cluster has room for.
        timeout: seconds a case may take, 0 for any number.
        sources: how many sources there are; more workers than that are not started.
        say: hears what happens on the nodes.

    Raises:
        UsageProblem: no such system or address, or a device that is not the caller's to choose.
    """
    system, given, address = cluster.partition("=")
    if system.strip().lower() != "ray" or (given and not address.strip()):
        raise UsageProblem(f"--cluster {cluster}: give ray or ray=ADDRESS; for SLURM see --shard auto")
    from m2s_runtime.cluster.ray_pool import RayPool

    return RayPool(spec, address.strip() or None, jobs, timeout, sources, say)
