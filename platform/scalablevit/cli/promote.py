"""Compare a candidate with the champion on the same data; the alias moves only if the recipe's gate passes."""

import argparse
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.cli.arguments import add_root
from scalablevit.cli.documents import Promotion
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.cli.promotion_evidence import (
    Contender,
    format_evidence,
    format_outcome,
    gather_evidence,
    metric_name,
    now,
)
from scalablevit.config.commands import command_name
from scalablevit.config.errors import UserError
from scalablevit.config.loading import override_stage
from scalablevit.config.overrides import overridden_tracking_uri, path_in_stage
from scalablevit.config.recipe import Stage
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.config.stored import ModelConfig
from scalablevit.config.user_code import SHOWN_SUM, import_stored_code, package_contents, stored_sums
from scalablevit.pipeline.resolve import ResolvedStage, resolve_evaluation
from scalablevit.pipeline.seen_images import SeenImages, find_seen
from scalablevit.pipeline.trained_models import note_older, trained_recipe
from scalablevit.runs.console import say_while_waiting
from scalablevit.runs.result import without_secrets
from scalablevit.tracking import tags
from scalablevit.tracking.champion import CANDIDATE, CHAMPION, aliases, move_champion, tags_of, write_tags
from scalablevit.tracking.connection import without_credentials
from scalablevit.tracking.notifications import Notifier, sending_notifications
from scalablevit.tracking.notify_settings import load_settings
from scalablevit.tracking.weights import RegisteredWeights, resolve_weights
from scalablevit.training.data_listing import store_listings

if TYPE_CHECKING:
    from scalablevit.serving.score import Score

SAME_DATA = ("source", "root", "train", "val", "shapes", "max_pixels", "classes", "ignore_index", "reduce_zero_label",
             "instance_masks", "max_bad_fraction", "max_shared_fraction")  # fmt: skip
"""Keys of a data section that decide which samples there are and may be; the others are each model's own."""
CHANGEABLE = ("promotion", "tracking.uri", "tracking.notify", "cluster.cpus_per_worker", "cluster.gpus_per_worker",
              "cluster.loader_workers", *(f"data.{key}" for key in SAME_DATA))  # fmt: skip
"""Keys that overrides may change; all others are each model's own."""
NO_CHAMPION = "none"
"""Value of the tag of the previous champion where there was none."""
PROMOTED, REFUSED, ALREADY, ROLLED_BACK = "promoted", "refused", "champion already", "rolled back"
EPILOG = """\
NAME is a registered model. Its version with the alias candidate and the one with the alias champion are
evaluated on the validation split of the candidate's recipe, in float32 as served. The gate is the recipe's
`promotion` section: overrides change it, as in promotion.margin=0.005
promotion.require_significance=true promotion.max_latency_ms=50, and data.root=/other/data evaluates both on other data
with the same classes. Images that a version was trained on, and files that cannot be decoded, are counted and limited
as by `evaluate`. What belongs to each model itself (network, task, image size) is its own recipe's, and overrides
of it are refused. Where there is no champion yet, the limits alone decide (promotion.min_value, max_latency_ms,
max_weights_mb); with --limits-alone also where there is one that cannot be compared, such as one that an
earlier version of your own code made. Both versions' metrics, the gain with its confidence interval (paired bootstrap
over images) and the reasons are written on the candidate's version as tags, whatever comes out.

Latency is the median time of 20 predictions of one image (batch size 1), from decoded pixels to the prediction, on the
machine that evaluates, which is named. With RAY_ADDRESS that is a node of the cluster, else this one. On a CPU, torch
uses one thread, or --latency-threads; a line warns when a thread had no free core.

Exit codes: 0 promoted (or champion already, or rolled back); 1 the gate refuses; 2 something that you can fix; 130
interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("name", metavar="NAME", help="registered model, as in models:/NAME")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the candidate's recipe")
    add_root(parser)
    parser.add_argument("--latency-threads", type=_positive, default=1, metavar="N",
                        help="torch's threads while latency is measured on a CPU (default: 1)")  # fmt: skip
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--limits-alone",
        action="store_true",
        help="decide by the limits of `promotion` alone, without scoring the champion",
    )
    ways.add_argument(
        "--rollback", action="store_true", help="make the previous champion the champion again, without evaluating"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="evaluate both versions and print the decision; move no alias, write no tag",
    )
    add_json(parser)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Evaluate, decide and print why; see `add_arguments`.

    Raises:
        UserError: there is no such candidate or champion, the two cannot be compared, or data or cluster do not fit.
    """
    with stdout_to_stderr(options.json):
        document = _decide(options)
    if options.json:
        print_document(document)
    return 1 if document.outcome == REFUSED else 0


