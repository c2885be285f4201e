"""Every command, recipe, space, snippet, path and link of the README pages holds."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import click
import pytest
import torch
import yaml
from harness.pages import PAGES, REPOSITORY, anchors, blocks, commands, links, paths, prose, written
from harness.toys import SIDE, finished_run, register
from harness.user_code import packages_in, write_package

from scalablevit.cli.new_recipe import TEMPLATES
from scalablevit.cli.tree import parse
from scalablevit.cli.verbs import VERBS
from scalablevit.config.data import Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.config.space_loading import load_search
from scalablevit.config.task_info import TASKS
from scalablevit.data.shapes import write_shapes
from scalablevit.pipeline import plan_summary, stage_model
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.runs.progress import format_evaluation
from scalablevit.runs.status import Status
from scalablevit.tracking import tags
from scalablevit.tracking.champion import move_champion, write_tags

MODEL, RUN = "my-pretrain", "toy-pretrain-0"
LANGUAGES = {"sh", "console", "text", "yaml", "python"}
TRAINS = ("full.py", "pretrain.py", "segment.py", "detect.py", "tune.py", "analyse.py ablation")
REFERENCE = REPOSITORY / "docs" / "reference"
"""Pages that docs/reference.py makes; not in the repository."""
NO_DRY_RUN = (
    "check_data.py",
    "doctor.py",
    "plan.py",
    "recipe.py list",
    "recipe.py new",
    "recipe.py schema",
    "replay.py",
    "runs.py list",
    "runs.py show",
)
"""They have no `--dry-run`."""
STAGE_OF = {"image_folder": "pretrain", "tar_shards": "pretrain", "coco": "detect"}
"""Stage of chain.yaml that a section of data belongs to; all other sections are tried on `segment`."""
SMALL_DEMO = "data.shapes={train_images: 40, val_images: 20, image_size: 96}"
WARMED_UP = {"full.py": ("segment", "detect"), "segment.py": ("segment",), "detect.py": ("detect",)}
"""Stages of the demo, by the script that runs them, whose warm-up is longer than their training on so few images."""
SMALL_PLAN = ("model.name=scalablevit_tiny", "training.global_batch_size=16")
PRINTED = {
    "pretrain.py --dry-run": r"stage pretrain\n  data ",
    "detect.py --dry-run": r"objects, small",
    "tune.py --space demo --dry-run": r"search demo\n",
    f"check_data.py '{SMALL_DEMO}'": r"segment/train: ",
}
"""Commands whose output pages show, and how it begins there."""
EXIT_2 = {
    "full.py optimizer.lrr": "did you mean 'lr'?",
    "full.py training.global_batch=": "was renamed",
    "full.py model.pretrained": "unknown key",
    "full.py optimizer.momentum": "has no effect",
    "predict.py http://127.0.0.1:5001": "the server cannot be asked",
    "export.py": "exports for any size begin at 33x33",
    "full.py training.batch_size": "write training.global_batch_size",
    "full.py model.freeze": "freezing layers is not available yet",
    "recipe.py new": "is there already",
    "runs.py stop": f"run {RUN} has ended already",
    "replay.py": "holds no step.json",
    f"report.py {RUN}": "there is no job, stage or search in this folder",
}
"""What is answered instead of exit code 0, by the command's beginning: to a mistake that a page shows, and where a
command needs more than a toy run."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder with all that the pages' commands name, in which they are given."""

    folder: Path

    @property
    def root(self) -> Path:
        """The platform's root."""
        return self.folder / "root"

    def filled(self, text: str) -> str:
        """A page's text with its placeholders filled in; one that nobody knows stays, and is complained about."""
        folder = str(self.folder)
        known = {
            "/path/to/root": str(self.root), "/path/to/": f"{folder}/", "/nfs/scalablevit": str(self.root),
            "<recipe or best_recipe.yaml>": "pipelines/recipes/cifar10.yaml",
            "<folder>": f"{folder}/all", "<held out>": f"{folder}/all", "<judge>": f"{folder}/all",
            "<full>": "full-search", "<asha>": "asha-search",
            "<name>": MODEL, "demo-detect": MODEL, "objects-detect": MODEL,
            "<run>/": f"{self.root}/runs/{RUN}/", "<run>": RUN, "<n>": "7", "<job>": "raysubmit_1",
            "<head>": "127.0.0.1", "<mlflow server>": "127.0.0.1", "<user>": "u", "<password>": "p",
            "<storage>": "127.0.0.1", "<key>": "k", "<secret>": "s",
            "key.sub=value": "training.seed=1", "seed=N": "seed=1",
            "--recipe R": "--recipe my.yaml", "--space S": "--space spaces/space.yaml", "--root ...": "--root root",
            "IMAGES --out DIR": "images --out next",
        }  # fmt: skip
        for placeholder, value in known.items():
            text = text.replace(placeholder, value)
        assert not re.search(r"<[a-z][^<>]*>|\.\.\.", text), f"a placeholder that this test does not know: {text}"
        return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The place, as the current folder."""
    place = Place(tmp_path_factory.mktemp("place"))
    write_data(place)
    write_recipes(place)
    register_models(place)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        patch.setenv("SCALABLEVIT_ROOT", str(place.root))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(sys, "path", list(sys.path))  # a loaded model puts its copy of the code there
        patch.setattr(stage_model, "model_cost", once_for_each_model(stage_model.model_cost))
        patch.setattr(plan_summary, "model_facts", once_for_each_plan(plan_summary.model_facts))
        yield place
    torch.set_num_threads(threads)


def once_for_each_model(count: Callable[[str, Stage, tuple[str, ...]], str]) -> Callable[..., str]:
    """What an evaluation prints of a model's cost: counting takes half a second, and most commands name the same."""
    lines: dict[str, str] = {}

    def model_cost(name: str, stage: Stage, classes: tuple[str, ...]) -> str:
        key = _model_key(stage, classes)
        if key not in lines:
            lines[key] = count(name, stage, classes)
        return lines[key]

    return model_cost


