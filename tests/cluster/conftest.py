"""What several modules share, started once: an object store, a tracking server, and a job that uses both."""

from collections.abc import Iterator

import pyarrow.fs
import pytest
from harness import hosts, tracking_kit
from harness.mlflow_server import free_port
from harness.object_store import BUCKET, ObjectStore, seaweedfs, weed
from harness.two_hosts import STEPS, HostJob, recipe, two_hosts, wait_for

from scalablevit.run_files import MANIFEST

STORE_PORT, KIT_PORT = 8333, 5000
"""Of the first host, where the hosts reach the services."""
STORAGE = f"{BUCKET}/lost"
QUICK_PLACEMENT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
"""How soon a stage that asks for two workers, before the lost host is given up, asks again for one: not after 60 s."""
JOB_S = 240


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """SeaweedFS."""
    if weed() is None:
        pytest.skip("no `weed` of SeaweedFS (make mlflow-env; SCALABLEVIT_WEED names the program)")
    with seaweedfs(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tracking_kit.TrackingKit]:
    """The tracking server of infra/mlflow."""
    if tracking_kit.missing():
        pytest.skip(tracking_kit.missing())
    with tracking_kit.tracking_kit(tmp_path_factory.mktemp("kit") / "server", free_port()) as found:
        yield found


@pytest.fixture(scope="session")
def lost(store: ObjectStore, kit: tracking_kit.TrackingKit, tmp_path_factory: pytest.TempPathFactory) -> HostJob:
    """A job of the user `trainer` over two hosts, which has ended: one was lost within its only stage."""
    if hosts.missing():
        pytest.skip(hosts.missing())

    def saved() -> bool:
        """Whether there is a checkpoint."""
        selector = pyarrow.fs.FileSelector(STORAGE, recursive=True, allow_not_found=True)
        return any(info.base_name == MANIFEST for info in store.filesystem().get_file_info(selector))

    folder = tmp_path_factory.mktemp("h")
    relays = {STORE_PORT: store.port, KIT_PORT: kit.port}
    variables = {**store.variables(), "AWS_ENDPOINT_URL": f"http://{hosts.NETWORK}.1:{STORE_PORT}"}
    trainer = {"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": kit.password("trainer")}
    with two_hosts(folder, relays, variables) as cluster:
        cluster.start_node(cluster.hosts[1])
        chosen = recipe(cluster.folder, STEPS, checkpoint_every=10)
        chosen["cluster"]["storage"] = f"s3://{STORAGE}"
        chosen["tracking"] = {"uri": f"http://{hosts.NETWORK}.1:{KIT_PORT}", "experiment": "kit"}
        job = cluster.job(chosen, "lost", **trainer, **QUICK_PLACEMENT)
        wait_for(saved, JOB_S, job.log)
        cluster.hosts[1].end_processes()
        job.ended(JOB_S)
    return job
