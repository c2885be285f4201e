"""A registered model or a finished run, evaluated on its validation split or on other data."""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scalablevit.config.errors import UserError
from scalablevit.config.loading import override_stage
from scalablevit.config.recipe import Recipe
from scalablevit.config.root import platform_root
from scalablevit.jobs.run_store import RunStore
from scalablevit.jobs.stage import CONFIG, WEIGHTS

EPILOG = """\
MODEL is models:/<name>@<alias>, models:/<name>/<version> or the name of a run under <root>/runs. Its own recipe says
what it is evaluated on; overrides change that: data.root=/other/data, cluster.workers=4,
task.test_time_augmentation='{scales: [0.75, 1.0, 1.25], flip: true}', tracking.uri=http://..."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The script's arguments."""
    parser = argparse.ArgumentParser(
        prog="pipelines/evaluate.py", description="Evaluate a registered model, on the workers of the Ray cluster.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the model's recipe")
    parser.add_argument("--root", metavar="DIR", help="the platform's root (SCALABLEVIT_ROOT, ~/scalablevit)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Evaluate and print; see `parse`."""
    root = platform_root(options.root)
    weights, config = find_model(options.model, options.overrides, root)
    recipe = override_stage("evaluate", {**config["stage"], "model": {**config["stage"]["model"], "init": None}},
                            options.overrides, options.model)  # fmt: skip
    figures = evaluate_weights(recipe, weights, tuple(config["classes"]), root, dry_run=options.dry_run)
    if figures is None:
        return 0
    width = max(map(len, figures))
    print("\n".join(f"{name:<{width}}  {value:.4f}" for name, value in figures.items()))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def find_model(model: str, overrides: Sequence[str], root: Path) -> tuple[str, dict[str, Any]]:
    """Weights file and `config.json` of a registered version or of a run.

    Raises:
        UserError: there is no such model.
    """
    if model.startswith("models:/"):
        from scalablevit.tracking.weights import resolve_weights

        uri = next((o.partition("=")[2] for o in overrides if o.startswith("tracking.uri=")), None)
        found = resolve_weights(model, uri or f"sqlite:///{root}/mlflow.db", root / "cache" / "models")
        return str(found.weights), found.config
    folder = root / "runs" / Path(model).name
    if not (folder / WEIGHTS).is_file():
        known = sorted(path.parent.parent.name for path in (root / "runs").glob(f"*/{WEIGHTS}"))
        raise UserError(f"no finished run {model!r}", where=str(root / "runs"),
                        fix=f"finished: {', '.join(known) or 'none'}; or write models:/<name>@<alias>")  # fmt: skip
    store = RunStore(folder.name, str(folder), folder)
    return str(folder / WEIGHTS), store.read_json(CONFIG) or {}


def evaluate_weights(
    recipe: Recipe, weights: str, classes: tuple[str, ...], root: Path, *, dry_run: bool
) -> dict[str, float] | None:
    """Figures of the weights on the recipe's one stage, computed by Ray Train workers; None for a dry run.

    Raises:
        UserError: the data has other classes than the model.
    """
    from scalablevit.jobs import cluster, resolve
    from scalablevit.training.launch import launch
    from scalablevit.training.worker import Assignment

    stage = resolve.resolve(recipe, root)[0]
    if stage.classes != classes:
        raise UserError(f"the data has the classes {', '.join(stage.classes)}; the model answers {', '.join(classes)}",
                        where="data", fix="name data with the model's classes")  # fmt: skip
    print(f"{stage.val_samples} validation samples of {stage.stage.data.root}, digest {stage.digest}", flush=True)
    if dry_run:
        print("dry run: nothing was started")
        return None
    cluster.connect([stage], root)
    assignment = Assignment(
        stage=stage.stage.model_dump_json(), run_folder="", root=str(root), init_weights=weights, evaluate_only=True
    )
    folder = root / "runs" / f"evaluate-{stage.hash}"
    try:
        result = launch(stage.stage, assignment.as_dict(), str(folder), [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Ray's own files, of no use afterwards
    return dict(result["metrics"])
