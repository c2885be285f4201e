"""What the package uses of Ray beyond its public names is still there; no Ray is started.

A test for each name. It fails with the name and with what is lost without it, as when Ray is upgraded.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import ray.exceptions
import ray.train
import ray.tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch

from scalablevit.tracking.callback import OutboxCallback
from scalablevit.training import ray_internals
from scalablevit.training.attempts import AttemptsCallback
from scalablevit.tuning.sampling import TPESearcher
from scalablevit.tuning.search import SearchCallback
from scalablevit.tuning.trial import TrialCallback, reason_of

REPOSITORY = Path(__file__).parents[2]
INTERNALS = REPOSITORY / "platform" / "scalablevit" / "training" / "ray_internals.py"
PUBLIC_VARIABLES = {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
TRAIN_CONSTANTS = "ray.train.v2._internal.constants"


def broken(name: str, purpose: str) -> str:
    return f"Ray {ray.__version__}: {name} is not what it was in 2.60; it is used {purpose}"


def private(module: str, name: str, purpose: str):
    """A private name of Ray, or a failure that says what it is used for."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        pytest.fail(broken(f"{module}.{name} ({error})", purpose))


def launch(ours="launch"):
    """Our module, which cannot be imported without the classes that it derives from."""
    for name, module in ray_internals._CLASSES.items():
        private(module, name, "to start, watch and stop workers: nothing trains without it")
    return importlib.import_module(f"scalablevit.training.{ours}")


def hooks_of_ours():
    """Our classes with hooks of the controller, by name."""
    names = [("network", "NetworkCallback"), ("launch", "_Release"), ("launch", "_StopFileWatcher"),
             ("gauges", "GaugesCallback")]  # fmt: skip
    return {name: getattr(launch(module), name) for module, name in names}


def parameters(function) -> list[tuple[str, object]]:
    return [(each.name, each.kind) for each in inspect.signature(function).parameters.values()]


def source_of(module: str) -> str:
    """Text of a module, which is not imported."""
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    assert spec is not None and spec.origin is not None, broken(module, "to see in this test what it reads")
    return Path(spec.origin).read_text(encoding="utf-8")


# --- classes and methods of Ray Train


HOOKS = [
    ("WorkerGroupCallback", "NetworkCallback", "before_init_train_context", "to try the network between workers first"),
    ("WorkerGroupCallback", "_Release", "before_init_train_context", "to know what a group of workers holds"),
    ("ControllerCallback", "_Release", "before_controller_shutdown", "to give back what a lost group held"),
    ("WorkerGroupCallback", "_StopFileWatcher", "after_worker_group_training_start", "to know whom Ctrl-C has to tell"),
    ("WorkerGroupCallback", "_StopFileWatcher", "after_worker_group_poll_status", "to look for a Ctrl-C"),
    ("ControllerCallback", "GaugesCallback", "after_controller_start", "to export gauges from the start of a run"),
    ("ControllerCallback", "GaugesCallback", "before_controller_shutdown", "to end the gauges of a run that ended"),
]


@pytest.mark.parametrize(
    ("base", "ours", "hook", "purpose"), HOOKS, ids=[f"{ours}.{hook}" for _, ours, hook, _ in HOOKS]
)
def test_hooks_of_the_controller(base, ours, hook, purpose):
    theirs = getattr(private(ray_internals._CLASSES[base], base, purpose), hook, None)
    mine = getattr(hooks_of_ours()[ours], hook)
    assert theirs is not None, broken(f"{base}.{hook}", purpose)
    assert parameters(theirs) == parameters(mine), broken(f"the arguments of {base}.{hook}", purpose)
    awaited = inspect.iscoroutinefunction(theirs), inspect.iscoroutinefunction(mine)
    assert awaited[0] == awaited[1], broken(f"whether {base}.{hook} is awaited", purpose)


def test_every_hook_that_we_override_is_tested_above():
    ours = {(each.__name__, name) for each in hooks_of_ours().values() for name in vars(each) if name[0] != "_"}
    assert ours == {(each, hook) for _, each, hook, _ in HOOKS}