def _decide(options: argparse.Namespace) -> Promotion:
    _refuse_without_effect(options.overrides)
    root = platform_root(options.root, make=False)
    uri = tracking_uri(overridden_tracking_uri(options.overrides), root)
    known = aliases(uri, options.name)
    if options.rollback:
        return _roll_back(uri, options.name, known.get(CHAMPION), dry_run=options.dry_run)
    if CANDIDATE not in known:
        raise UserError(
            f"no version of {options.name} has the alias {CANDIDATE}",
            where=f"{options.name}@{CANDIDATE}",
            fix="every finished run registers one; or set the alias on the version that you mean",
        )
    if known.get(CHAMPION) == known[CANDIDATE]:
        print(f"{options.name} version {known[CANDIDATE]} is the champion already: nothing was evaluated or moved")
        return Promotion(model=options.name, candidate=known[CANDIDATE], champion=known[CANDIDATE], outcome=ALREADY,
                         reasons=(), moved=False, evidence=None)  # fmt: skip
    versions = {
        alias: resolve_weights(f"models:/{options.name}/{known[alias]}", uri, root / "cache" / "models")
        for alias in ((CANDIDATE,) if options.limits_alone else (CANDIDATE, CHAMPION))
        if alias in known
    }
    for alias, version in versions.items():
        note_older(f"the {alias}", version.config)
    _refuse_different_code(list(versions.values()))
    resolved = _resolve(versions[CANDIDATE], options.overrides, root)
    if resolved.stage.tracking.notify:
        load_settings()  # a mistake in them is named before minutes of scoring
    print(f"  data    {resolved.val_samples} validation samples, {resolved.digest}", flush=True)
    registered = versions[CANDIDATE].tags.get(tags.DATA_DIGEST)
    if registered is not None and not resolved.train_samples:
        print(
            f"  note    without its training split it is not known if the candidate was trained with it: {registered}"
        )
    elif registered not in (None, resolved.digest):
        print(f"  note    the candidate was trained with other data: {registered}")
    stages = {alias: _on_same_data(version, resolved) for alias, version in versions.items()}
    seen = {alias: _find_seen(version, resolved, root) for alias, version in versions.items()}
    for alias, images in seen.items():
        print(f"  seen    {alias}: {images.words}", flush=True)
    _connect(stages.values(), root)
    threads = options.latency_threads
    listing = root / "cache" / f"promote-{uuid.uuid4().hex[:8]}"
    try:
        store_listings(str(listing), resolved.sources)  # all contenders are scored on the same files
        contenders = {
            alias: Contender(version, _score_version(version, stages[alias], root, threads, listing), seen[alias].count)
            for alias, version in versions.items()
        }
    finally:
        shutil.rmtree(listing, ignore_errors=True)
    candidate, champion, before = contenders[CANDIDATE], contenders.get(CHAMPION), known.get(CHAMPION)
    with sending_notifications(root, [] if options.dry_run else [resolved.stage]):
        return _promote_or_refuse(uri, root, candidate, champion, before, resolved, dry_run=options.dry_run)


