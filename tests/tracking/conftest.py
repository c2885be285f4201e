"""MLflow stores for the tracking tests: one SQLite file for most, a real server for what needs one."""

from collections.abc import Callable, Iterator

import pytest
from harness.mlflow_server import Server
from mlflow import MlflowClient
from mlflow.entities import Run

from scalablevit.tracking.connection import connect
from scalablevit.tracking.tags import UID


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow likes to leave files in the current folder; nothing of ours may make it do so."""
    folder = tmp_path_factory.mktemp("current")
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite store; tests keep apart by experiments and names of their own."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def client(uri: str) -> MlflowClient:
    return connect(uri)


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def run_of() -> Callable[[MlflowClient, str, str], Run]:
    """The one run that carries a uid."""

    def find(client: MlflowClient, experiment: str, uid: str) -> Run:
        place = client.get_experiment_by_name(experiment)
        assert place is not None
        (run,) = client.search_runs([place.experiment_id], f"tags.`{UID}` = '{uid}'")
        return client.get_run(run.info.run_id)

    return find


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()