def test_the_controller_gets_callbacks_that_are_no_user_callbacks(tmp_path):
    given = launch()._Release()
    config = ray.train.RunConfig(name="a", storage_path=str(tmp_path), callbacks=[given])
    trainer = TorchTrainer(print, run_config=config)
    purpose = "to hand our hooks to the controller; without it Ctrl-C does not save, and a lost group keeps its room"
    assert given in trainer._create_default_callbacks(), broken("RunConfig.callbacks", purpose)


def test_no_process_is_started_for_data_sets(tmp_path):
    purpose = "to start no process of Ray Data for each group of workers: a start takes seconds longer"
    of_datasets = private("ray.train.v2._internal.callbacks", "DatasetsCallback", purpose)
    config = ray.train.RunConfig(name="a", storage_path=str(tmp_path))
    before = [type(each) for each in TorchTrainer(print, run_config=config)._create_default_callbacks()]
    assert before.count(of_datasets) == 1, broken("TorchTrainer._create_default_callbacks", purpose)
    after = ray_internals.without_datasets(TorchTrainer(print, run_config=config))._create_default_callbacks()
    assert [type(each) for each in after] == [each for each in before if each is not of_datasets]
    assert "callbacks=self._create_default_callbacks()" in inspect.getsource(TorchTrainer.fit), broken("fit", purpose)
    setup = inspect.signature(private(WORKER, "RayTrainWorker", purpose).init_train_context)
    assert setup.parameters["dataset_shard_provider"].default is None, broken("init_train_context", purpose)


def test_reasons_why_workers_did_not_start():
    """They decide what is tried again, and how often."""
    judge = launch()._classify_failure
    timeout, failed = ray_internals.WorkerGroupStartupTimeoutError(2), ray_internals.WorkerGroupStartupFailedError("x")
    for cause, kind in ((timeout, "unplaced"), (failed, "lost"), (RuntimeError("x"), "final")):
        error = ray.train.ControllerError(cause)
        assert isinstance(error, ray.train.TrainingFailedError)
        found = judge(error)[0]
        assert found == kind, broken(f"ControllerError of a {type(cause).__name__}", "to try again where that helps")


def test_a_failed_health_check_says_what_failed():
    purpose = "to note in attempts.jsonl why a worker was lost"
    wrapping = private("ray.train.v2._internal.exceptions", "WorkerHealthCheckFailedError", purpose)
    cause = ray.exceptions.RayActorError()
    found = ray_internals.failed_health_check(wrapping("wrapped", cause))
    assert found is cause, broken("WorkerHealthCheckFailedError", purpose)
    assert ray_internals.failed_health_check(cause) is cause


WORKER = "ray.train.v2._internal.execution.worker_group.worker"


def test_a_worker_is_asked_for_its_placement_group(monkeypatch):
    purpose = "to know what a group of workers holds, and to give it back when the group is lost"
    execute = getattr(private(WORKER, "Worker", purpose), "execute_async", None)
    assert execute is not None, broken("Worker.execute_async", purpose)
    inspect.signature(execute).bind("self", print)
    asked = []
    monkeypatch.setattr(ray, "get", lambda reference: "group")
    assert ray_internals.placement_group_of([SimpleNamespace(execute_async=asked.append)]) == "group"
    assert len(asked) == 1 and callable(asked[0])


