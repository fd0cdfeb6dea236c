"""The SLURM example does what one run does: under a real slurmctld and slurmd, and under what they put into the air."""

import contextlib
import csv
import getpass
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runtime.cluster_stub import make_studies
from runtime.stub import digests
from toy import TOY

from m2s_runtime.cli import run

pytest.importorskip("onnxruntime", reason="the array jobs run the toy bundle")

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "m2s_array.sh"
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
CASES, PARTS = 4, 2
OPTIONS = ["--model", str(TOY), "--threads", "1"]

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=8000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def environment(monkeypatch):
    """That of this process, in which `m2s-run` is the one under test."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return os.environ


@pytest.fixture
def slurm(environment, tmp_path, monkeypatch):
    """A SLURM of this machine alone, on loopback; `sbatch` and `sinfo` find it."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here; on Debian: apt-get install slurmctld slurmd slurm-client munge")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    (folder / "spool").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    host, cores = platform.node().split(".")[0], os.cpu_count()
    text = CONFIGURATION.format(host=host, user=getpass.getuser(), ports=free_ports(2), folder=folder, cores=cores)
    (folder / "slurm.conf").write_text(text)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = {"socket": "munge.socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    munged = ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in files.items())]
    with contextlib.ExitStack() as stack:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = stack.enter_context((folder / f"{command[0]}.txt").open("wb"))
            daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            stack.callback(daemon.terminate)
        wait_until_idle(folder)
        yield


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_idle(folder, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout.strip()
        if seen == "idle":
            return
        time.sleep(0.5)
    pytest.fail("\n".join(path.read_text()[-2000:] for path in folder.glob("*.txt")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with studies in `in`, and the meshes that a run of all of them makes."""
    folder = tmp_path_factory.mktemp("whole")
    make_studies(folder / "in", CASES)
    assert run([str(folder / "in"), "--out", str(folder / "out"), "--jobs", "0", *OPTIONS]) == 0
    return folder / "in", meshes(folder / "out")


def meshes(folder):
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".ply")}


def check(out, expected):
    """Every case once in the table, the same meshes as those of a single run, and nothing left behind."""
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["status"]) for row in rows] == [(f"{index:02}", "ok") for index in range(CASES)]
    assert meshes(out) == expected
    assert not list(out.rglob(".*"))


def test_the_array_script_under_slurm(slurm, whole, tmp_path):
    studies, expected = whole
    submit = ["sbatch", "--wait", f"--array=0-{PARTS - 1}", "--cpus-per-task=1", f"--output={tmp_path}/%a.log"]
    done = subprocess.run([*submit, SCRIPT, studies, tmp_path / "out", *OPTIONS], check=False, timeout=600)
    logs = [path.read_text() for path in sorted(tmp_path.glob("*.log"))]
    assert done.returncode == 0, logs
    assert len(logs) == PARTS
    check(tmp_path / "out", expected)


def test_the_array_script_in_the_environment_that_slurm_makes(environment, whole, tmp_path):
    studies, expected = whole
    array = {"COUNT": PARTS, "MIN": 0, "MAX": 4 * (PARTS - 1), "STEP": 4}
    jobs = []
    for task in range(PARTS):
        given = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in {**array, "ID": 4 * task}.items()}
        given |= {"SLURM_ARRAY_JOB_ID": "1", "SLURM_JOB_ID": str(2 + task), "SLURM_CPUS_PER_TASK": "1"}
        command = [SCRIPT, studies, tmp_path / "out", *OPTIONS, "--jobs", "0"]
        jobs.append(subprocess.Popen(command, env={**environment, **given}))
    assert [job.wait(300) for job in jobs] == [0] * PARTS
    check(tmp_path / "out", expected)
