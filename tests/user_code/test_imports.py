"""The recipe's key `imports`: what may be written, when code is imported, and what its content sum is."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from harness.toys import RECIPE
from harness.user_code import packages_in, write_package

import scalablevit as sv
from scalablevit.config import packages, user_code
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_and_import, load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.config.run_hash import hashed_part, stage_hash
from scalablevit.config.space_loading import load_search
from scalablevit.config.stored import stored_stage, to_store
from scalablevit.config.user_code import (
    find_packages,
    import_stored_code,
    import_user_code,
    package_contents,
    package_sums,
    stage_from_json,
)
from scalablevit.pipeline import registration
from scalablevit.pipeline.registration import record_model
from scalablevit.pipeline.stage import _keep_user_code
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.tags import USER_CODE

LEAVES_A_TRACE = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"


@pytest.fixture
def place(tmp_path):
    with packages_in(tmp_path / "code") as folder:
        yield folder


def stage_with(*overrides: str) -> Stage:
    return load_recipe(RECIPE, overrides).stages["pretrain"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("[os.path]", "os.path belongs to Python itself"),
        ("[scalablevit.models]", "scalablevit.models is the platform's own code"),
        ("[torch]", "torch is imported by the platform itself"),
        ("['mine; import os']", "'mine; import os' is no name of a module"),
        ("[mine..tasks]", "'mine..tasks' is no name of a module"),
        ("[mine/tasks]", "'mine/tasks' is no name of a module"),
        ("[mine, mine]", "a name occurs twice"),
        (str([f"m{n}" for n in range(17)]), "at most 16 items"),
    ],
)
def test_what_is_no_users_module_is_a_mistake_of_the_recipe(names, reason):
    with pytest.raises(UserError, match=reason) as caught:
        load_recipe(RECIPE, [f"imports={names}"])
    assert "imports" in caught.value.where


def test_a_mistake_has_file_and_line(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("imports: [os]\n" + RECIPE.read_text())
    with pytest.raises(UserError, match="belongs to Python itself") as caught:
        load_recipe(recipe)
    assert caught.value.where == f"{recipe}:1: imports"


def test_stages_without_users_code_are_stored_and_hashed_as_before():
    stage = stage_with()
    assert "imports" not in stage.model_dump() and "imports" not in to_store(stage)
    assert "imports" not in hashed_part(stage) and "imports" not in stage.model_dump_json()
    assert stage_hash(stage, "data") == "22146a715e66"


def test_reading_imports_nothing(place):
    package = write_package(place, "mine", init=LEAVES_A_TRACE)
    stage = stage_with("imports=[mine]")
    assert stage.imports == ("mine",)
    assert stored_stage(to_store(stage)) == stage
    assert package_sums(stage.imports)["mine"] == find_packages(["mine"])[0].content_sum()
    assert not (package / "imported").exists() and "mine" not in sys.modules
    load_and_import(RECIPE, ["imports=[mine]"])
    assert (package / "imported").exists()


def test_nothing_is_imported_while_anything_else_is_wrong(place):
    package = write_package(place, "mine", init=LEAVES_A_TRACE)
    wrong = ["imports=[mine]", "stages.pretrain.task={kind: mine, of_its_own: 3}", "optimizer.lr=-1"]
    with pytest.raises(UserError, match="input should be greater than 0, got -1") as caught:
        load_and_import(RECIPE, wrong)
    assert "kind" not in str(caught.value), "whether the code registers it is not known yet"
    with pytest.raises(UserErrors, match=r"got 'mine'(?s:.*)greater than 0"):
        load_and_import(RECIPE, wrong[1:])
    with pytest.raises(UserErrors, match=r"there is no package theirs"):
        load_and_import(RECIPE, ["stages.pretrain.imports=[mine]", "stages.segment.imports=[theirs]",
                                 "stages.detect.imports=[mine.absent]"])  # fmt: skip
    assert not (package / "imported").exists()


def test_a_kind_that_the_code_does_not_register_is_named_after_the_import(place):
    write_package(place, "mine")
    override = ["imports=[mine]", "stages.pretrain.task={kind: unheard}"]
    with pytest.raises(UserError, match="got 'unheard'") as before:
        load_recipe(RECIPE, override)
    assert before.value.fix == "if mine registers it, import that first: reading a recipe imports nothing"
    with pytest.raises(UserError, match="got 'unheard'") as after:
        load_and_import(RECIPE, override)
    assert after.value.fix == "mine registered no such name (scalablevit.register_...)"


def test_what_cannot_be_found_or_does_not_travel(place):
    place.mkdir(exist_ok=True)
    (place / "single.py").touch()
    (place / "namespace").mkdir()
    write_package(place, "mine", tasks="")
    write_package(place, "compiled")
    (place / "compiled" / "fast.so").touch()
    for name, reason in {
        "absent": "there is no package absent",
        "single": "single is a single module",
        "namespace": "namespace is no package but a folder",
        "mine.absent": "package mine has no module absent",
        "compiled": r"compiled has compiled code \(fast.so\)",
    }.items():
        with pytest.raises(UserError, match=reason):
            find_packages([name])
    assert [(found.name, found.installed) for found in find_packages(["mine", "mine.tasks"])] == [("mine", False)]
    assert [(found.name, found.installed) for found in find_packages(["pytest"])] == [("pytest", True)]


def install(place, monkeypatch):
    """Make `compiled`, with a compiled module, a package that pip has installed."""
    package = write_package(place, "compiled")
    (package / "fast.so").touch()
    monkeypatch.setattr(user_code, "_installed_folders", lambda: {place})
    with pytest.raises(UserError, match=r"has compiled code \(fast.so\)"):
        find_packages(["compiled"])  # put there by hand: no requirement would bring it to where a model is served
    info = place / "own_dist-1.2.dist-info"
    info.mkdir()
    (info / "top_level.txt").write_text("compiled\n")
    set_version(place, "1.2")
    return package


def set_version(place, version):
    """Say in the metadata that pip has installed this version."""
    (place / "own_dist-1.2.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: own-dist\nVersion: {version}\n"
    )


def test_an_installed_package_with_compiled_code_is_named_and_not_copied(place, tmp_path, monkeypatch, capsys):
    install(place, monkeypatch)
    write_package(place, "mine")
    stage, outbox = stage_with("imports=[mine, compiled]"), Outbox(tmp_path / "outbox")
    monkeypatch.setattr(user_code, "_installed_folders", lambda: {place / "compiled"})
    import_user_code(stage.imports)
    sums = package_sums(stage.imports)
    _keep_user_code(stage, outbox)
    assert {path.name for path in outbox.folder.glob("code/*/*")} == {"mine"}
    note = capsys.readouterr().out
    assert "compiled code (fast.so)" in note and "names own-dist==1.2 as a requirement" in note
    assert "from a file" not in note
    (place / "own_dist-1.2.dist-info" / "direct_url.json").write_text('{"url": "file:///wheels/own_dist-1.2.whl"}')
    _keep_user_code(stage, outbox)
    assert "pip installed it here from a file or an address" in capsys.readouterr().out
    set_version(place, "1.3")  # during the training
    resolved = SimpleNamespace(name="s", stage=stage, hash="h", digest="d")
    finished = SimpleNamespace(uid="u", metric="val/top1", value=0.5, step=1, folder="f", checkpoint="c", lineage={},
                               registered_as="m")  # fmt: skip
    monkeypatch.setattr(registration, "_card", lambda *_: None)
    recorded = MagicMock()
    store = SimpleNamespace(name="r-s-h", local=tmp_path, location=str(tmp_path))
    record_model("r", resolved, finished, store, recorded, SimpleNamespace(root=tmp_path, uri=""))
    model = recorded.model.call_args.kwargs
    assert model["user_code"] == {"mine": sums["mine"]} and "own-dist==1.2" in model["requirements"]
    assert json.loads(model["tags"][USER_CODE]) == sums


def test_a_model_of_compiled_code_runs_on_another_build_of_the_same_version(place, monkeypatch):
    package = install(place, monkeypatch)
    content = package_contents(["compiled"])["compiled"]
    config = {"stage": {"imports": ["compiled"]}, "user_code": {"compiled": content.portable_sum}}
    (package / "fast.so").rename(package / "fast.cpython-399-other-machine.so")
    (package / "fast.cpython-399-other-machine.so").write_bytes(b"another build")
    (package / "libfast.so.5").write_bytes(b"another build's own library")
    import_stored_code(config, "models:/m/1")
    with pytest.raises(UserError, match="made by compiled with the content sum"):
        import_user_code(["compiled"], {"compiled": content.digest})  # the nodes of a cluster have one build
    set_version(place, "1.3")
    with pytest.raises(UserError, match=r"compiled, own-dist==1\.3, has ") as caught:
        import_stored_code(config, "models:/m/1")
    assert "the model's requirements name it" in caught.value.fix and "copy" not in caught.value.fix
    set_version(place, "1.2")
    (package / "__init__.py").write_text("WIDTH = 2")
    with pytest.raises(UserError, match=r"compiled, own-dist==1\.2, has "):
        import_stored_code(config, "models:/m/1")


def test_only_a_registered_model_is_said_to_have_a_copy(place):
    write_package(place, "mine")
    for where, has_copy in {"models:/m/1": True, "pretrain-1234": False, "imports": False}.items():
        with pytest.raises(UserError, match="without a content sum") as caught:
            import_user_code(["mine"], {}, where)
        assert ("a copy in its folder code" in caught.value.fix) == has_copy


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("x = 1\n\nx.absent\n", 3, "importing mine raises AttributeError: 'int' object has no attribute 'absent'"),
        ("\nx = = 1\n", 2, "importing mine raises SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)\n", 2, "importing mine raises SystemExit: 3"),
        ("import absent_library\n", 1, "importing mine raises ModuleNotFoundError: No module named 'absent_library'"),
    ],
)
def test_an_exception_of_users_code_names_its_line(place, text, line, reason):
    package = write_package(place, "mine", init=text)
    with pytest.raises(UserError) as caught:
        import_user_code(["mine"])
    assert caught.value.what.startswith(reason) and caught.value.where == f"{package / '__init__.py'}:{line}"


def test_the_sum_is_of_names_and_contents_and_makes_another_run(place):
    package = write_package(place, "mine", tasks="x = 1")
    (package / "data").mkdir()
    (package / "data" / "words.txt").write_text("a")
    stage = stage_with("imports=[mine]")
    first, run = package_sums(["mine"]), stage_hash(stage, "data")
    assert first == package_sums(["mine.tasks", "mine"]) and run != stage_hash(stage_with(), "data")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "tasks.pyc").touch()
    (package / ".hidden").touch()
    assert package_sums(["mine"]) == first
    for path, content in (("tasks.py", "x = 2"), ("data/words.txt", "b"), ("new.py", "")):
        kept = (package / path).read_text() if (package / path).exists() else None
        (package / path).write_text(content)
        assert package_sums(["mine"]) != first and stage_hash(stage, "data") != run
        (package / path).write_text(kept) if kept is not None else (package / path).unlink()
    assert package_sums(["mine"]) == first and stage_hash(stage, "data") == run


def test_other_code_than_expected_is_not_imported(place):
    package = write_package(place, "mine", init=LEAVES_A_TRACE)
    text = stage_with("imports=[mine]").model_dump_json()
    found = package_sums(["mine"])["mine"][:12]
    with pytest.raises(UserError, match=rf"made by mine with the content sum abcdefabcdef, and {package} has {found}"):
        stage_from_json(text, {"mine": "abcdef" * 8})
    with pytest.raises(UserError, match="made by mine without a content sum"):
        stage_from_json(text, {})
    assert not (package / "imported").exists()
    assert stage_from_json(text, package_sums(["mine"])).imports == ("mine",)


def test_code_that_changed_after_its_import_is_refused(place):
    package = write_package(place, "mine")
    import_user_code(["mine"])
    import_user_code(["mine"])
    (package / "__init__.py").write_text("x = 1")
    with pytest.raises(UserError, match=r"changed since this process imported it: __init__\.py\n"):
        import_user_code(["mine"])


REGISTERS = """\
import scalablevit as sv