def test_a_worker_is_told_to_save_and_finds_it(monkeypatch):
    """From `get_workers` by way of the actor to where `ray.train.get_preemption_info` looks."""
    purpose = "to have workers save at Ctrl-C and `runs.py stop`"
    group = private("ray.train.v2._internal.execution.worker_group.worker_group", "WorkerGroup", purpose)
    assert parameters(group.get_workers) == parameters(lambda self: None), broken("WorkerGroup.get_workers", purpose)
    assert "actor" in inspect.signature(private(WORKER, "Worker", purpose)).parameters, broken("Worker.actor", purpose)
    actor_class = private(WORKER, "RayTrainWorker", purpose)
    assert hasattr(actor_class, "mark_preempt"), broken("RayTrainWorker.mark_preempt", purpose)
    assert callable(getattr(ray.train, "get_preemption_info", None)), broken("get_preemption_info", purpose)

    context = SimpleNamespace(get_world_rank=lambda: 0, preemption_context=SimpleNamespace(preemption_info=None))
    monkeypatch.setattr(f"{WORKER}.get_train_context", lambda: context)
    actor = actor_class.__new__(actor_class)
    remote = SimpleNamespace(mark_preempt=SimpleNamespace(remote=actor.mark_preempt))
    ray_internals.mark_preempted(SimpleNamespace(actor=remote))

    utils = importlib.import_module("ray.train.v2._internal.execution.train_fn_utils")
    monkeypatch.setattr(utils, "get_internal_train_context", lambda: context)
    monkeypatch.setattr(utils.collective_impl, "broadcast_from_rank_zero", lambda info, **_: info)
    found = utils.DistributedTrainFnUtils.get_preemption_info(None)
    assert isinstance(found, ray.train.PreemptionInfo), broken("what mark_preempt leaves", purpose)


def test_fit_puts_its_sigint_handler_in_place_by_one_method():
    purpose = "to leave Ctrl-C to the job, which saves first"
    method = getattr(TorchTrainer, "_register_sigint_handler", None)
    assert method is not None, broken("TorchTrainer._register_sigint_handler", purpose)
    assert [name for name, _ in parameters(method)] == ["self", "controller"], broken(method.__name__, purpose)
    module = source_of("ray.train.v2.api.data_parallel_trainer")
    assert module.count("self._register_sigint_handler(") == 1, broken("its call in fit()", purpose)
    assert module.count("signal.signal(") == 1, broken("the only place where fit() handles signals", purpose)


# --- the cluster


def test_living_nodes_are_listed(monkeypatch):
    """That Ray's dictionaries have these keys, tests/pipeline/test_cluster.py shows on a cluster."""
    inspect.signature(ray.nodes).bind()
    purpose = "to know of which type a node is that an autoscaler started"
    assert private("ray._raylet", "RAY_NODE_GROUP_KEY", purpose) == ray_internals.NODE_GROUP, broken("its key", purpose)
    typed = {ray_internals.NODE_GROUP: "small", "ray.io/node-id": "a"}
    known = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}, "NodeManagerAddress": "10.0.0.1", "Labels": typed},
        {"NodeID": "b", "Alive": False, "Resources": {}, "NodeManagerAddress": "10.0.0.2", "Labels": {}},
        {"NodeID": "c", "Alive": True, "Resources": {}, "NodeManagerAddress": "10.0.0.3", "Labels": {}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: known)
    first, second = ray_internals.alive_nodes()
    assert first == ray_internals.Node("a", {"CPU": 2.0}, "10.0.0.1", "small")
    assert second == ray_internals.Node("c", {}, "10.0.0.3", "")


def test_the_head_is_known_by_its_resource():
    purpose = "to ask the head what its autoscaler may start"
    name = private("ray._common.constants", "HEAD_NODE_RESOURCE_NAME", purpose)
    assert ray_internals.is_head(ray_internals.Node("a", {name: 1.0}, "")), broken(name, purpose)
    assert not ray_internals.is_head(ray_internals.Node("a", {"node:10.0.0.1": 1.0}, ""))