def once_for_each_plan(count: Callable[[ResolvedStage], dict[str, str]]) -> Callable[[ResolvedStage], dict[str, str]]:
    """What a plan prints of a model, counted once for each model and batch."""
    facts: dict[str, dict[str, str]] = {}

    def model_facts(resolved: ResolvedStage) -> dict[str, str]:
        training = resolved.stage.training
        batch = f"{training.global_batch_size} {training.accumulation_steps} {resolved.stage.cluster.workers}"
        key = f"{batch}\n{_model_key(resolved.stage, resolved.classes)}"
        if key not in facts:
            facts[key] = count(resolved)
        return facts[key]

    return model_facts


def _model_key(stage: Stage, classes: tuple[str, ...]) -> str:
    parts = [part.model_dump_json() for part in (stage.model, stage.task)]
    parts.append(stage.data.model_dump_json(exclude={"root", "shapes", "train", "val"}))
    return "\n".join([*parts, str(stage.training.compile), *classes])


def write_data(place: Place) -> None:
    """Small sets in the layouts that the pages describe, and images to answer."""
    data = place.root / "data"
    write_shapes(Shapes(train_images=24, val_images=12, image_size=SIDE), data)
    for name, kind in (("photos", "classification"), ("scenes", "segmentation"), ("objects", "detection"),
                       ("mydata", "classification"), ("all", "classification"),
                       ("root/data/cifar10", "classification"), ("all/segmentation", "segmentation"),
                       ("all/classification-photos", "classification")):  # fmt: skip
        shutil.copytree(data / kind, place.folder / name)
    shutil.copytree(place.folder / "all", data / "photos_camvid")
    (place.folder / "images").mkdir()
    for number, file in enumerate(sorted((data / "classification" / "val").rglob("*.jpg"))[:3]):
        shutil.copy(file, place.folder / "images" / f"{number}.jpg")
    shutil.copy(place.folder / "images" / "0.jpg", place.folder / "photo.jpg")


def write_recipes(place: Place) -> None:
    """The pages' recipes and space as files, beside the repository's folders."""
    for name in ("pipelines", "platform", "tune_spaces", "infra", "tests"):
        (place.folder / name).symlink_to(REPOSITORY / name)
    (place.folder / "spaces").mkdir()
    for text in map(place.filled, written("yaml")):
        tree = yaml.safe_load(text)
        if "name" in tree:
            (place.folder / f"{tree['name']}.yaml").write_text(text)
        elif "parameters" in tree:
            (place.folder / "spaces" / "space.yaml").write_text(text)


