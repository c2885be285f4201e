"""The image of infra/Dockerfile, for real: built, and started as a pod of infra/kuberay is, where the demo trains.

No registry and no Kubernetes: the base is a bootstrapped Debian, and one container, confined as `restricted` asks, is
head and worker. Its variables, volumes and ports are those of the job `cpu-full`.
"""

import json
import secrets
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.container import ADDRESS, Container
from harness.image import FOLDER, Image, build, missing
from harness.kustomize import render
from harness.pages import REPOSITORY

from scalablevit.run_files import CHECKPOINTS, MANIFEST, RESULT

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(2400),
              pytest.mark.skipif(bool(missing()), reason=missing())]  # fmt: skip

TRAIN_S = 900
SMALL = ["training.epochs=1", "training.evaluate_every={epochs: 1}",
         "stages.pretrain.optimizer.schedule.warmup_epochs=0", "stages.segment.optimizer.schedule.warmup_steps=0",
         "stages.detect.optimizer.schedule={kind: multistep, warmup_steps: 0, decay_epochs: [0.5]}",
         "data.shapes={train_images: 128, val_images: 32, image_size: 96}"]  # fmt: skip
"""A few steps of each stage of the demo."""
STEPS = {"pretrain": 2, "segment": 4, "detect": 8}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    try:
        yield build()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """The specification of the demo's job on Kubernetes."""
    objects = render(REPOSITORY / "infra" / "kuberay" / "jobs" / "cpu-full")
    (found,) = (each for each in objects if each["kind"] == "RayJob")
    spec: dict[str, Any] = found["spec"]
    return spec


def started_as(job: dict[str, Any], image: Image, volumes: Path) -> Container:
    """A container with what the head's container and a worker's have."""
    cluster = job["rayClusterSpec"]
    pods = [each["template"]["spec"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    containers = [pod["containers"][0] for pod in pods]
    variables = dict(each.split("=", 1) for each in image.config["Env"])
    # a runtime takes it from the image's list of users
    users = (line.split(":") for line in (image.root / "etc" / "passwd").read_text().splitlines())
    variables["HOME"] = next(fields[5] for fields in users if fields[2] == image.config["User"])
    variables |= {each["name"]: each["value"] for container in containers for each in container["env"]}
    variables |= {"RAY_AUTH_MODE": cluster["authOptions"]["mode"], "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    paths = {mount["mountPath"] for container in containers for mount in container["volumeMounts"]} - {"/dev/shm"}  # noqa: S108
    return Container(image.root, pods[0]["securityContext"]["runAsUser"], image.config["WorkingDir"], variables,
                     {path: volumes / path.strip("/").replace("/", "-") for path in paths})  # fmt: skip


def start_options(job: dict[str, Any]) -> str:
    """Options of `ray start` as KubeRay makes them of the manifest, with CPUs for the demo's two workers."""
    given = job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] | {"num-cpus": "2"}
    return shlex.join(f"--{name}={value}" for name, value in given.items())


def test_it_is_one_layer_on_its_base_and_needs_no_root(image: Image) -> None:
    assert image.layers == 2
    assert image.config["User"] == "1000"
    (packages,) = (path.parent for path in image.root.glob("usr/local/lib/python3.11/*/ray/__init__.py"))
    # else each process compiles them for itself: the root file system of a job is read-only
    assert list((packages / "__pycache__").glob("__init__.*.pyc"))


def test_settings_of_this_machine_stay_outside(image: Image) -> None:
    for file in ("etc/pip.conf", "etc/uv/uv.toml"):
        assert (image.root / file).read_text() == ""  # an empty place for the mount
    assert {each.split("=")[0] for each in image.config["Env"]} == {"PATH", "PYTHONUNBUFFERED", "SCALABLEVIT_ROOT"}


def test_the_demo_trains_as_in_a_pod(image: Image, job: dict[str, Any]) -> None:
    volumes, log = FOLDER / "volumes", FOLDER / "container.log"
    container = started_as(job, image, volumes)
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    health, ports = head["startupProbe"]["httpGet"], {each["name"]: each["containerPort"] for each in head["ports"]}
    command = f"{job['entrypoint'].strip()} {shlex.join(SMALL)}"
    # the head as KubeRay starts it, its probe, Prometheus' request, and then what KubeRay's submitter runs
    code = container.run(f"""
        set -eu
        grep -E '^(Uid|CapBnd|CapEff|NoNewPrivs)' /proc/self/status
        ! touch /app/written && ! touch /written
        ray start --head {start_options(job)} --block &
        until wget -q --tries 1 -T 5 -O - http://{ADDRESS}:{health['port']}{health['path']}; do sleep 1; done
        wget -q -O /storage/metrics --retry-connrefused http://{ADDRESS}:{ports['metrics']}/metrics
        ray job submit --address http://{ADDRESS}:{ports['dashboard']} -- {command}
        """, log, TRAIN_S)  # fmt: skip
    output = log.read_text(errors="replace")
    assert code == 0, output[-5000:]
    status = dict(line.split(":\t", 1) for line in output.splitlines()[:4])
    assert status == {"Uid": "1000\t1000\t1000\t1000", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
    assert "\nray_node_cpu_count" in (volumes / "storage" / "metrics").read_text()
    runs = volumes / "storage" / "scalablevit" / "runs"
    for stage, steps in STEPS.items():
        (run,) = runs.glob(f"demo-{stage}-*")
        assert json.loads((run / RESULT).read_text())
        checkpoints = sorted(path.parent.name for path in (run / CHECKPOINTS).glob(f"*/{MANIFEST}"))
        assert checkpoints and checkpoints[-1].startswith(f"step_{steps:09d}-")