def test_the_autoscalers_configuration_is_the_file_that_its_process_names(monkeypatch, tmp_path):
    """tests/cluster/test_autoscaling.py shows it with both autoscalers."""
    purpose = "to know which nodes an autoscaler may start; without it a cluster that starts from none is refused"
    services = source_of("ray._private.services")
    for flag in ('f"--gcs-address={gcs_address}"', '"--autoscaling-config=" + str(autoscaling_config)'):
        assert flag in services, broken(f"the monitor's {flag}", purpose)
    file = tmp_path / "config.yaml"
    file.write_text("available_node_types: {}")
    address = "10.0.0.9:6379"
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
    assert ray_internals.read_autoscaling_config() == ""
    names = [f"--gcs-address={address}", f"--autoscaling-config={file}"]
    with subprocess.Popen(
        ["sh", "-c", "echo; read line", *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as monitor:
        monitor.stdout.readline()  # else it may not have become that program yet
        found = ray_internals.read_autoscaling_config()
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.8:6379"))
        others = ray_internals.read_autoscaling_config()
    assert (found, others) == (file.read_text(), "")


def test_the_size_of_an_upload_is_that_of_what_ray_would_pack(tmp_path):
    purpose = "by `doctor`, to say how much a job would upload"
    packing = "ray._private.runtime_env.packaging"
    for module, name in ((packing, "_dir_travel"), (packing, "_get_excludes"), (packing, "GCS_STORAGE_MAX_SIZE"),
                         ("ray._private.ray_constants", "get_runtime_env_default_excludes")):  # fmt: skip
        private(module, name, purpose)
    for name, content in {"a.py": "xyz", "deep/b.py": "xy", "data/c.bin": "x" * 99, ".venv/d": "x" * 99, "e.pem": "x",
                          ".gitignore": "data/\n", ".rayignore": "*.pem\n"}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    size, limit = ray_internals.upload_size(tmp_path)
    assert (size, limit) == (3 + 2 + 6 + 6, 512 * 2**20), broken("what it packs", purpose)


def test_gpus_are_counted_without_torch():
    code = (
        "import sys; from scalablevit.training.ray_internals import count_gpus; assert 'ray' not in sys.modules; "
        "print(type(count_gpus()).__name__, 'torch' in sys.modules, 'ray.train' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "platform")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    purpose = "to refuse a job that does not fit on this machine before Ray is started"
    assert done.stdout.split() == ["int", "False", "False"], (
        broken("NvidiaGPUAcceleratorManager", purpose) + done.stderr
    )


def test_placement_groups_of_dead_creators_are_removed(monkeypatch):
    """Rows as Ray's table has them; tests/training/test_placement.py shows it on a Ray."""
    purpose = "to free what a lost controller held; without it new workers find no room"
    accessor = private("ray._raylet", "GlobalStateAccessor", purpose)
    assert callable(getattr(accessor, "get_placement_group_table", None)), broken("get_placement_group_table", purpose)
    state = private("ray._private.state", "state", purpose)
    assert hasattr(state, "_connect_and_get_accessor"), broken("state._connect_and_get_accessor", purpose)
    with pytest.raises(ray.exceptions.RaySystemError):  # by these arguments it would be connected
        state._connect_and_get_accessor()
    row = private("ray.core.generated.gcs_pb2", "PlacementGroupTableData", purpose)

    job, ids = bytes([1, 0, 0, 0]), [bytes([number] * 18) for number in range(1, 5)]
    fields = [
        {"creator_job_id": job, "creator_actor_dead": True},
        {"creator_job_id": job, "creator_actor_dead": False},
        {"creator_job_id": job, "creator_actor_dead": True, "is_detached": True},
        {"creator_job_id": bytes(4), "creator_actor_dead": True},
    ]
    try:  # protocol buffers refuse fields that they do not have
        rows = [
            row(placement_group_id=each, **given).SerializeToString() for each, given in zip(ids, fields, strict=True)
        ]
    except ValueError as error:
        pytest.fail(broken(f"PlacementGroupTableData ({error})", purpose))
    removed = []
    connected = SimpleNamespace(get_placement_group_table=lambda: rows)
    monkeypatch.setattr(state, "_connect_and_get_accessor", lambda: connected)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=job.hex))
    groups = importlib.import_module("ray.util.placement_group")  # as an attribute it is a function of that name
    monkeypatch.setattr(groups, "remove_placement_group", lambda group: removed.append(group.id))
    ray_internals.remove_orphans()
    assert [each.binary() for each in removed] == ids[:1], broken("PlacementGroupTableData", purpose)


# --- environment variables


VARIABLES = [
    *((name, TRAIN_CONSTANTS) for name in ray_internals.TRAIN_VARIABLES),
    ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "ray.tune.utils.callback"),
    ("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "ray.tune.execution.experiment_state"),
    ("TUNE_GLOBAL_CHECKPOINT_S", "ray.tune.execution.tune_controller"),
    ("RAY_AIR_NEW_OUTPUT", "ray.tune.experimental.output"),
    ("TUNE_DISABLE_SIGINT_HANDLER", "ray.tune.tune"),
    # of infra/head.py
    ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "ray._private.ray_constants"),
    ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "ray._private.ray_constants"),
    ("RAY_JOB_STOP_WAIT_TIME_S", "ray.dashboard.modules.job.job_supervisor"),
    ("AUTOSCALER_METRIC_PORT", "ray.autoscaler._private.constants"),
    ("DASHBOARD_METRIC_PORT", "ray.dashboard.consts"),
]


