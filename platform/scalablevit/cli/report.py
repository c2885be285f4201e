"""The report of a job, a stage or a search made again, from the command line."""

import argparse
from pathlib import Path

from scalablevit.cli.json_output import add_json, print_document
from scalablevit.config.root import platform_root
from scalablevit.run_files import RUNS

EPILOG = """\
RUN is the name of a job's, a stage's or a search's folder below <root>/runs, or a path to one. The page is made of what
is there and replaces the folder's report.html; nothing is computed again, and MLflow is not contacted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--root", metavar="DIR", help="the platform's root (SCALABLEVIT_ROOT, ~/scalablevit)")
    parser.add_argument("--dry-run", action="store_true", help="say what the page would be made of, write nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Make the page and say where it is; see `add_arguments`."""
    # imported late: they load Ray
    from scalablevit.cli.documents import ReportedSearch, ReportedStage, ReportMade
    from scalablevit.report.collect import gather
    from scalablevit.report.page import render
    from scalablevit.run_files import REPORT
    from scalablevit.training.storage import put_text

    folder = Path(options.run).expanduser()
    if len(folder.parts) == 1:
        folder = platform_root(options.root, make=False) / RUNS / folder
    page = gather(folder.absolute())
    if not options.dry_run:
        put_text(str(folder), REPORT, render(page))
    if options.json:
        stages = tuple(ReportedStage(name=each.name, state=each.state) for each in page.stages)
        searches = tuple(ReportedSearch(name=each.name, trials=len(each.trials)) for each in page.searches)
        print_document(ReportMade(file=str(folder / REPORT), stages=stages, searches=searches))
        return 0
    print("\n".join([f"stage {stage.name}: {stage.state}" for stage in page.stages]
                    + [f"search {search.name}: {len(search.trials)} trials" for search in page.searches]))  # fmt: skip
    if options.dry_run:
        print("dry run: nothing was written")
        return 0
    print(f"report: {folder / REPORT}")
    return 0