def _refuse_without_effect(overrides: Sequence[str]) -> None:
    """Refuse overrides of keys that are each model's own.

    Raises:
        UserError: there is one.
    """
    for override in overrides:
        path = path_in_stage(override)
        if not any(".".join(path[:length]) in CHANGEABLE for length in range(1, len(path) + 1)):
            raise UserError(
                "has no effect here: each model is scored by its own recipe",
                where=f"override {override!r}",
                fix=f"overrides may change {', '.join(CHANGEABLE)}",
            )


def _refuse_different_code(versions: Sequence[RegisteredWeights]) -> None:
    """Refuse to compare versions that different users' code under one name has made.

    Raises:
        UserError: names the package and both sums.
    """
    sums = [stored_sums(version.config.get("user_code"), version.name) for version in versions]
    for package in dict.fromkeys(name for version_sums in sums for name in version_sums):
        digests = [version_sums[package] for version_sums in sums if package in version_sums]
        if len(set(digests)) > 1 and not _are_of_package_here(package, digests):
            digests_text = " and ".join(digest[:SHOWN_SUM] for digest in digests)
            raise UserError(
                f"candidate and champion were made by different {package} (content sums {digests_text}), and one "
                "process can import only one of them",
                where=f"{versions[0].name}@{CHAMPION}",
                fix=f"look at both by `{command_name('evaluate')}`, each with its own code on PYTHONPATH; then "
                f"`{command_name('promote')} {shlex.quote(versions[0].name)} --limits-alone` decides by the limits of "
                "the recipe's promotion",
            )


def _are_of_package_here(package: str, digests: Sequence[str]) -> bool:
    """Return whether sums are those of the package on this machine: earlier releases stored that of a build."""
    try:
        content = package_contents([package])[package]
    except UserError:
        return False
    return {content.digest, content.portable_sum}.issuperset(digests)


def _resolve(candidate: RegisteredWeights, overrides: Sequence[str], root: Path) -> ResolvedStage:
    """Return the candidate's stage with its data, which is checked.

    Raises:
        UserError, UserErrors: as `trained_recipe` and `resolve_evaluation`.
    """
    recipe = trained_recipe("promote", candidate.config, overrides, f"models:/{candidate.name}/{candidate.version}")
    return resolve_evaluation(recipe, root, candidate.config["classes"])


def _check_same_classes(version: RegisteredWeights, classes: tuple[str, ...]) -> None:
    """Refuse data with other classes than the version predicts.

    Raises:
        UserError: there are other classes.
    """
    if set(version.config["classes"]) != set(classes):
        raise UserError(
            f"the data has the classes {', '.join(classes)}; {version.name}/{version.version} predicts "
            f"{', '.join(version.config['classes'])}",
            where="data",
            fix="name data with the model's classes; models of different classes cannot be compared",
        )


def _find_seen(version: RegisteredWeights, resolved: ResolvedStage, root: Path) -> SeenImages:
    """Count the evaluation images that a version was trained on.

    Raises:
        UserError: there are more than `data.max_shared_fraction` allows, or as `trained_recipe`.
    """
    name = f"models:/{version.name}/{version.version}"
    ungated: ModelConfig = {**version.config, "stage": {**version.config["stage"], "promotion": {}}}
    own = trained_recipe("promote", ungated, (), name).stages["promote"].data
    most = resolved.stage.data.max_shared_fraction
    sha256 = version.tags[tags.WEIGHTS_SHA256]
    return find_seen(name, version.weights, sha256, own, resolved.sources["val"], most, root)