def same(image, random):
    return image

sv.register_transform("same", same)
"""


def test_code_that_changed_between_a_notebooks_import_and_its_first_run_is_refused(place):
    package = write_package(place, "mine", init=REGISTERS, net="WIDTH = 1")
    importlib.import_module("mine.net")
    before = find_packages(["mine"])[0].content_sum()
    (package / "net.py").write_text("WIDTH = 2")
    (package / "new.py").touch()
    assert package_sums(["mine"]) == {"mine": before}, "the sum is that of the code in this process"
    with pytest.raises(UserError, match=r"changed since this process imported it: net\.py, new\.py\n"):
        import_user_code(["mine"])
    (package / "net.py").write_text("WIDTH = 1")
    (package / "new.py").unlink()
    import_user_code(["mine"])


def test_code_that_registers_nothing_is_noted_when_its_recipe_is_read(place, tmp_path):
    package = write_package(place, "mine", init="WIDTH = 1")
    importlib.import_module("mine")
    recipe = sv.load_recipe(RECIPE, "imports=[mine]")
    (package / "__init__.py").write_text("WIDTH = 2")
    with pytest.raises(UserError, match=r"changed since this process imported it: __init__\.py\n"):
        sv.run(recipe, root=tmp_path, stages="pretrain", dry_run=True)


def test_stored_names_are_checked_before_they_are_looked_for():
    raw = to_store(stage_with()) | {"imports": ["os"]}
    with pytest.raises(UserError, match="os belongs to Python itself"):
        stored_stage(raw, "config.json", imports=True)
    with pytest.raises(UserError, match="no names of modules"):
        stored_stage(raw | {"imports": "mine"}, "config.json", imports=True)


def test_the_base_recipe_of_a_search_is_imported_too(place, tmp_path):
    package = write_package(place, "mine", init=LEAVES_A_TRACE)
    space = tmp_path / "space.yaml"
    text = f"recipe: {RECIPE}\nstage: pretrain\nmetric: val/top1\nbudget: {{trials: 2, epochs: 1}}\n"
    space.write_text(text + "parameters: {optimizer.lr: {loguniform: [1.0e-4, 1.0e-3]}}\n")
    load_search(space, ["imports=[mine]"])
    with pytest.raises(UserError):
        load_search(space, ["imports=[mine]", "space.seed=-1"], imports=True)
    assert not Path(package / "imported").exists()
    assert load_search(space, ["imports=[mine]"], imports=True).recipe.stages["pretrain"].imports == ("mine",)
    assert Path(package / "imported").exists()


@pytest.mark.parametrize("sums", [["mine"], {"mine": 3}, "mine", {"mine": None}])
def test_stored_sums_that_are_none_are_refused(place, sums):
    write_package(place, "mine")
    with pytest.raises(UserError, match="no content sums by package"):
        import_stored_code({"stage": {"imports": ["mine"]}, "user_code": sums}, "models:/foreign/1")


def test_stored_code_without_a_sum_is_not_imported(place):
    write_package(place, "mine", init="raise RuntimeError")
    for config in ({"user_code": None}, {"user_code": {}}, {}):
        with pytest.raises(UserError, match="without a content sum"):
            import_stored_code({"stage": {"imports": ["mine"]}, **config}, "models:/foreign/1")


def test_code_that_was_corrected_after_it_failed_is_imported(place):
    package = write_package(place, "mine", init="raise RuntimeError")
    with pytest.raises(UserError, match="RuntimeError"):
        import_user_code(["mine"])
    (package / "__init__.py").write_text("DONE = True")
    import_user_code(["mine"])
    assert sys.modules["mine"].DONE


def test_no_part_of_a_failed_import_stays(place):
    package = write_package(place, "mine", init=REGISTERS + "from mine.net import ABSENT", net="WIDTH = 1")
    with pytest.raises(UserError, match="ImportError"):
        import_user_code(["mine"])
    (package / "__init__.py").write_text(REGISTERS + "from mine.net import ABSENT  # corrected")
    (package / "net.py").write_text("ABSENT = 2")
    import_user_code(["mine"])
    assert sys.modules["mine"].ABSENT == 2


def test_what_an_import_cannot_do_twice_is_said_to_need_a_new_process(place, monkeypatch):
    """Such as an operator of torch, which stays registered when the modules of a failed import are dropped."""
    monkeypatch.setattr(sys, "_operator", False, raising=False)
    once = "import sys\nif sys._operator:\n    raise RuntimeError('already registered')\nsys._operator = True"
    package = write_package(place, "mine", init="import mine.ops\nimport mine.net", ops=once, net="x = absent")
    with pytest.raises(UserError, match="NameError") as first:
        import_user_code(["mine"])
    assert "new process" not in first.value.fix
    (package / "net.py").write_text("x = 1  # corrected")
    with pytest.raises(UserError, match="already registered") as second:
        import_user_code(["mine"])
    assert "start a new process" in second.value.fix


def test_a_package_with_an_unreadable_file_is_refused_where_a_recipe_names_it(place, monkeypatch):
    """And nowhere else: a class of any package may be registered."""
    write_package(place, "mine", init=REGISTERS)
    monkeypatch.setattr(packages, "package_files", lambda package, excluded=(): [package / "absent"])
    importlib.import_module("mine")
    for refused in (import_user_code, package_sums):
        with pytest.raises(UserError, match=r"mine has a file that cannot be read: .*absent"):
            refused(["mine"])


def test_what_was_imported_counts_whatever_becomes_of_the_files(place, tmp_path):
    """A training lasts; the model takes along what it was trained with."""
    package = write_package(place, "mine", init="VALUE = 1")
    import_user_code(["mine"])
    before = package_sums(["mine"])
    outbox = Outbox(tmp_path / "outbox")
    outbox.keep_user_code(package, before["mine"])
    (package / "__init__.py").write_text("VALUE = 2")
    assert package_sums(["mine"]) == before
    assert (tmp_path / "outbox" / "code" / before["mine"] / "mine" / "__init__.py").read_text() == "VALUE = 1"
    with pytest.raises(ValueError, match="files of mine have changed"):
        Outbox(tmp_path / "other").keep_user_code(package, before["mine"])
