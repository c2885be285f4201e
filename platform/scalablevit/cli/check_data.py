"""Every bad sample of a recipe's data, named with its reason before training."""

import argparse
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.cli.arguments import add_recipe, add_root
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.config.commands import command_line, short_name
from scalablevit.config.data import Data
from scalablevit.config.errors import raise_all
from scalablevit.config.loading import load_and_import
from scalablevit.config.overrides import Scope
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.root import platform_root
from scalablevit.config.shipped import DEMO, RECIPES
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.files import describe_skipped
from scalablevit.inspection.check import Problem, Report, mask_advice
from scalablevit.inspection.inspect_data import Inspection, inspect_data
from scalablevit.inspection.statistics_table import statistics_rows, unknown_text
from scalablevit.tasks.registry import task_kind
from scalablevit.text import format_table

if TYPE_CHECKING:
    from scalablevit.cli.documents import DataCheck

EPILOG = """\
Both splits of every stage are checked; stages that share data share the check. A line is printed for each bad sample:
the file, a tab, the reason.

Without --quick every image and mask is decoded as training does it; JPEGs that decode although their data is broken are
named too (a JPEG carries no checksum, so small damage can pass; tar shards have one, which is verified). The result is
kept in <root>/cache/checks under the digest of the data's contents, unless the storage failed to give a file: the same
command on the same data prints it again (--again decodes all files again). With --quick only headers are read: kind,
size, and whether masks fit their images; nothing is kept, and contents are hashed (for the digest, and to find images
in both splits) for at most 10 s.

A table then says what the splits hold: classes, sizes of objects, ignored pixels, files left out, images that both
have. What a training would be refused for is refused here, too, and what it would warn of is a line with "warning".

Samples that cannot be decoded are left out of training and counted, as long as they are at most data.max_bad_fraction
of the split; masks that do not fit are refused in any number.

Exit codes: 0 nothing bad; 1 bad samples, all named; 2 something in the recipe or in the data's folders to fix;
130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the recipe")
    add_recipe(parser)
    add_root(parser)
    parser.add_argument("--quick", action="store_true", help="read headers only: nothing is decoded, nothing is kept")
    parser.add_argument("--again", action="store_true", help="decode all files again, and replace the kept result")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check and print; see `add_arguments`.

    Raises:
        UserError, UserErrors: of all splits, what keeps their samples from being listed, and what training refuses
            other than bad samples; all that can be has been checked and printed.
    """
    with stdout_to_stderr(options.json):
        path = options.recipe or RECIPES / DEMO
        recipe = load_and_import(path, options.overrides, Scope(f"{short_name('check-data')} checks", note=print))
        root = platform_root(options.root)
        bad, inspections = 0, dict[str, Inspection]()
        for name, stages in _stages_by_data(recipe).items():
            data = stages[0].data
            inspections[name] = _add_task_warnings(stages, _inspect(data, root, options))
            bad += _print_inspection(name, data, inspections[name])
        errors = [error for inspection in inspections.values() for error in inspection.errors]
        raise_all(list({str(error): error for error in errors}.values()))
        print(_advice(bad, sum(len(inspection.warnings) for inspection in inspections.values()), path, options))
    if options.json:
        print_document(_document(recipe.name, inspections, bad))
    return 1 if bad else 0


def _document(recipe: str, inspections: Mapping[str, Inspection], bad: int) -> "DataCheck":
    from scalablevit.cli.documents import BadFile, CheckedData, CheckedSplit, DataCheck

    def files(problems: Iterable[Problem]) -> tuple[BadFile, ...]:
        return tuple(BadFile(path=problem.path, reason=problem.reason) for problem in problems)

    def split(source: Source, report: Report) -> CheckedSplit:
        return CheckedSplit(
            samples=len(source), ignored=len(source.ignored), notes=source.notes,
            unreadable=files(report.unreadable), wrong=files(report.wrong), damaged=files(report.damaged),
        )  # fmt: skip

    data = tuple(
        CheckedData(
            stage=name,
            splits={
                split_name: split(source, inspection.reports[split_name])
                for split_name, source in inspection.sources.items()
            },
            statistics=None if inspection.statistics is None else json.loads(inspection.statistics.to_json()),
            warnings=inspection.warnings,
        )
        for name, inspection in inspections.items()
    )
    return DataCheck(recipe=recipe, data=data, bad=bad)