def register_models(place: Place) -> None:
    """Two equal versions of the model of my.yaml, one of them the champion, and the first one's run as finished."""
    own = (f"data.root={place.folder}/mydata", "data.train.images=train", "data.val.images=val",
           f"model.name={model_of(place.folder / 'my.yaml')}")  # fmt: skip
    for run in (RUN, "as-good"):
        given = [f"stages.pretrain.{each}" for each in own]
        register(place.root, finished_run(place.root, "pretrain", *given, run=run), MODEL)
    uri = f"sqlite:///{place.root}/mlflow.db"
    move_champion(uri, MODEL, None, 1)
    write_tags(uri, MODEL, 1, {tags.PREVIOUS_CHAMPION: "2"})
    folder = place.root / "runs" / RUN
    status = Status(run=RUN, state="finished", why="", stage="pretrain", step=1, total=1, unit="steps", best=None,
                    host="here", process=1, job="", started=1.0, updated=2.0, ended=2.0, folder=str(folder),
                    tracking=uri)  # fmt: skip
    (folder / "status.json").write_text(json.dumps(dataclasses.asdict(status)))


def model_of(recipe: Path) -> str:
    """Return `model.name` of a recipe of one stage."""
    (stage,) = load_recipe(recipe).stages.values()
    return stage.model.name


# --- what a command is checked by ---


def check(command: str, place: Place, *, mention: bool = False) -> None:
    """Complain by an AssertionError (or what the command's own parser raises) about a command that does not hold."""
    words = shlex.split(command, comments=True)
    environment = list(takewhile(re.compile(r"[A-Z_]+=").match, words))
    words = words[len(environment) :]
    program, arguments = Path(words[0]).name, words[1:]
    if program.endswith(".py"):  # without `python` in tables
        program, arguments = "python", [f"pipelines/{program}" if "/" not in words[0] else words[0], *arguments]
    assert program in CHECKS, f"no check for {program}"
    if program == "python" and arguments[0].startswith("tests/"):
        assert "PYTHONPATH=platform" in environment, "scripts in tests/ do not look for the package themselves"
    try:
        CHECKS[program](arguments, place)
    except click.MissingParameter:
        assert mention, command


def check_make(arguments: list[str], place: Place) -> None:
    # without the outer make's flags, when the tests are run by `make test`
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=REPOSITORY, env=env, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for given in (word.removeprefix("ARGS=") for word in arguments if word.startswith("ARGS=")):
        assert arguments[0] == "full"
        check(f"python pipelines/full.py {given}", place)


def check_python(arguments: list[str], place: Place) -> None:
    script, *given = arguments
    folder, name = Path(script).parts[0], Path(script).name
    if folder == "pipelines":
        check_pipeline(name, given)
    elif script == "infra/head.py":
        runpy.run_path(script)["parse"](given)
    elif given:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *given])
            runpy.run_path(script)["parse"]()
    else:
        assert folder == "tests" and '__name__ == "__main__"' in Path(script).read_text()


def check_pipeline(name: str, given: list[str]) -> None:
    """Run an entry script where it stands, without changing anything."""
    command = " ".join([name, *given[:1]])
    if name == "analyse.py" and given[0] != "ablation":  # tests/cli/test_analyse.py runs them
        parse("analyse", given)
        return
    code, said = run_shortened(name, *given)
    expected = next((text for begin, text in EXIT_2.items() if command.startswith(begin)), None)
    if expected is None:
        assert code == 0, said
    else:
        assert code == 2 and expected in said, said


def run_shortened(name: str, *given: str) -> tuple[object, str]:
    """`run_script` of an entry script as a dry run, with few images of the demo."""
    command = " ".join([name, *given[:1]])
    added = [] if command.startswith(NO_DRY_RUN) or "--dry-run" in given else ["--dry-run"]
    recipe = next((word for before, word in pairwise(given) if before in ("--recipe", "--space")), "demo.yaml")
    if command.startswith(TRAINS) and Path(recipe).stem == "demo":  # the file, or its name among the shipped ones
        added.append(SMALL_DEMO)
        added += [f"stages.{stage}.optimizer.schedule.warmup_steps=1" for stage in WARMED_UP.get(name, ())]
        added += ["--stages", "pretrain"] if name == "analyse.py" else []
    if any(word.startswith("stages.segment.training.epochs=") for word in given):  # of the few pictures here
        added.append("stages.segment.optimizer.schedule.warmup_steps=1")
    if name == "plan.py":
        added += SMALL_PLAN
    return run_script(f"pipelines/{name}", *given, *added)