@pytest.mark.parametrize(("name", "module"), VARIABLES, ids=[name for name, _ in VARIABLES])
def test_environment_variables_are_still_read(name, module):
    assert f'"{name}"' in source_of(module), broken(
        f"{name} of {module}", "as a setting, which Ray now ignores; the comment beside it says what for"
    )


def test_every_variable_is_tested_above():
    """Those of the package and of infra/head.py."""
    package = {*ray_internals.TRAIN_VARIABLES, *ray_internals.TUNE_VARIABLES}
    head = variables(REPOSITORY / "infra" / "head.py") - PUBLIC_VARIABLES
    ports = {"AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"}
    assert head and package | head | ports == {name for name, _ in VARIABLES}


def test_variables_of_train_reach_the_controller():
    passed = private(TRAIN_CONSTANTS, "ENV_VARS_TO_PROPAGATE", "to set what Ray Train has no arguments for")
    missing = ray_internals.TRAIN_VARIABLES.keys() - passed
    assert not missing, broken(f"the list of variables that the controller gets ({missing})", "for these settings")


def test_a_variable_that_is_set_stays(monkeypatch):
    monkeypatch.setattr(os, "environ", {"SCALABLEVIT_TEST_SET": "theirs"})
    ray_internals.set_defaults({"SCALABLEVIT_TEST_SET": "ours", "SCALABLEVIT_TEST_UNSET": "ours"})
    assert os.environ == {"SCALABLEVIT_TEST_SET": "theirs", "SCALABLEVIT_TEST_UNSET": "ours"}


def test_a_submitted_job_is_told_who_it_is():
    purpose = "to stop a run by its job, and not to set a variable twice"
    name = private("ray._private.runtime_env.constants", "RAY_JOB_CONFIG_JSON_ENV_VAR", purpose)
    assert name == ray_internals.JOB_VARIABLE, broken(ray_internals.JOB_VARIABLE, purpose)
    supervisor = source_of("ray.dashboard.modules.job.job_supervisor")
    assert '"runtime_env": ' in supervisor and '"metadata": ' in supervisor, broken("what the variable holds", purpose)
    assert '= "job_submission_id"' in source_of("ray.dashboard.modules.job.common"), broken("its metadata", purpose)


# --- Ray Tune, and public classes for developers whose methods we override


def test_tune_marks_the_result_that_it_repeats():
    purpose = "to tell a finished trial from one that a scheduler stopped"
    mark = private("ray.tune.result", "RESULT_DUPLICATE", purpose)
    assert ray_internals.function_has_returned({mark: True}), broken("RESULT_DUPLICATE", purpose)
    assert not ray_internals.function_has_returned({"score": 1.0})


OVERRIDDEN = [
    (ray.train.UserCallback, OutboxCallback, "after_report", "to track metrics"),
    (ray.train.UserCallback, AttemptsCallback, "after_report", "to note when workers start"),
    (ray.train.UserCallback, AttemptsCallback, "after_exception", "to note why workers were lost"),
    (TuneReportCallback, TrialCallback, "after_report", "to hand results of several workers to Tune"),
    (OptunaSearch, TPESearcher, "suggest", "to number a search's trials"),
    (OptunaSearch, TPESearcher, "save", "to write no snapshots of the searcher"),
    (OptunaSearch, TPESearcher, "restore", "to read no snapshots of the searcher"),
    *(
        (ray.tune.Callback, SearchCallback, f"on_trial_{event}", "to record trials")
        for event in ("start", "result", "complete", "error")
    ),
]


