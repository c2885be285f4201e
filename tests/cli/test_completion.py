"""The code that makes shells complete the command."""

import subprocess

import pytest

from scalablevit.cli import main
from scalablevit.cli.verbs import VERBS


@pytest.fixture(scope="module")
def bash() -> str:
    """The code for bash."""
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: printed.append(text))
        assert main(None, ["completion", "bash"]) == 0
    return "".join(printed)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("pr", ["pretrain", "predict", "promote"]),
        ("tune --re", ["--recipe", "--resume", "--retrain"]),
        ("full optimizer.lr --dr", ["--dry-run"]),
        ("plan --recipe imagenet_scalablevit_s", ["imagenet_scalablevit_small"]),
        ("tune --space de", ["demo", "detect"]),
        ("runs s", ["show", "stop"]),
        ("analyse features --bl", ["--blocks", "--block"]),
        ("completion f", ["fish"]),
        ("evaluate models", []),
    ],
)
def test_bash_completes(typed: str, expected: list[str], bash: str) -> None:
    words = ["scalablevit", *typed.split(" ")]
    call = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _scalablevit; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{bash}\n{call}"], capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout.split(), done.stderr) == (expected, "")


def test_the_other_shells_get_all_verbs(bash: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(None, ["completion", "zsh"]) == 0
    assert capsys.readouterr().out == f"autoload -U +X bashcompinit && bashcompinit\n{bash}"
    assert main(None, ["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("complete -c scalablevit -n ") for line in lines)
    offered = [line.split(" -a ")[1].split()[0] for line in lines if "__fish_use_subcommand" in line]
    assert offered == list(VERBS)
    (quick,) = (line for line in lines if line.endswith(" -l quick"))
    assert "'__fish_seen_subcommand_from check-data'" in quick
