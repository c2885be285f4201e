"""`infra/slurm.sh` with stand-ins for Slurm's and Ray's commands: what it calls, in which order, and how it ends."""

import os
import re
import runpy
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "infra" / "slurm.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")
head_script = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "infra" / "head.py")))
COMMAND = ["python", "pipelines/full.py", "--recipe", "my.yaml"]
JOB = 4321
TEMP = Path(f"/tmp/sv-{JOB}-0")  # noqa: S108 (the script's own)
TOOLS = {
    # each notes its call in one line; `log` is in the folder that TRACE names
    "scontrol": 'echo "scontrol $*" >> "$TRACE/log"; printf "%s\\n" ${SLURM_JOB_NODELIST//,/ }',
    "srun": """
        where= ; while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && where=${1#*=}; shift; done
        export COUNT=$(wc -w <<< "${where//,/ }")
        echo "srun@$where ${*//$'\\n'/ }" >> "$TRACE/log"
        [[ $1 == python ]] && { echo 10.0.0.1; exit; }
        exec "$@" """,
    "ray": """
        echo "ray $*" >> "$TRACE/log"
        env >> "$TRACE/environment"
        case "$1 $2" in
            "start "*)
                [ -e "$TRACE/broken" ] && exit 1
                [ -e "$TRACE/alone" ] && COUNT=1
                for _ in $(seq "$COUNT"); do echo $$ >> "$TRACE/nodes"; done  # one process stands for all its nodes
                trap 'echo "ended $$" >> "$TRACE/log"; exit 0' TERM
                for _ in {1..2000}; do /bin/sleep 0.01; done ;;
            "health-check "*) [ -s "$TRACE/nodes" ] ;;
            "list nodes") for _ in $(cat "$TRACE/nodes"); do echo '{"node_id": "x"}'; done ;;
            "job submit")
                touch "$TRACE/submitted"
                [ -e "$TRACE/fails" ] && exit 1
                for _ in {1..2000}; do
                    [ -e "$TRACE/stopped" ] && exit 1
                    [ -e "$TRACE/done" ] && exit 0
                    /bin/sleep 0.01
                done ;;
            "job stop") touch "$TRACE/stopped" ;;
        esac""",
    "sleep": "exec /bin/sleep 0.02",
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The folder of stand-ins; a test's files in it say how they behave."""
    for name, body in TOOLS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def begin(trace: Path, *command: str, nodes: str = "n1,n2,n3", **more: str) -> "subprocess.Popen[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RAY"))}
    env |= {"PATH": f"{trace}:{env['PATH']}", "TRACE": str(trace), "SLURM_JOB_ID": str(JOB),
            "SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_JOB_NODELIST": nodes, "SLURM_CPUS_ON_NODE": "8",
            **more}  # fmt: skip
    copy = trace / "slurm_script"  # as Slurm runs it
    copy.write_text(TEXT)
    return subprocess.Popen(
        ["bash", str(copy), *command], env=env, cwd=trace, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def end(process: "subprocess.Popen[str]") -> str:
    """Wait for the script, and return what it printed."""
    printed, _ = process.communicate(timeout=60)
    return printed


def calls(trace: Path) -> list[str]:
    return (trace / "log").read_text().splitlines()


def short(trace: Path) -> list[str]:
    """The calls that are made once, without what waits: where and the first words."""
    others = ("ray health-check", "ray list", "ray start", "ended")
    once = [line for line in calls(trace) if not line.startswith(others)]
    return [" ".join(word for word in line.split()[:3] if word not in ("--head", "-m")) for line in once]


def ray_ended(trace: Path) -> bool:
    started = (trace / "nodes").read_text().split()
    return bool(started) and not any(Path(f"/proc/{pid}").exists() for pid in started)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


IN_ORDER = ["scontrol show hostnames", "srun@n1,n2,n3 mkdir", "srun@n1 python -c", "srun@n1 ray start",
            "srun@n2,n3 ray start", "ray job submit"]  # fmt: skip


def test_the_head_is_there_before_the_others_and_all_before_the_job(trace: Path) -> None:
    (trace / "done").touch()
    process = begin(trace, *COMMAND)
    assert (end(process), process.returncode) == ("", 0)
    assert short(trace) == [*IN_ORDER, "srun@n1,n2,n3 rm -rf"]
    assert not TEMP.exists()
    assert [line for line in calls(trace) if line.startswith("ended")]


def test_folder_ports_and_job_are_the_allocations_own(trace: Path) -> None:
    (trace / "done").touch()
    process = begin(trace, *COMMAND, nodes="n1")
    end(process)
    (start,) = (line for line in calls(trace) if line.startswith("ray start"))
    assert f"--temp-dir {TEMP} " in start and "--num-cpus 8 " in start and "--node-ip-address 127.0.0.1 " in start
    ports = [int(each) for each in re.findall(r"port (\d+)", start) if each != "0"]
    assert len(ports) == len(set(ports)) == 5 and all(20_000 <= port < 32_000 for port in ports)
    (submit,) = (line for line in calls(trace) if line.startswith("ray job submit"))
    assert f"--submission-id slurm-{JOB}-0 --runtime-env infra/runtime_env.yaml -- {' '.join(COMMAND)}" in submit
    assert not [line for line in calls(trace) if line.startswith(("srun@n1 python", "srun@ "))]  # no other node
    environment = (trace / "environment").read_text().splitlines()
    assert {f"{name}={value}" for name, value in head_script.SINGLE_NODE.items()} <= set(environment)
    assert "RAY_AUTH_MODE=token" in environment and "RAY_JOB_STOP_WAIT_TIME_S=90" in environment
    tokens = {line for line in environment if line.startswith("RAY_AUTH_TOKEN=")}
    assert len(tokens) == 1 and re.fullmatch("RAY_AUTH_TOKEN=[0-9a-f]{64}", *tokens)
    assert not [line for line in calls(trace) if line.startswith("ray") and next(iter(tokens))[15:] in line]


def test_sigterm_saves_and_ends(trace: Path) -> None:
    process = begin(trace, *COMMAND, nodes="n1")
    wait_for(trace / "submitted")
    process.send_signal(signal.SIGTERM)
    assert f"stopping job slurm-{JOB}-0" in end(process)
    assert process.returncode == 130
    log = calls(trace)
    stopped = next(index for index, line in enumerate(log) if line.startswith("ray job stop"))
    ended = next(index for index, line in enumerate(log) if line.startswith("ended"))
    assert stopped < ended < log.index(f"srun@n1 rm -rf {TEMP}")
    assert ray_ended(trace)


def test_sigterm_before_the_job_ends_what_has_started(trace: Path) -> None:
    (trace / "alone").touch()
    process = begin(trace, *COMMAND)  # the third node never comes
    wait_for(trace / "nodes")
    process.send_signal(signal.SIGTERM)
    end(process)
    assert process.returncode == 130
    assert ray_ended(trace) and not TEMP.exists() and not (trace / "submitted").exists()


def test_a_job_that_slurm_queues_again_is_not_stopped_by_what_the_lost_one_left(trace: Path) -> None:
    (trace / "done").touch()
    TEMP.mkdir()
    try:
        process = begin(trace, *COMMAND, nodes="n1", SLURM_RESTART_COUNT="1")
        assert (end(process), process.returncode) == ("", 0)
    finally:
        TEMP.rmdir()


def test_all_nodes_of_a_large_allocation_are_counted(trace: Path) -> None:
    """Ray lists 100 unless told otherwise."""
    (trace / "done").touch()
    end(begin(trace, *COMMAND))
    assert any(re.search(r"^ray list nodes .*--limit 3( |$)", line) for line in calls(trace))


def test_a_failed_job_is_one_for_slurm(trace: Path) -> None:
    (trace / "fails").touch()
    process = begin(trace, *COMMAND, nodes="n1")
    end(process)
    assert process.returncode == 1 and ray_ended(trace)


def test_a_head_that_does_not_start_is_said_and_nothing_waits(trace: Path) -> None:
    (trace / "broken").touch()
    process = begin(trace, *COMMAND)
    assert "error: Ray ended while it started" in end(process)
    assert process.returncode == 1 and not (trace / "submitted").exists() and not TEMP.exists()


@pytest.mark.parametrize(
    ("changed", "command", "said", "code"),
    [({}, [], "no command", 2), ({"SLURM_JOB_ID": ""}, COMMAND, "this is no Slurm job", 1),
     ({"SLURM_SUBMIT_DIR": "/"}, COMMAND, "not the platform's repository", 1),
     ({"PATH": "/usr/bin:/bin"}, COMMAND, "ray is not in PATH", 1)],
)  # fmt: skip
def test_what_is_missing_is_said(changed: dict[str, str], command: list[str], said: str, code: int) -> None:
    env = {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(REPOSITORY), "PATH": os.environ["PATH"]} | changed
    done = subprocess.run(
        ["bash", str(SCRIPT), *command], env=env, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == code and said in done.stderr


def test_only_recorded_processes_are_ended_and_there_is_time_to_save() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], timeout=20, check=False).returncode == 0
    assert not re.search(r"\b(pkill|killall|ray stop|scancel -)\b", TEXT)
    numbers = {name: int(value) for name, value in re.findall(r"^([A-Z]+_S)=(\d+)", TEXT, re.MULTILINE)}
    assert numbers["STOP_S"] == head_script.JOB_STOP_S
    notice = re.search(r"^#SBATCH --signal=B:TERM@(\d+)$", TEXT, re.MULTILINE)
    assert notice is not None and int(notice[1]) >= numbers["STOP_S"] + 10 + numbers["END_S"]
    assert numbers["DRAIN_S"] < 30  # Slurm's own KillWait


def test_the_nodes_of_rays_list_are_counted_as_it_writes_them() -> None:
    from ray.util.state.common import NodeState
    from ray.util.state.state_cli import AvailableFormat, output_with_format

    nodes = [{"node_id": "a", "is_head_node": True}, {"node_id": "b", "is_head_node": False}]
    written = output_with_format(nodes, schema=NodeState, format=AvailableFormat.JSON)
    counting = re.search(r"--format json \| (grep .+ \| wc -l)\)", TEXT)
    assert counting is not None
    found = subprocess.check_output(["bash", "-c", counting[1]], input=written, text=True, timeout=20)
    assert int(found) == 2