@pytest.mark.parametrize(
    ("base", "ours", "method", "purpose"),
    OVERRIDDEN,
    ids=[f"{ours.__name__}.{method}" for _, ours, method, _ in OVERRIDDEN],
)
def test_methods_that_we_override(base, ours, method, purpose):
    theirs = getattr(base, method, None)
    assert theirs is not None, broken(f"{base.__name__}.{method}", purpose)
    assert parameters(theirs) == parameters(getattr(ours, method)), broken(f"{base.__name__}.{method}", purpose)


def test_tune_tells_of_a_trial_what_we_ask():
    from ray.tune.experiment import Trial

    assert isinstance(inspect.getattr_static(Trial, "error_file"), property), broken("Trial.error_file", "for reasons")
    text = inspect.getsource(Trial)
    for name in ("trial_id", "config"):
        assert f"self.{name} = " in text, broken(f"Trial.{name}", "to know a trial by its number")
    assert hasattr(Trial, "last_result"), broken("Trial.last_result", "to know how a trial ended")


@pytest.mark.parametrize("name", ["ActorDiedError", "ActorUnavailableError", "NodeDiedError"])
def test_a_lost_trial_is_known_by_the_error_in_its_traceback(name):
    assert issubclass(getattr(ray.exceptions, name), Exception), broken(
        f"ray.exceptions.{name}", "to run a trial again"
    )
    assert reason_of(f"Traceback:\nray.exceptions.{name}: gone")[1] is False


# --- nothing of the kind elsewhere


def is_private(name: str) -> bool:
    """Whether a dotted name of Ray is not public, or has no public meaning (see `alive_nodes`)."""
    parts = name.split(".")
    hidden = any(part.startswith("_") and not part.endswith("__") for part in parts)
    return parts[0] == "ray" and (hidden or name.startswith(("ray.train.v2", "ray.core")) or name == "ray.nodes")


def private_names(file: Path) -> set[str]:
    """Dotted private names of Ray that a file imports or reaches from `ray`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and (name := dotted(node)):
            found.add(name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # of import_module, monkeypatch
            found |= set(re.findall(r"\bray(?:\.\w+)+", node.value)) if " " not in node.value else set()
    return {name for name in found if is_private(name)}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of such an expression; empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def variables(file: Path) -> set[str]:
    """Environment variables of Ray that a file names in its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= set(re.findall(r"^(?:RAY|TUNE)_[A-Z_]+$", node.value))
    return found


def test_no_other_file_uses_private_names_of_ray():
    """Attributes of objects that are not reached from `ray`, ruff refuses where they begin with `_`."""
    files = [file for top in ("platform", "pipelines", "infra") for file in sorted((REPOSITORY / top).rglob("*.py"))]
    assert len(files) > 100
    wrong = {str(file.relative_to(REPOSITORY)): names for file in files
             if file != INTERNALS and (names := private_names(file))}  # fmt: skip
    assert not wrong, f"these belong into training/ray_internals.py, with the reason and a test here: {wrong}"
    head = REPOSITORY / "infra" / "head.py"  # it stands alone; its variables are tested above
    wrong = {str(file.relative_to(REPOSITORY)): names for file in files
             if file not in (INTERNALS, head) and (names := variables(file) - PUBLIC_VARIABLES)}  # fmt: skip
    assert not wrong, f"these variables belong into training/ray_internals.py: {wrong}"


@pytest.mark.parametrize(
    "line",
    ["from ray._private.state import state", "import ray.train.v2.api.config", "from ray import _raylet",
     "from ray.train.v2 import api", "ray._private.worker.global_worker", "ray.train._internal.session.get_session()",
     "ray.nodes()", "import_module('ray._private.services')", "from ray.core.generated import gcs_pb2"],
)  # fmt: skip
def test_a_private_name_is_found(line, tmp_path):
    (tmp_path / "file.py").write_text(line)
    assert private_names(tmp_path / "file.py")


@pytest.mark.parametrize(
    "line", ["from ray import tune", "ray.get(ray.__version__)", "self._ray._x", "import raylib._x"]
)
def test_public_names_are_not(line, tmp_path):
    (tmp_path / "file.py").write_text(line)
    assert not private_names(tmp_path / "file.py")
