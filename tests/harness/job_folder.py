"""A job's folders as stages leave them, made without training: fresh weights are looked at, metrics are made up."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml

from scalablevit.config.data import Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length
from scalablevit.config.stored import to_store
from scalablevit.config.task_info import task_info
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.pipeline.error_analysis import analyse_errors
from scalablevit.pipeline.report import publish_job
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.stage import Job
from scalablevit.run_files import ERROR_ANALYSIS, REPORT
from scalablevit.runs.result import StageResult
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import run_uid
from scalablevit.tasks.registry import build_task
from scalablevit.tracking import tags
from scalablevit.tracking.outbox import Outbox
from scalablevit.training.storage import put_text

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SEARCH = "tiny-pretrain-search-0"
METRICS = {"pretrain": ("loss", "top5"), "segment": ("macc", "aacc"), "detect": ("box_ap50", "mask_ap")}
OF_CLASSES = {"pretrain": (), "segment": ("iou",), "detect": ("box_ap", "mask_ap")}
TRIALS = """\
trial,status,best,at_step,epochs_trained,optimizer.lr,reason
0,stopped,0.25,3,0.5,0.0018789852661499496,by asha after step 3
1,finished,0.75,12,2.0,0.01,
2,failed,,,0.0,0.5,out of memory
"""


def write_job(root: Path, *overrides: str) -> tuple[Job, list[ResolvedStage], dict[str, StageResult]]:
    """The job of the tiny recipe with its three stages finished, and the search that found the first one's values."""
    write_shapes(Shapes(train_images=8, val_images=8, image_size=64), root / "tiny-data")
    write_search(root / "runs" / SEARCH)
    recipe = load_recipe(TINY, overrides)
    stages, results = [], {}
    for name, stage in recipe.stages.items():
        source = open_source(stage.data, "val", root)
        resolved = ResolvedStage(
            name=name, stage=stage, run_name=f"tiny-{name}-0", hash="0", digest="content:4711", classes=source.classes,
            train_samples=8, val_samples=8, unreadable=0, ignored=(), notes=(), length=Length.of(stage, 8),
        )  # fmt: skip
        stages.append(resolved)
        results[name] = write_stage(resolved, root)
    return Job(root, "tiny", "1" * 32, "sqlite://"), stages, results


def write_page(root: Path) -> tuple[Path, list[ResolvedStage], dict[str, StageResult]]:
    """The page of the job of `write_job`, with its stages and results."""
    job, stages, results = write_job(root)
    store = RunStore.open("tiny-0", None, root)
    outbox = Outbox(store.outbox)
    publish_job(job, stages, results, store, outbox)
    outbox.close()
    return store.local / REPORT, stages, results


def write_stage(resolved: ResolvedStage, root: Path) -> StageResult:
    """One finished stage."""
    name, stage = resolved.name, resolved.stage
    store = RunStore.open(resolved.run_name, stage.cluster.storage, root)
    recipe = yaml.safe_dump(to_store(stage), sort_keys=False)
    put_text(str(store.local), "recipe.yaml", recipe)
    put_text(str(store.local), "start.txt", "random weights (seed 0)\nnothing ignored")
    put_text(str(store.local), "attempts.jsonl", json.dumps({"event": "started"}) + "\n")
    uid, outbox = run_uid(store), Outbox(store.outbox)
    facts = {"stage": name, tags.DATA_DIGEST: resolved.digest, tags.RECIPE_HASH: "0"}
    facts |= {tags.SEARCH: SEARCH, tags.SEARCH_TRIAL: "1"} if name == "pretrain" else {}
    outbox.run(uid, store.name, experiment="tiny", tags=facts)
    outbox.params(uid, {"train_samples": 8, "val_samples": 8, "classes": len(resolved.classes)})
    metric = task_info(stage.task.kind).best_metric
    draws = np.random.default_rng(0)
    metrics = {metric: 2 / 3, **{f"val/{each}": draws.random() for each in METRICS[name]}, "val/samples": 8.0}
    metrics |= {f"val/{each}/{kind}": draws.random() for each in OF_CLASSES[name] for kind in resolved.classes}
    rows = {1: {"train/loss": 2.0, "train/lr": 1e-3, "train/grad_norm": 9.0}, 6: {"train/loss": 1.5, metric: 0.5},
            9: {"train/loss": float("nan"), "system/node0/process_memory_gib": 1.5}, 12: metrics}  # fmt: skip
    outbox.metrics(uid, [{"step": step, "time_ms": 1, "metrics": row} for step, row in rows.items()])
    outbox.close()
    result = StageResult(
        name=name, run_name=store.name, uid=uid, folder=store.location, metric=metric, value=2 / 3, step=12,
        metrics=metrics, classes=resolved.classes, images_per_s=12.5, minutes=1.5, reason="finished",
        checkpoint="step_000000012-0", weights_sha256="2" * 64, registered_as=f"tiny-{name}", lineage={},
        last_value=0.5, last_step=15, profile={"start": 30.0, "data": 1.5, "step": 90.5},
        device="A chip",
        version="3",
    )  # fmt: skip
    result.save(store)
    torch.manual_seed(0)
    task = build_task(stage, resolved.classes)
    analyse_errors(task, stage, task.build_model(), open_source(stage.data, "val", root), store.local / ERROR_ANALYSIS)
    return result


def write_search(folder: Path) -> None:
    """A search that has ended."""
    (folder / "plots").mkdir(parents=True)
    space = {"metric": "val/top1", "mode": "max", "searcher": "random", "scheduler": {"kind": "asha"}}
    put_text(str(folder), "space.yaml", yaml.safe_dump(space))
    put_text(str(folder), "trials.csv", TRIALS)
    put_text(str(folder), "best_recipe.yaml", "name: tiny\n")
    for name in ("history", "curves"):
        cv2.imwrite(str(folder / "plots" / f"{name}.png"), np.full((60, 90, 3), 200, np.uint8))
