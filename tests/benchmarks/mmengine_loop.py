"""The same segmentor, trained by mmengine's Runner on MMSegmentation's data set, transforms and metric.

    python tests/benchmarks/mmengine_loop.py <stage as JSON> <work folder> <file for rates and score>

It does what the stage says, in one process and thread; no checkpoints are written.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mmseg.datasets  # registers the data set, its transforms and, below, the metric
import mmseg.evaluation  # noqa: F401
import torch
from benchmarks.rates import WINDOW
from mmengine.config import ConfigDict
from mmengine.runner import Runner

import scalablevit.tasks.segmentation.segmentor  # noqa: F401  registers the backbone
from scalablevit.config.recipe import Length, Stage
from scalablevit.models.backbone import build_pyramid
from scalablevit.tasks.segmentation.segmentor import BACKBONE, head_configs


def main() -> int:
    stage = Stage.model_validate_json(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    classes = (Path(stage.data.root) / stage.data.classes).read_text().splitlines()
    runner = Runner(
        model=model(stage, len(classes)),
        work_dir=sys.argv[2],
        default_scope="mmseg",
        randomness={"seed": stage.training.seed},
        log_level="WARNING",
        default_hooks={"checkpoint": None, "logger": {"type": "LoggerHook", "interval": WINDOW}},
        env_cfg={"mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0}, "dist_cfg": {"backend": "gloo"}},
        **data(stage, classes),
        **schedule(stage),
    )
    runner.train()
    seconds, _ = runner.message_hub.get_scalar("train/time").data  # of each iteration, loading included
    score = runner.message_hub.get_scalar("val/mIoU").current() / 100
    result = {"rates": rates(list(seconds), stage.training.global_batch_size), "score": score}
    Path(sys.argv[3]).write_text(json.dumps(result))
    return 0


def rates(seconds: list[float], batch: int) -> list[float]:
    """Images a second of each window of steps after the first, from the seconds of each step."""
    windows = [seconds[start : start + WINDOW] for start in range(WINDOW, len(seconds), WINDOW)]
    return [len(window) * batch / sum(window) for window in windows]


def model(stage: Stage, classes: int) -> dict[str, Any]:
    """MMSegmentation's EncoderDecoder with our backbone and the stage's heads."""
    pyramid = build_pyramid(stage.model.name, stage.model.drop_path_rate)
    side = stage.data.crop_size
    return {
        "type": "EncoderDecoder",
        "backbone": {"type": BACKBONE, "name": stage.model.name, "drop_path_rate": stage.model.drop_path_rate},
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [255 * each for each in stage.data.mean],
            "std": [255 * each for each in stage.data.std],
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": stage.data.ignore_index,
            "size": (side, side),
        },
        "train_cfg": {},
        "test_cfg": ConfigDict(mode="whole"),  # it is asked for attributes
        **head_configs(stage.task, pyramid.channels, classes),
    }


def data(stage: Stage, classes: list[str]) -> dict[str, Any]:
    """Loaders of both splits, and the metric."""
    wanted = stage.data
    scale = (wanted.long_side, wanted.short_side)
    cut = [
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": scale, "ratio_range": wanted.scale_range, "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (wanted.crop_size, wanted.crop_size)},
        {"type": "RandomFlip", "prob": wanted.flip},
    ]
    whole = [{"type": "Resize", "scale": scale, "keep_ratio": True}, {"type": "LoadAnnotations"}]

    def split(part: Any, transforms: list[dict[str, Any]], batch: int, sampler: dict[str, Any]) -> dict[str, Any]:
        return {
            "batch_size": batch,
            "num_workers": 0,
            "persistent_workers": False,
            "sampler": sampler,
            "dataset": {
                "type": "BaseSegDataset",
                "data_root": wanted.root,
                "data_prefix": {"img_path": part.images, "seg_map_path": part.masks},
                "metainfo": {"classes": classes, "palette": [[number] * 3 for number in range(len(classes))]},
                "ignore_index": wanted.ignore_index,
                "reduce_zero_label": wanted.reduce_zero_label,
                "pipeline": [{"type": "LoadImageFromFile"}, *transforms, {"type": "PackSegInputs"}],
            },
        }

    return {
        "train_dataloader": split(wanted.train, cut, stage.training.global_batch_size, {"type": "InfiniteSampler"}),
        "val_dataloader": split(wanted.val, whole, 1, {"type": "DefaultSampler", "shuffle": False}),
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "val_cfg": {"type": "ValLoop"},
    }


def schedule(stage: Stage) -> dict[str, Any]:
    """The stage's length, optimizer and learning rate by step; evaluated at the end only."""
    wanted = stage.optimizer
    images = len(list((Path(stage.data.root) / stage.data.train.images).iterdir()))
    length = Length.of(stage, images)
    return {
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": length.total, "val_interval": length.total},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": wanted.lr, "weight_decay": wanted.weight_decay},
            "paramwise_cfg": {"norm_decay_mult": 0.0, "bias_decay_mult": 0.0},
        },
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": length.warmup},
            {"type": "PolyLR", "power": wanted.schedule.power, "eta_min": wanted.schedule.min_lr, "by_epoch": False,
             "begin": length.warmup, "end": length.total},
        ],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
