"""Who may be under way: never more than there are seats for, and those inside before those who come."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from m2s_runtime.machine import may_have_gpu, room_for_workers, usable_cores
from m2s_runtime.seats import Seats


def test_no_more_are_under_way_than_there_are_seats():
    seats, most, lock = Seats(3), [], threading.Lock()

    def work(item):
        with lock:
            most.append(seats.taken)
        return item * item

    def source(number):
        with seats.seat():
            return sorted(seats.spread(work, range(number, number + 5)))

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(source, range(6)))
    assert found == [[k * k for k in range(n, n + 5)] for n in range(6)]
    assert max(most) <= 3
    assert seats.taken == 0


def test_items_of_an_open_source_go_before_the_next_source():
    seats, order, inside = Seats(2), [], threading.Event()

    def work(item):
        inside.set()
        order.append(item)

    def cine():
        with seats.seat():
            list(seats.spread(work, range(20)))

    def late():
        inside.wait(60)
        with seats.seat():
            order.append("late")

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(cine), pool.submit(late)]:
            future.result(60)
    assert order.index("late") >= 18


def test_an_error_ends_the_spread_and_frees_its_seats():
    seats = Seats(2)

    def work(item):
        if item == 1:
            raise ValueError(item)

    with seats.seat():
        with pytest.raises(ValueError, match="1"):
            list(seats.spread(work, range(4)))
        assert seats.taken == 1
    assert seats.taken == 0
    with ThreadPoolExecutor(1) as pool:  # who comes now need not wait for the items that were left
        assert pool.submit(lambda: seats.seat().__enter__()).result(60) is None


def test_one_seat_needs_no_threads():
    with Seats(1).seat():
        assert list(Seats(1).spread(lambda _: threading.current_thread(), [1, 2])) == [threading.current_thread()] * 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("150000 100000", 2), ("1000 100000", 1), ("junk", None)]
)
def test_cores_are_those_that_the_quota_pays_for(tmp_path, quota, cores):
    free = usable_cores(tmp_path)
    assert free >= 1
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path) == (free if cores is None else min(cores, free))


@pytest.mark.parametrize("name", ["SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"])
@pytest.mark.parametrize(("granted", "cores"), [("1", 1), ("100000", None), ("many", None)])
def test_cores_are_those_that_slurm_grants(tmp_path, monkeypatch, name, granted, cores):
    free = usable_cores(tmp_path)
    monkeypatch.setenv(name, granted)
    assert usable_cores(tmp_path) == (cores or free)


@pytest.fixture
def job(tmp_path):
    """/proc and the control groups of a process in a SLURM job, which limits a group around its own."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemAvailable: {64 * 2**20} kB\n")
    return proc, groups


@pytest.mark.parametrize(
    ("line", "around", "limit", "used", "quota"),
    [
        ("0::/slurm/job_7/step_0", "slurm/job_7", "max", "current", {"cpu.max": "100000 100000"}),
        ("4:memory,cpu:/job_7/step_0", "memory,cpu/job_7", "limit_in_bytes", "usage_in_bytes",
         {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}),
    ],
)  # fmt: skip
def test_limits_of_the_groups_around_count_but_not_the_pages_of_files(job, line, around, limit, used, quota):
    proc, groups = job
    free = usable_cores(groups, proc)
    (proc / "self" / "cgroup").write_text(f"1:name=systemd:/\n{line}\n")
    (groups / around / "step_0").mkdir(parents=True)
    for name, text in quota.items():
        (groups / around / name).write_text(text)
    assert usable_cores(groups, proc) == 1 <= free
    (groups / around / f"memory.{limit}").write_text(str(4000 * 2**20))
    (groups / around / f"memory.{used}").write_text(str(3900 * 2**20))
    assert room_for_workers(proc, groups) == 1
    (groups / around / "memory.stat").write_text(f"cache 9\ninactive_file {3800 * 2**20}\n")
    assert room_for_workers(proc, groups) == 6


def test_memory_bounds_the_workers(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    proc.mkdir()
    groups.mkdir()
    assert room_for_workers(proc, groups) > 1000  # nothing is known
    (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {3000 * 1024} kB\n")
    assert room_for_workers(proc, groups) == 5
    (groups / "memory.max").write_text(str(1400 * 2**20))
    (groups / "memory.current").write_text(str(100 * 2**20))
    assert room_for_workers(proc, groups) == 2
    (groups / "memory.max").write_text(str(200 * 2**20))
    assert room_for_workers(proc, groups) == 1
    assert not may_have_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert may_have_gpu(tmp_path)