@cache
def run_script(script: str, *given: str) -> tuple[object, str]:
    """Exit code and what was printed of a script run in this process, which has the heavy imports."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.setattr(sys, "argv", [script, *given])
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as ended:
            return ended.code, said.getvalue()
    return "no exit code", said.getvalue()


def check_scalablevit(arguments: list[str], place: Place) -> None:
    """A verb does what its script does."""
    verb, *given = arguments
    assert verb in VERBS
    parse(verb, given)
    if verb != "completion":
        check_pipeline(f"{verb.replace('-', '_')}.py", given)


def check_pip(arguments: list[str], place: Place) -> None:
    """tests/cli/test_wheel.py does it."""
    assert arguments == ["install", "."]


def check_pytest(arguments: list[str], place: Place) -> None:
    if arguments[:1] == ["-m"]:
        assert arguments[1] in ("long", "rotating"), arguments[1]
        arguments = arguments[2:]
    for argument in arguments:
        assert (REPOSITORY / argument).exists(), argument


def check_ray(arguments: list[str], place: Place) -> None:
    from ray.scripts.scripts import cli

    given, _, entrypoint = " ".join(map(shlex.quote, arguments)).partition(" -- ")
    parse_click(cli, shlex.split(given) + (["--", "true"] if entrypoint else []))
    if entrypoint:
        check(entrypoint, place)


def check_mlflow(arguments: list[str], place: Place) -> None:
    from mlflow.cli import cli

    parse_click(cli, arguments)


def parse_click(command: click.Command, words: list[str]) -> None:
    """Raises click's own exceptions."""
    name = ""
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, name
        command = found
    command.make_context(name, words)


def check_docker(arguments: list[str], place: Place) -> None:
    """The files for containers begin with these commands."""
    files = (REPOSITORY / "infra" / name for name in ("Dockerfile", "mlflow/compose.yaml"))
    assert any(f"#   docker {' '.join(arguments)}\n" in file.read_text() for file in files)


def check_kubectl(arguments: list[str], place: Place) -> None:
    """What is created is in infra/kuberay, or is named there."""
    kuberay = REPOSITORY / "infra" / "kuberay"
    files = "\n".join(file.read_text() for file in sorted(kuberay.rglob("*.yaml")))
    match arguments[2:] if arguments[:1] == ["-n"] else arguments:
        case ["apply", "-f", file]:
            assert (REPOSITORY / file).is_file()
        case ["kustomize", folder] | ["apply", "-k", folder]:
            assert (REPOSITORY / folder).parent == kuberay / "jobs" and (REPOSITORY / folder).is_dir()
        case ["delete", "rayjob", name]:
            assert f"\n  name: {name}\n" in files
        case ["create", "secret", "generic", name, *literals]:
            assert re.search(rf"[{{ ](name|secretName): {name}\b", files)
            keys = {"auth_token", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "AWS_ENDPOINT_URL",
                    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}  # fmt: skip
            assert all(each.startswith("--from-literal=") and each.split("=")[1] in keys for each in literals)
        case _:
            raise AssertionError("no check for this")
    assert arguments[0] != "-n" or f"\n  name: {arguments[1]}\n" in files


def check_sbatch(arguments: list[str], place: Place) -> None:
    """Options of Slurm, our script, and the command of a job."""
    options = list(takewhile(lambda word: word.startswith("--"), arguments))
    script, *command = arguments[len(options) :]
    assert all(re.fullmatch(r"--(nodes|gpus-per-node|time)=[\d:]+", option) for option in options)
    assert script == "infra/slurm.sh"
    check(shlex.join(command), place)


def check_scancel(arguments: list[str], place: Place) -> None:
    """The signal that the script saves at, to the script alone."""
    assert arguments[:-1] == ["--signal=TERM", "--batch"]
    assert "#SBATCH --signal=B:TERM@" in (REPOSITORY / "infra" / "slurm.sh").read_text()


