"""Print the completion script of a shell, made from the parsers once, so that no Python starts at every tab."""

import argparse
import io
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress

from scalablevit.cli import tree
from scalablevit.cli.verbs import VERBS
from scalablevit.config.commands import PROGRAM
from scalablevit.config.shipped import RECIPES, SPACES, shipped_files

EPILOG = f"""\
Verbs, options, the names of what is shipped, and files are completed. To have it in every shell:

  bash  {PROGRAM} completion bash > ~/.local/share/bash-completion/completions/{PROGRAM}
  zsh   {PROGRAM} completion zsh > ~/.{PROGRAM}.zsh, and in ~/.zshrc, after compinit: source ~/.{PROGRAM}.zsh
  fish  {PROGRAM} completion fish > ~/.config/fish/completions/{PROGRAM}.fish"""
BASH = """\
_{program}() {{
    local words
    case "$COMP_CWORD:${{COMP_WORDS[1]}}:${{COMP_WORDS[COMP_CWORD-1]}}" in
        1:*) words="{verbs}" ;;
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _{program} {program}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(options: argparse.Namespace) -> int:
    """Print the completion script for a shell; see `add_arguments`."""
    words = {verb: _words(verb) for verb in VERBS}
    names = {"--recipe": list(shipped_files(RECIPES)), "--space": list(shipped_files(SPACES))}
    if options.shell == "fish":
        print(_fish(words, names))
        return 0
    if options.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_bash(words, names), end="")
    return 0


def _words(verb: str) -> list[str]:
    """Return the words that can follow a verb: its own verbs or choices, and all options."""
    parser = tree.parser_of(verb)
    usage = parser.format_usage()
    choices = [word for group in re.findall(r"\{([\w,-]+)\}", usage) for word in group.split(",")]
    if VERBS[verb].has_verbs:
        usage += "".join(_usage_of(parser, inner) for inner in choices)
    return [*choices, *dict.fromkeys(re.findall(r"--[a-z][a-z-]*", usage)), "--help"]


def _usage_of(parser: argparse.ArgumentParser, verb: str) -> str:
    """Return the usage of a verb's own verb, which argparse gives only as printed help."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        parser.parse_args([verb, "--help"])
    return printed.getvalue().partition("\n\n")[0]


def _bash(words: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]]) -> str:
    cases = [f'        *:{option}) words="{" ".join(named)}" ;;' for option, named in names.items()]
    cases += [f'        *:{verb}:*) words="{" ".join(candidates)}" ;;' for verb, candidates in words.items()]
    return BASH.format(program=PROGRAM, verbs=" ".join(words), cases="\n".join(cases))


def _fish(words: Mapping[str, Sequence[str]], names: Mapping[str, Sequence[str]]) -> str:
    begin = f"complete -c {PROGRAM} -n"
    lines = [f"{begin} __fish_use_subcommand -f -a {verb} -d {shlex.quote(VERBS[verb].description)}" for verb in words]
    for word in dict.fromkeys(word for candidates in words.values() for word in candidates):
        verbs = " ".join(verb for verb, candidates in words.items() if word in candidates)
        takes = f" -r -a '{' '.join(names[word])}'" if word in names else ""
        what = f"-l {word.removeprefix('--')}{takes}" if word.startswith("--") else f"-a {word}"
        lines.append(f"{begin} '__fish_seen_subcommand_from {verbs}' {what}")
    return "\n".join(lines)
