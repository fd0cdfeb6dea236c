"""A run on a real Ray cluster of several node processes comes to the same as a local one, whatever is lost."""

import csv
import json
import sys
import threading
import time
from pathlib import Path

import pytest
from runtime.cluster_stub import KILLS_ITS_PARENT, KILLS_ITSELF, FixedCost, make_studies
from runtime.stub import digests, save, wall

from m2s_runtime import session
from m2s_runtime.cli import run
from m2s_runtime.cluster.node import Node
from m2s_runtime.cluster.ray_cluster import INSTALL, room
from m2s_runtime.errors import NoInputs, OutputError
from m2s_runtime.inputs import Source
from m2s_runtime.options import Options, Setup
from m2s_runtime.session import Session
from m2s_runtime.task import TaskSpec

MEMORY = 80_000_000


@pytest.fixture(scope="module")
def cluster():
    """Address of a head without room for workers, with two nodes for one worker each; and how to kill one of them."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_enable_metrics_collection", "0")
        head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=head)
        nodes = [found.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
        yield f"ray={found.address}", lambda: found.remove_node(nodes.pop(), allow_graceful=False)
        found.shutdown()


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs the studies in `in` into a folder with the stub; gives whether any failed, the rows, and the counts."""

    def go(out, seconds=0.0, **given):
        monkeypatch.setattr(session, "open_reconstructor", FixedCost(seconds))
        setup = Setup(threads=1, verbosity=-1, **given)
        with Session([str(tmp_path / "in")], tmp_path / out, Options(), setup) as made:
            made.open()
            failed = made.run()
            made.finish(8 if failed else 0)
        with (tmp_path / out / "cases.csv").open() as file:
            return failed, list(csv.DictReader(file)), json.loads((tmp_path / out / "run.json").read_text())["cases"]

    return go


def meshes(folder):
    """Everything but the records and tables, which hold times."""
    return {name: digest for name, digest in digests(folder).items() if not name.endswith((".json", ".csv", ".html"))}


def test_a_lost_node_loses_no_case_and_a_rerun_does_none_twice(cluster, go, tmp_path):
    make_studies(tmp_path / "in", 8)
    address, kill_node = cluster

    def strike():
        while len(list((tmp_path / "ray").glob("*/*.json"))) < 3:
            time.sleep(0.02)
        kill_node()

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    failed, rows, counts = go("ray", 0.5, cluster=address)
    thread.join()
    assert not failed
    assert [row["case"] for row in rows] == [f"{index:02}" for index in range(8)]
    assert {row["status"] for row in rows} == {"ok"}
    assert sum(counts.values()) == 8
    go("local", jobs=0)
    assert meshes(tmp_path / "ray") == meshes(tmp_path / "local")
    assert go("ray", jobs=0)[2] == {"complete": 8}


def test_a_case_that_kills_its_worker_fails_alone(cluster, go, tmp_path, capsys):
    make_studies(tmp_path / "in", 2)
    save(tmp_path / "in" / "poison.nii.gz", wall(KILLS_ITSELF))
    save(tmp_path / "in" / "venom.nii.gz", wall(KILLS_ITS_PARENT))
    (tmp_path / "in" / "zero.nii.gz").write_bytes(b"")
    failed, rows, _ = go("ray", cluster=cluster[0])
    assert failed
    errors = {row["case"]: row["error"] for row in rows}
    assert errors == {"00": "", "01": "", "poison": "crashed", "venom": "crashed", "zero": "unreadable"}
    printed = capsys.readouterr()
    assert [Path(line).name for line in printed.out.splitlines()] == ["00.ply", "01.ply"]
    assert "3 workers were lost with it" in printed.err


def test_a_gpu_that_no_node_has_is_an_error(cluster, tmp_path, capsys):
    make_studies(tmp_path / "in", 1)
    arguments = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--cluster", cluster[0], "--device", "cuda"]
    assert run([*arguments, "--jobs", "1"]) == 5
    assert "no node has 1 CPU(s) and a GPU" in capsys.readouterr().err


def test_what_cannot_be_reached_is_an_error_and_starts_no_cluster(tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    make_studies(tmp_path / "in", 1)
    arguments = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--cluster"]
    assert run([*arguments, "ray=127.0.0.1:1"]) == 5
    assert "127.0.0.1:1: cannot be reached" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert run([*arguments, "ray"]) == 5
    assert not (tmp_path / "out").exists()


def test_without_ray_the_remedy_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    make_studies(tmp_path / "in", 1)
    assert run([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--cluster", "ray=local"]) == 5
    assert INSTALL in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--cluster", "slurm"], "--shard auto"),
        (["--cluster", "ray="], "ray=ADDRESS"),
        (["--cluster", "ray=ray://head:10001"], "HOST:PORT"),
        (["--cluster", "ray=head"], "HOST:PORT"),
        (["--cluster", "ray", "--device", "cuda:1"], "Ray hands out the GPUs"),
        (["--cluster", "ray", "--jobs", "0"], "leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, capsys, options, hint):
    make_studies(tmp_path / "in", 1)
    assert run([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]) == 2
    assert hint in capsys.readouterr().err


def test_a_node_that_sees_other_folders_says_so(tmp_path):
    make_studies(tmp_path / "in", 1)
    source = Source(tmp_path / "in" / "00.nii.gz", "00.nii.gz", "00")
    spec = TaskSpec(tmp_path, Options(), (source,), opener=FixedCost())
    with pytest.raises(OutputError, match=r"one that all nodes share \(node "):
        Node(spec, 0.0, tmp_path / ".shared-here-alone").run(source)
    (tmp_path / ".shared-by-both").touch()
    with pytest.raises(NoInputs, match="by the same path"):
        Node(spec, 0.0, tmp_path / ".shared-by-both").run(Source(tmp_path / "elsewhere" / "a.nii", "a.nii", "a"))


def test_room_counts_whole_workers_on_living_nodes():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 7.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 3.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {}},
    ]
    assert room(nodes, 2, 0) == 3 + 1
    assert room(nodes, 2, 1) == 2
    assert room(nodes, 8, 0) == 0