def check_prometheus(arguments: list[str], place: Place) -> None:
    """Prometheus and promtool; tests/infra/test_metrics.py and test_prometheus.py run them."""
    assert arguments[:-1] in (["--config.file"], ["test", "rules"])
    assert (REPOSITORY / arguments[-1]).is_file()


def check_weed(arguments: list[str], place: Place) -> None:
    """tests/cluster/test_object_storage.py runs it."""
    options = (REPOSITORY / "infra/mlflow/local.py").read_text() + "-s3.ip.bind"
    assert arguments[0] == "server" and all(each.partition("=")[0] in options for each in arguments[1:])


def check_mkdir(arguments: list[str], place: Place) -> None:
    assert len(arguments) == 1


def check_export(arguments: list[str], place: Place) -> None:
    assert all(re.fullmatch(r"[A-Z_]+=\S+", each) for each in arguments)


def check_source(arguments: list[str], place: Place) -> None:
    """`make setup` makes it."""
    makefile = (REPOSITORY / "Makefile").read_text()
    assert arguments == [".venv/bin/activate"]
    assert "VENV := .venv\n" in makefile and re.search(r"-m venv \S+ \$\(VENV\)", makefile)


def check_eval(arguments: list[str], place: Place) -> None:
    inner = re.fullmatch(r"\$\((.+)\)", arguments[0])
    assert inner is not None
    check(inner[1], place)


CHECKS: dict[str, Callable[[list[str], Place], None]] = {
    "make": check_make, "python": check_python, "pytest": check_pytest, "ray": check_ray, "mlflow": check_mlflow,
    "docker": check_docker, "kubectl": check_kubectl, "export": check_export, "eval": check_eval,
    "source": check_source, "scalablevit": check_scalablevit, "pip": check_pip, "sbatch": check_sbatch,
    "scancel": check_scancel, "prometheus": check_prometheus, "promtool": check_prometheus,
    "weed": check_weed, "mkdir": check_mkdir,
}  # fmt: skip


# --- the tests ---


@pytest.mark.timeout(900)  # half a minute of work, which takes many times that beside other work
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Ray's and MLflow's command lines import
def test_every_command_is_one_that_its_program_takes(place: Place) -> None:
    """One test for all: they share the place and the imports."""
    wrong = {}
    found = [each for page in PAGES for each in commands(page)]
    # the same one in a block and in a sentence is checked as that in the block
    given = {each.text: each for each in sorted(found, key=lambda each: not each.mention)}
    for command in given.values():
        try:
            check(place.filled(command.text), place, mention=command.mention)
        except (Exception, SystemExit) as error:
            wrong[f"{command.page}: {command.text}"] = str(error)
    assert not wrong, "\n\n".join(f"{command}\n{why}" for command, why in wrong.items())


@pytest.mark.parametrize(
    "command",
    ["python pipelines/full.py --recpie my.yaml", "python pipelines/evaluate.py models:/nobody@candidate",
     "python pipelines/fill.py", "scalablevit fill", "scalablevit full --recpie my.yaml", "pip install scalablevit",
     "python infra/head.py begin", "ray job submitt -- true", "mlflow ui --backend-uri x",
      "promtool test rules infra/metrics/no.yml",
      "make ful", "pytest tests/nowhere", "docker run x", "kubectl delete secret", "curl localhost",
      "kubectl apply -k infra/kuberay/overlays/cpu", "kubectl -n elsewhere apply -k infra/kuberay/jobs/cpu-full",
      "sbatch infra/slurm.sh python pipelines/full.py --recpie my.yaml", "scancel 7",
      "python tests/models/test_model_names.py",
     'make full ARGS="--recipe yours.yaml"'],
)  # fmt: skip
def test_a_wrong_command_is_complained_about(command: str, place: Place) -> None:
    with pytest.raises((AssertionError, click.ClickException, SystemExit, OSError)):
        check(command, place)


def test_what_a_page_shows_of_a_mistake_is_what_is_said(place: Place) -> None:
    assert written("console")
    for content in written("console"):
        line, expected = content.split("\n", 1)
        program, *words = shlex.split(line.removeprefix("$ "))
        if program == "scalablevit":
            words[0] = f"pipelines/{words[0].replace('-', '_')}.py"
        code, said = run_script(*words)
        assert code == 2 and expected in said


