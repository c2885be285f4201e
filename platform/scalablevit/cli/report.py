"""Write the report of a job, a stage or a search again, or the index of all runs."""

import argparse
from pathlib import Path

from scalablevit.cli.arguments import add_root
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.config.errors import UserError
from scalablevit.config.root import platform_root
from scalablevit.run_files import INDEX, REPORT, RUNS

EPILOG = f"""\
RUN is the name of a job's, a stage's or a search's folder below <root>/runs, or a path to one; a job is all that one
command trains of a recipe. The page is made of what is there and replaces the folder's {REPORT}; nothing is computed
again, and MLflow is not contacted.

--index writes <root>/runs/{INDEX} in place of that: all runs by date with their state, their best metric and a link to
their report, where they have one. It shows the runs as they are now; write it again when runs have gone on.

Exit codes: 0 done; 2 something that you can fix; 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="name of a run, as `runs list` prints it, or a path")
    parser.add_argument("--index", action="store_true", help="write a page over all runs of the root, without RUN")
    add_root(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what the page would be made of, write nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page and print where it is; see `add_arguments`.

    Raises:
        UserError: neither a run nor --index is given, or both; or there is no such run.
    """
    if (options.run is not None) == options.index:
        given = f"{options.run} and --index" if options.index else "neither RUN nor --index"
        raise UserError(f"given: {given}", where="RUN", fix="name a run to make its report, or --index for all runs")
    if options.index:
        if options.json:
            raise UserError("the index has no JSON document", where="--json", fix="use `runs list --json`")
        return _write_index(platform_root(options.root, make=False), dry_run=options.dry_run)
    # imported late: they load Ray
    from scalablevit.cli.documents import ReportedSearch, ReportedStage, ReportMade
    from scalablevit.report.collect import gather
    from scalablevit.report.page import render
    from scalablevit.training.storage import put_text

    folder = Path(options.run).expanduser()
    if len(folder.parts) == 1:
        folder = platform_root(options.root, make=False) / RUNS / folder
    with stdout_to_stderr(options.json):  # users' code that stages name may print when it is imported
        page = gather(folder.absolute())
    if not options.dry_run:
        put_text(str(folder), REPORT, render(page))
    if options.json:
        stages = tuple(ReportedStage(name=stage.name, state=stage.state) for stage in page.stages)
        searches = tuple(ReportedSearch(name=search.name, trials=len(search.trials)) for search in page.searches)
        print_document(ReportMade(file=str(folder / REPORT), stages=stages, searches=searches))
        return 0
    print("\n".join([f"stage {stage.name}: {stage.state}" + (f"; {stage.problem}" if stage.problem else "")
                     for stage in page.stages]
                    + [f"search {search.name}: {len(search.trials)} trials" for search in page.searches]))  # fmt: skip
    if options.dry_run:
        print("dry run: nothing was written")
        return 0
    print(f"report: {folder / REPORT}")
    return 0


def _write_index(root: Path, *, dry_run: bool) -> int:
    """Write the index of all runs and print where it is.

    Raises:
        UserError: the root has no runs.
    """
    from scalablevit.cli.runs import list_runs
    from scalablevit.report.index import KnownRun, gather_index, render_index
    from scalablevit.training.storage import put_text

    if not (root / RUNS).is_dir():
        raise UserError("there are no runs", where=str(root / RUNS), fix="name another folder by --root")
    listed, unreadable = list_runs(root)
    runs = [KnownRun(run.store.local, run.status, run.state) for run in listed]
    page = render_index(gather_index(root, runs, unreadable))
    print(f"{len(runs)} runs" + (f", {len(unreadable)} unreadable" if unreadable else ""))
    if dry_run:
        print("dry run: nothing was written")
        return 0
    put_text(str(root / RUNS), INDEX, page)
    print(f"index: {root / RUNS / INDEX}")
    return 0
