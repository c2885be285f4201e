"""What the training scripts share: arguments, the gates in order, the dry run, and exit codes."""

import argparse
import errno
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from scalablevit.config.errors import SearchFailed, TrainingFailed, UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.overrides import Scope
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.config.space_loading import load_search
from scalablevit.config.task_info import kind_of_script
from scalablevit.config.trial import trial_gpus, with_values
from scalablevit.config.unused_keys import without_unused
from scalablevit.jobs.signals import end_like_ctrl_c
from scalablevit.tracking.connection import mask

DEMO = "demo.yaml"
UNREAD = 141
"""Exit code where nobody reads the output any more (`| head`): 128 and SIGPIPE, as shells say it."""
RECIPES = Path(__file__).resolve().parents[3] / "pipelines" / "recipes"

OVERRIDES = """\
Overrides are dotted recipe keys: optimizer.lr=1e-4 data.root=/data/photos cluster.workers=8. Each applies to the stages
that have the key, of those that the script runs and those that they start from; a line names the stages when they are
not all of the recipe. stages.<name>.<key>=value applies to one stage. Every key is described where it is defined: data
and task in platform/scalablevit/config/data.py and task.py, the other sections in recipe.py next to them.

Exit codes: 0 done; 2 something in the recipe, the data or the cluster that you can mend (nothing was lost); 1 a
failure while running; 130 interrupted. Submitting the same command again continues where it stopped."""


def main(script: str, description: str, arguments: Sequence[str] | None = None) -> int:
    """Run the stages of a recipe that belong to a script.

    Args:
        script: `full`, or the name of a single-stage script.
        description: for --help.
        arguments: without the program's name; None: the process's own.
    """
    options = parse(script, description, arguments)
    return guarded(lambda: _run(script, options))


def guarded(work: Callable[[], int]) -> int:
    """Run the body of a script: a user's mistake becomes a message and exit code 2, SIGTERM ends like Ctrl-C.

    Where nobody reads standard output any more, the script ends without a word, with `UNREAD`.
    """
    end_like_ctrl_c()
    try:
        code = work()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:
        return _ended(2, f"\n{error}")
    except (TrainingFailed, SearchFailed) as error:
        return _ended(1, f"\n{error}")
    except KeyboardInterrupt:
        return _ended(130, "\ninterrupted; submit the same command again to continue")
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return UNREAD
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _ended(2, f"\n{_disk_full(error)}")
        return _ended(1, mask(traceback.format_exc(), ""))
    finally:
        _is_unread()  # or the interpreter would fail on what is left


def _ended(code: int, reason: str) -> int:
    """The exit code; the reason goes to stderr, which may be a file on a full disk."""
    with suppress(OSError):
        print(reason, file=sys.stderr, flush=True)
    return code


def _disk_full(error: OSError) -> UserError:
    return UserError(
        str(error.strerror or error),
        where=str(error.filename or ""),
        fix="free some space, then give the same command again; a training goes on where it stopped",
    )


def _is_unread() -> bool:
    """Whether nobody reads standard output any more; what is left to be printed then goes nowhere."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, or no file
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True


def parse(script: str, description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments that all training scripts take."""
    parser = argparse.ArgumentParser(
        prog=f"pipelines/{script}.py",
        description=description,
        epilog=OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the recipe")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="recipe (default: the built-in demo)")
    parser.add_argument(
        "--root", metavar="DIR", help="where runs, models and mlflow.db are kept (SCALABLEVIT_ROOT, ~/scalablevit)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")
    return parser.parse_intermixed_args(arguments)


def _run(script: str, options: argparse.Namespace) -> int:
    path = options.recipe or RECIPES / DEMO
    if options.recipe is None:
        print(f"no --recipe given: running the demo, {path.name}", flush=True)
    recipe = load_recipe(path, options.overrides, Scope(f"{script}.py runs", kind_of_script(script), note=print))
    tuned = script == "full" and recipe.tune is not None
    search = load_search(path.parent / str(recipe.tune), (), recipe) if tuned else None
    root = platform_root(options.root)
    # imported late: a wrong recipe is answered before anything slow is loaded
    from scalablevit.jobs import resolve
    from scalablevit.jobs.announce import announce
    from scalablevit.jobs.result import without_secrets

    wanted = resolve.wanted_stages(recipe, script)
    stages = resolve.resolve(recipe, root, wanted, resolve.DRY_RUN_S if options.dry_run else None)
    if search is not None:
        resolve.check_metric(search, next(stage for stage in stages if stage.name == search.stage))
    announce(recipe.name, stages, root)
    if search is not None:
        from scalablevit.jobs.search_summary import plan

        samples = next(stage.train_samples for stage in stages if stage.name == search.stage)
        print("\n" + plan(search, samples), flush=True)
    if options.dry_run:
        shown = {stage.name: without_unused(without_secrets(stage.stage).model_dump(mode="json")) for stage in stages}
        print("\nresolved recipe:\n" + _yaml({"name": recipe.name, "version": recipe.version, "stages": shown}))
        print("dry run: nothing was started")
        return 0
    print(flush=True)
    from scalablevit.jobs import chain, cluster  # these load Ray

    cluster.connect(stages, root, None if search is None else trial_gpus(search))
    origins: dict[str, dict[str, str]] = {}
    if search is not None:
        from scalablevit.jobs.older_runs import older_searches
        from scalablevit.jobs.search import search_name, search_stage

        searched = resolve.resolve(recipe, root, [search.stage])
        for note in older_searches(search, search_name(search, searched[-1]), root):
            print(f"note: {note}", flush=True)
        found = search_stage(search, searched, root)
        recipe, origins = with_values(recipe, search.stage, found.best.values), {search.stage: found.origin()}
        stages = resolve.resolve(recipe, root, wanted)
    results = chain.run_chain(recipe, stages, root, origins)
    print("\n" + chain.table(results, root, tracking_uri(stages[0].stage.tracking.uri, root)), flush=True)
    return 0


def _yaml(tree: object) -> str:
    import yaml

    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