@pytest.mark.parametrize("command", PRINTED)
def test_what_a_page_shows_of_a_dry_run_is_what_is_printed(place: Place, command: str) -> None:
    """Numbers are those of another run, words the same."""
    (shown,) = (content for content in written("text") if re.match(PRINTED[command], content))
    code, said = run_shortened(*shlex.split(command))
    assert code == 0, said
    printed = {words_of(line) for line in said.splitlines()}
    assert [line for line in shown.splitlines() if line != "..." and words_of(line) not in printed] == [], said


def test_the_metrics_of_a_page_are_those_that_an_evaluation_prints() -> None:
    shown = [
        each
        for content in written("text")
        for each in re.findall(r"^\[(\w+)\].*(evaluation: .*?)(?:  \(|$)", content, re.M)
    ]
    assert {stage for stage, _ in shown} == {info.stage_name for info in TASKS.values()}
    for info in TASKS.values():
        printed = format_evaluation(dict.fromkeys(info.metrics_by_interest, 0.5), info.metrics_by_interest)
        assert {words_of(text) for stage, text in shown if stage == info.stage_name} == {words_of(printed)}


def words_of(line: str) -> tuple[str, ...]:
    """Return the words of a line in their order, each once; numbers and units of one letter are none."""
    return tuple(dict.fromkeys(re.findall(r"\b[A-Za-z_]\w+", line)))


def test_recipes_and_spaces_load(place: Place) -> None:
    kinds = []
    for text in map(place.filled, written("yaml")):
        tree = yaml.safe_load(text)
        if "name" in tree:
            kinds.append("recipe")
            assert load_recipe(place.folder / f"{tree['name']}.yaml").name == tree["name"]
        elif "parameters" in tree:
            kinds.append("space")
            assert load_search(place.folder / "spaces" / "space.yaml", ()).stage == "pretrain"
        else:  # a section of a stage
            kinds.append("section")
            stage = STAGE_OF.get(tree.get("data", {}).get("source"), "segment")
            given = [f"stages.{stage}.{key}={json.dumps(value)}" for key, value in tree.items()]
            load_recipe(place.folder / "chain.yaml", given)
    assert set(kinds) == {"recipe", "space", "section"}


def test_recipe_new_writes_the_model_that_the_pages_train(place: Place) -> None:
    """So that a page's recipe can start from the model of a template's, and the other way round."""
    assert {model_of(file) for file in TEMPLATES.glob("*.yaml")} == {model_of(place.folder / "my.yaml")}


def test_recipes_of_one_name_are_the_same() -> None:
    recipes = [tree for text in written("yaml") if "name" in (tree := yaml.safe_load(text))]
    by_name = {tree["name"]: tree for tree in recipes}
    assert len(by_name) < len(recipes) and [tree["name"] for tree in recipes if tree != by_name[tree["name"]]] == []


def test_snippets_run(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    import mlflow

    for content in map(place.filled, written("python")):
        before = mlflow.get_tracking_uri()
        try:
            if package := re.match(r"# (\w+)/__init__\.py\n", content):
                import_package(place, package[1], content)
            else:
                exec(compile(content, "page", "exec"), {})  # noqa: S102  # our own pages
        finally:
            mlflow.set_tracking_uri(before)
    assert "probabilities" in capsys.readouterr().out


def import_package(place: Place, name: str, init: str) -> None:
    """Import a package that a page shows whole; afterwards it, and what it registered, are unknown again."""
    with packages_in(place.folder / "packages") as folder:
        write_package(folder, name, init=init)
        importlib.import_module(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_blocks_are_fenced_and_paths_and_links_lead_somewhere(page: Path) -> None:
    assert {language for language, _ in blocks(page)} <= LANGUAGES
    assert not re.search(r"^\n {4,}\S", prose(page), re.MULTILINE), "an indented block: fence it, with its language"
    assert [path for path in sorted(paths(page)) if not (REPOSITORY / path).exists()] == []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if target.parent == REFERENCE:  # `make docs` writes it
            assert f'"{target.stem}": {target.stem}_page' in REFERENCE.with_suffix(".py").read_text(), link
            continue
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