def _on_same_data(version: RegisteredWeights, resolved: ResolvedStage) -> Stage:
    """Return a version's own stage, with its image sizes and micro-batch, on the candidate's samples and worker.

    Raises:
        UserError: it has another kind of task or other classes, or its users' code is not here.
    """
    _check_same_classes(version, resolved.classes)
    stage = resolved.stage
    stored = version.config["stage"]
    if stored["task"]["kind"] != stage.task.kind:
        raise UserError(
            f"{version.name}/{version.version} is for {stored['task']['kind']}, the candidate for {stage.task.kind}",
            where=version.name,
            fix="register different tasks under different names (tracking.register_as)",
        )
    data = stage.data.model_dump(mode="json")
    sections = {
        "data": {**stored["data"], **{key: data[key] for key in SAME_DATA if key in data}},
        "model": {**stored["model"], "init": None},
        # one process scores, with the batch of one training worker, which is known to fit on its device
        "training": {
            **stored["training"],
            "global_batch_size": stored["training"]["global_batch_size"] // stored["cluster"]["workers"],
        },
        "cluster": {**stage.cluster.model_dump(mode="json"), "workers": 1, "min_workers": None},
        "promotion": stage.promotion.model_dump(mode="json"),
        "imports": list(dict.fromkeys([*stored.get("imports", ()), *stage.imports])),
    }
    name = f"models:/{version.name}/{version.version}"
    import_stored_code(version.config, name)
    alike = override_stage("promote", {**stored, **sections}, (), name)
    return without_secrets(alike.stages["promote"])


def _score_version(
    version: RegisteredWeights, stage: Stage, root: Path, latency_threads: int, listing: Path
) -> "Score":
    """Score a version.

    Raises:
        UserError: too many of the validation samples cannot be decoded, or the cluster cannot do it.
    """
    print(f"  scoring {version.name} version {version.version}", flush=True)
    with say_while_waiting("promote", "the scores and the latency"):
        result = _score(version, stage, root, latency_threads, listing)
    from scalablevit.training.evaluate import refuse_bad

    samples = len(result.per_sample.indices) + result.bad
    refuse_bad(result.bad, samples, stage.data.max_bad_fraction * samples)
    return result


def _connect(stages: Iterable[Stage], root: Path) -> None:
    """Connect to the cluster that RAY_ADDRESS names, if any, with the users' code of all contenders."""
    if not os.environ.get("RAY_ADDRESS"):
        return
    import ray

    from scalablevit.pipeline import cluster

    if not ray.is_initialized():
        cluster.connect([], root, imports=[name for stage in stages for name in stage.imports])


def _score(version: RegisteredWeights, stage: Stage, root: Path, latency_threads: int, listing: Path) -> "Score":
    """Score a version on a node of the cluster that RAY_ADDRESS names, else in this process.

    Raises:
        UserError: a node does not see the files, or none has room.
    """
    from scalablevit.serving.score import score

    arguments = (stage.model_dump_json(), tuple(version.config["classes"]), str(version.weights), str(root),
                 metric_name(stage), latency_threads, str(listing))  # fmt: skip
    if not os.environ.get("RAY_ADDRESS"):
        return score(*arguments)
    import ray

    from scalablevit.pipeline import cluster
    from scalablevit.training.environment import worker_variables

    data = str(root / Path(stage.data.root).expanduser())
    cluster.count_processes(stage)
    cluster.refuse_unseen({str(version.weights): f"--root ({root})", data: f"data.root ({data})"})
    gpus = stage.cluster.gpus_per_worker
    task = ray.remote(score).options(
        num_cpus=stage.cluster.cpus_per_worker, num_gpus=gpus, runtime_env={"env_vars": worker_variables(gpus)}
    )
    result: Score = ray.get(task.remote(*arguments))
    return result