def _stages_by_data(recipe: Recipe) -> dict[str, list[Stage]]:
    """Return the stages of each distinct data section, by the name of the first one."""
    groups: dict[str, list[Stage]] = {}
    for name, stage in recipe.stages.items():
        same = next((stages for stages in groups.values() if stages[0].data == stage.data), None)
        if same is None:
            groups[name] = [stage]
        else:
            same.append(stage)
    return groups


def _add_task_warnings(stages: Sequence[Stage], inspection: Inspection) -> Inspection:
    """Add what of the stages' tasks does not fit their data, as a training says it."""
    statistics = inspection.statistics
    if statistics is None:
        return inspection
    of_tasks = [text for stage in stages for text in task_kind(stage.task.kind).data_warnings(stage, statistics)]
    return replace(inspection, warnings=tuple(dict.fromkeys([*inspection.warnings, *of_tasks])))


def _inspect(data: Data, root: Path, options: argparse.Namespace) -> Inspection:
    processors = os.cpu_count() or 1
    if options.quick:
        return inspect_data(data, root, 4 * processors, depth="headers", despite_errors=True)
    cache = root / "cache" / "checks"
    return inspect_data(data, root, processors, cache=cache, again=options.again, depth="pixels", despite_errors=True)


def _print_inspection(name: str, data: Data, inspection: Inspection) -> int:
    """Print the bad samples, statistics and warnings of both splits; return the number of bad samples."""
    bad = 0
    for split, source in inspection.sources.items():
        print(f"{name}/{split}: {len(source)} samples, {describe_skipped(source.ignored)}", flush=True)
        for note in source.notes:
            print(f"{name}/{split}: {note}")
        bad += _print_report(f"{name}/{split}", data, inspection.reports[split])
    if inspection.statistics is not None:
        print(format_table(statistics_rows(inspection.statistics), rule=False))
        if inspection.statistics.unknown:
            print(f"not yet known: {unknown_text(inspection.statistics)}")
    for warning in inspection.warnings:
        print(f"{name}: warning: {warning}")
    return bad


def _print_report(where: str, data: Data, report: Report) -> int:
    for kind, problems in (("", report.unreadable), ("", report.wrong), ("damaged, ", report.damaged)):
        for problem in problems:
            print(f"{problem.path}\t{kind}{problem.reason}")
    if report.unreadable:
        share = len(report.unreadable) / report.samples
        above = share > data.max_bad_fraction
        print(
            f"{where}: {len(report.unreadable)} samples cannot be read ({share:.4g} of them, "
            f"{'above' if above else 'not above'} data.max_bad_fraction {data.max_bad_fraction:g}): "
            f"training {'refuses them' if above else 'leaves them out and counts them'}"
        )
    if report.wrong:
        print(f"{where}: {len(report.wrong)} masks do not fit: training refuses them; {mask_advice(report)}")
    if report.damaged:
        print(
            f"{where}: {len(report.damaged)} JPEGs or shards are damaged: training cannot tell and uses what they "
            "decode to"
        )
    return len(report.unreadable) + len(report.wrong) + len(report.damaged)


def _advice(bad: int, warnings: int, path: Path, options: argparse.Namespace) -> str:
    """Return what to do next."""
    if bad:
        return (
            f"{bad} bad samples. Correct or replace the files named above, or remove them (with their masks or "
            "annotations), then run this check again."
        )
    if options.quick:
        warned = f" Warnings: {warnings}." if warnings else ""
        return f"All headers are sound.{warned} Damage behind them is found without --quick."
    sound = f"Nothing is refused; warnings: {warnings}." if warnings else "Nothing bad."
    root = ["--root", options.root] if options.root else []
    given = shlex.join(["--recipe", str(path), *options.overrides, *root, "--dry-run"])
    return f"{sound} Next: {command_line('full')} {given}"
