"""The tree of commands: what it lists, what it answers, and that it starts fast."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scalablevit import __version__
from scalablevit.cli import main
from scalablevit.cli.verbs import VERBS

REPOSITORY = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "mlflow", "matplotlib"}


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """Exit code and output of what argparse answers by itself."""
    with pytest.raises(SystemExit) as caught:
        main(None, arguments)
    return caught.value.code, "".join(capsys.readouterr())


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = ended(capsys, "--help")
    assert code == 0
    assert re.findall(r"^    (\S+)", shown, re.MULTILINE) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = ended(capsys, verb, "--help")
    assert code == 0
    assert " ".join(VERBS[verb].description.split()) in " ".join(shown.split())
    assert "%(" not in shown


def test_every_verb_has_its_script() -> None:
    """Three lines for jobs; what they say of themselves is what --help says."""
    scripts = {path.stem: path for path in (REPOSITORY / "pipelines").glob("[a-z]*.py")}
    verbs = {verb.replace("-", "_"): verb for verb in VERBS if verb != "completion"}
    assert set(scripts) == set(verbs)
    for name, path in scripts.items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree) == VERBS[verbs[name]].description
        assert f'sys.exit(main("{verbs[name]}"))' in ast.unparse(tree).replace("'", '"')


def test_scripts_call_themselves_by_their_file(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, script in (("full", "pipelines/full.py"), ("check-data", "pipelines/check_data.py")):
        code, shown = ended(capsys, verb, "--nonesuch")
        assert code == 2
        assert f"usage: {script} [-h]" in shown and f"{script}: error: unrecognized arguments: --nonesuch" in shown


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, "--version") == (0, f"scalablevit {__version__}\n")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("fulll", "no command 'fulll'; did you mean 'full'?"),
        ("check_data", "no command 'check_data'; did you mean 'check-data'?"),
        ("qqq", "no command 'qqq'\n"),
        ("--recipe", "the command comes first, as in scalablevit full --recipe"),
    ],
)
def test_an_unknown_verb(given: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = ended(capsys, given, "full")
    assert code == 2 and expected in shown


def test_options_before_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(None, ["--root", "runs", "full"])
    assert ended.value.code == 2 and "scalablevit full --root runs" in capsys.readouterr().err


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    for given, expected in ((["help"], "VERB"), (["help", "pack"], "TARGET")):
        with pytest.raises(SystemExit) as ended:
            main(None, given)
        assert ended.value.code == 0 and expected in capsys.readouterr().out


def test_no_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = ended(capsys)
    assert code == 2 and "the following arguments are required: VERB" in shown


@pytest.mark.parametrize(
    ("call", "left_out"),
    [
        ("_pick(['full'])", HEAVY | {"numpy", "pydantic", "yaml"}),
        ("parser_of('full')", HEAVY | {"numpy"}),
        ("[parser_of(verb) for verb in VERBS]", HEAVY),
    ],
)
def test_nothing_heavy_is_imported_for_help(call: str, left_out: set[str]) -> None:
    program = f"from scalablevit.cli.tree import VERBS, _pick, parser_of; {call}"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], env={"PYTHONPATH": str(REPOSITORY / "platform")},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "scalablevit.cli.tree" in imported
    assert not left_out & imported


def test_shipped_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(None, ["recipe", "list"]) == 0
    shown = capsys.readouterr().out
    for path in [*(REPOSITORY / "pipelines" / "recipes").glob("*.yaml"), *(REPOSITORY / "tune_spaces").glob("*.yaml")]:
        assert re.search(rf"^  {path.stem}  +\S", shown, re.MULTILINE), path
    assert "  imagenet_scalablevit_small             ScalableViT-S on ImageNet-1K, as the paper trains it\n" in shown


def test_shipped_recipes_and_spaces_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = ["--root", "session_latest"]  # after the recipe was read, and before anything slow
    assert main(None, ["full", "--recipe", "photos_camvid", "data.image_size=64", *refused]) == 2
    shown = capsys.readouterr()
    assert shown.out == "data.image_size=64 applies to: pretrain\n" and "session_latest" in shown.err
    assert main(None, ["tune", "--space", "pretrain_base", *refused]) == 2
    assert "session_latest" in capsys.readouterr().err


def test_a_recipe_names_a_shipped_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own.yaml"
    own.write_text((REPOSITORY / "pipelines" / "recipes" / "cifar10.yaml").read_text() + "\ntune: cifar10\n")
    arguments = ["full", "--recipe", str(own), "--root", "session_latest"]
    assert main(None, arguments) == 2
    assert "session_latest" in capsys.readouterr().err
    own.write_text(own.read_text().replace("tune: cifar10", "tune: cifar11"))
    assert main(None, arguments) == 2
    assert f"{tmp_path}/cifar11: cannot read the space" in capsys.readouterr().err


def test_a_name_that_is_not_shipped_leads_to_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(None, ["full", "--recipe", "cifar100"]) == 2
    assert "fix: shipped: cifar10\n" in capsys.readouterr().err
    assert main(None, ["tune", "--space", "segmnt"]) == 2
    assert "fix: shipped: segment\n" in capsys.readouterr().err