def _promote_or_refuse(
    uri: str,
    root: Path,
    candidate: Contender,
    champion: Contender | None,
    before: int | None,
    resolved: ResolvedStage,
    *,
    dry_run: bool,
) -> Promotion:
    """Print both versions' metrics, tag the candidate with the decision, and move the alias if the gate passes.

    Args:
        uri: MLflow's address.
        root: the platform's root.
        candidate: the version to promote.
        champion: what it is compared with; None: nothing, and the limits alone decide.
        before: number of the champion, compared or not; None: there is none.
        resolved: the candidate's stage on its evaluation data.
        dry_run: write and move nothing.

    Raises:
        UserError: the two could not read the same samples.
    """
    from scalablevit.serving.gate import failures, paired_gain

    gate = resolved.stage.promotion
    gain = None
    if champion is not None:
        if champion.score.per_sample.indices != candidate.score.per_sample.indices:
            raise UserError(
                "candidate and champion could not read the same samples",
                where="data.val",
                fix=f"name the bad ones with {command_name('check-data')}, and fix or remove them",
            )
        gain = paired_gain(candidate.score.per_sample, champion.score.per_sample, gate.resamples, gate.confidence)
    missed = failures(gate, candidate.score, gain, candidate.weights_mb)
    evidence = gather_evidence(candidate, champion, gain, resolved)
    print(format_evidence(evidence))
    name, version = candidate.version.name, candidate.version.version
    alone = "there was no champion" if before is None else f"not compared with champion version {before}"
    against = f"the limits alone: {alone}" if champion is None else f"champion version {before}"
    verdict = f"{'refused' if missed else 'promoted'} against {against}" + (f": {'; '.join(missed)}" if missed else "")
    print(f"{name} version {version}: {'would be ' * dry_run}{verdict}")
    document = Promotion(
        model=name, candidate=version, champion=before, outcome=REFUSED if missed else PROMOTED, reasons=tuple(missed),
        moved=not missed and not dry_run, evidence=asdict(evidence),
    )  # fmt: skip
    if dry_run:
        print(f"dry run: nothing was written or moved; {format_outcome(uri, candidate, before, missed, dry_run=True)}")
        return document
    written = {tags.PROMOTION: verdict, tags.PROMOTION_EVIDENCE: json.dumps(asdict(evidence))}
    if missed:
        write_tags(uri, name, version, written)
        print(format_outcome(uri, candidate, before, missed))
        _notify(document, resolved.stage, root, uri)
        return document
    # before the move: without this tag a new champion could not be rolled back
    write_tags(uri, name, version, {tags.PREVIOUS_CHAMPION: str(before or NO_CHAMPION)})
    move_champion(uri, name, before, version)
    print(format_outcome(uri, candidate, before, missed), flush=True)
    _notify(document, resolved.stage, root, uri)
    write_tags(uri, name, version, written)  # says that it is promoted
    return document


def _notify(document: Promotion, stage: Stage, root: Path, uri: str) -> None:
    """Record the decision for those whom the candidate's recipe wants to be notified."""
    model, version, evidence = document.model, document.candidate, document.evidence or {}
    notifier = Notifier(root, stage.tracking.notify, f"models:/{model}/{version}", None, without_credentials(uri))
    notifier.record("refused" if document.outcome == REFUSED else "promoted", evidence["metric"],
                    evidence["candidate"]["value"], model=model, version=version)  # fmt: skip


def _roll_back(uri: str, name: str, champion: int | None, *, dry_run: bool) -> Promotion:
    """Move the alias champion back to the version that had it before.

    Raises:
        UserError: there is no champion, or none before it.
    """
    if champion is None:
        raise UserError(f"{name} has no champion", where=f"{name}@{CHAMPION}", fix="promote a candidate first")
    previous = tags_of(uri, name, champion).get(tags.PREVIOUS_CHAMPION, NO_CHAMPION)
    if not previous.isdecimal():
        raise UserError(
            f"no champion came before version {champion}", where=f"{name}/{champion}", fix="promote another candidate"
        )
    tags_of(uri, name, int(previous))  # raises if it was deleted
    print(f"{name}: champion {'would go' if dry_run else 'goes'} back from version {champion} to version {previous}")
    document = Promotion(model=name, candidate=int(previous), champion=champion, outcome=ROLLED_BACK, reasons=(),
                      moved=not dry_run, evidence=None)  # fmt: skip
    if dry_run:
        print(f"dry run: nothing was written or moved in {without_credentials(uri)}")
        return document
    move_champion(uri, name, champion, int(previous))
    print(f"models:/{name}@{CHAMPION} is version {previous} in {without_credentials(uri)}", flush=True)
    write_tags(uri, name, champion, {tags.ROLLED_BACK: f"{now()}: champion is version {previous} again"})
    return document
