"""What to write in place of keys that other tools have and recipes lack."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from scalablevit.config.recipe import Stage
from scalablevit.config.section import sections_in
from scalablevit.config.stage_keys import has_key
from scalablevit.config.strict_yaml import YamlMapping
from scalablevit.config.task_info import TASKS
from scalablevit.config.upgrade import KEYS as RENAMED

KEYS = {
    # length and batch
    "max_epochs": "training.epochs", "num_epochs": "training.epochs", "n_epochs": "training.epochs",
    "epochs": "training.epochs", "num_train_epochs": "training.epochs",
    "max_steps": "training.steps", "max_iters": "training.steps", "max_iter": "training.steps",
    "num_steps": "training.steps", "iterations": "training.steps", "steps": "training.steps",
    "batch": "training.global_batch_size", "batch_size": "training.global_batch_size",
    "bs": "training.global_batch_size", "samples_per_gpu": "training.global_batch_size",
    "train_batch_size": "training.global_batch_size", "per_device_train_batch_size": "training.global_batch_size",
    "accumulate": "training.accumulation_steps", "accumulate_grad_batches": "training.accumulation_steps",
    "grad_accum": "training.accumulation_steps", "grad_accum_steps": "training.accumulation_steps",
    "gradient_accumulation": "training.accumulation_steps",
    "gradient_accumulation_steps": "training.accumulation_steps",
    # optimizer
    "learning_rate": "optimizer.lr", "lr0": "optimizer.lr", "base_lr": "optimizer.lr", "max_lr": "optimizer.lr",
    "optim": "optimizer.name", "opt": "optimizer.name", "wd": "optimizer.weight_decay",
    "decay": "optimizer.weight_decay", "clip_grad": "optimizer.clip_norm", "grad_clip": "optimizer.clip_norm",
    "gradient_clip_val": "optimizer.clip_norm", "max_grad_norm": "optimizer.clip_norm",
    "clip_grad_norm": "optimizer.clip_norm", "llrd": "optimizer.layer_decay",
    "layer_wise_lr_decay": "optimizer.layer_decay", "scheduler": "optimizer.schedule", "sched": "optimizer.schedule",
    "lr_scheduler": "optimizer.schedule", "lr_schedule": "optimizer.schedule", "schedule": "optimizer.schedule",
    "warmup": "optimizer.schedule.warmup_epochs", "warm_up": "optimizer.schedule.warmup_epochs",
    "num_warmup_steps": "optimizer.schedule.warmup_steps", "warmup_iters": "optimizer.schedule.warmup_steps",
    "warmup_lr_init": "optimizer.schedule.warmup_lr", "eta_min": "optimizer.schedule.min_lr",
    "lr_min": "optimizer.schedule.min_lr", "milestones": "optimizer.schedule.decay_epochs",
    "lr_steps": "optimizer.schedule.decay_epochs", "optimizer.schedule.steps": "optimizer.schedule.decay_epochs",
    "optimizer.schedule.step": "optimizer.schedule.decay_epochs",
    "optimizer.schedule.decay": "optimizer.schedule.gamma",
    # loop
    "trainer": "training", "train": "training", "early_stop": "training.early_stopping",
    "earlystopping": "training.early_stopping", "stopping": "training.early_stopping",
    "ema": "training.ema_decay", "model_ema": "training.ema_decay", "model_ema_decay": "training.ema_decay",
    "model_ema_warmup": "training.ema_warmup", "use_ema_warmup": "training.ema_warmup",
    "random_seed": "training.seed", "seed": "training.seed", "random_state": "training.seed",
    "torch_compile": "training.compile", "eval_interval": "training.evaluate_every",
    "val_interval": "training.evaluate_every", "check_val_every_n_epoch": "training.evaluate_every",
    "eval_every": "training.evaluate_every", "validate_every": "training.evaluate_every",
    "save_interval": "training.checkpoint_every", "save_period": "training.checkpoint_every",
    "save_every": "training.checkpoint_every", "checkpoint_interval": "training.checkpoint_every",
    "save_top_k": "training.keep.best", "save_total_limit": "training.keep.last",
    "log_interval": "training.log_every_steps", "log_every": "training.log_every_steps",
    "log_every_n_steps": "training.log_every_steps", "print_freq": "training.log_every_steps",
    "dtype": "training.precision", "detect_anomaly": "training.nonfinite",
    # model
    "arch": "model.name", "architecture": "model.name", "backbone": "model.name", "model_name": "model.name",
    "drop_path": "model.drop_path_rate", "stochastic_depth": "model.drop_path_rate",
    "droppath": "model.drop_path_rate", "pretrained": "model.init", "weights": "model.init",
    "load_from": "model.init", "finetune": "model.init", "init_weights": "model.init",
    "pretrained_weights": "model.init", "model.path": "model.init",
    "gradient_checkpointing": "model.grad_checkpointing",
    "activation_checkpointing": "model.grad_checkpointing", "model_kwargs": "model.options",
    # data
    "dataset": "data", "datasets": "data", "data_dir": "data.root", "data_root": "data.root",
    "dataset_path": "data.root", "path": "data.root", "data.train.path": "data.train.images",
    "data.val.path": "data.val.images", "image_size": "data.image_size", "img_size": "data.image_size",
    "imgsz": "data.image_size",
    "input_size": "data.image_size", "image_sz": "data.image_size", "resolution": "data.image_size",
    "randaugment": "data.rand_augment", "auto_augment": "data.rand_augment", "aa": "data.rand_augment",
    "hflip": "data.flip", "fliplr": "data.flip", "flip": "data.flip", "horizontal_flip": "data.flip",
    "reprob": "data.random_erasing", "mixup_alpha": "data.mixup", "cutmix_alpha": "data.cutmix",
    "mixup_prob": "data.mix_prob", "normalize_mean": "data.mean", "normalize_std": "data.std",
    "colorjitter": "data.color_jitter", "smoothing": "task.label_smoothing",
    # cluster and tracking
    "num_workers": "cluster.loader_workers", "dataloader_num_workers": "cluster.loader_workers",
    "gpu": "cluster.gpus_per_worker", "device": "cluster.gpus_per_worker", "accelerator": "cluster.gpus_per_worker",
    "cluster.path": "cluster.storage", "cpus": "cluster.cpus_per_worker", "num_cpus": "cluster.cpus_per_worker",
    "world_size": "cluster.workers", "num_nodes": "cluster.workers", "nproc_per_node": "cluster.workers",
    "max_restarts": "cluster.max_failures", "project": "tracking.experiment", "exp_name": "tracking.experiment",
    "experiment_name": "tracking.experiment", "mlflow_uri": "tracking.uri", "tracking_uri": "tracking.uri",
    "registered_model_name": "tracking.register_as", "notifications": "tracking.notify",
}  # fmt: skip
"""Our key for each name of other tools, whatever section the name is in; for a dotted name, only there."""

SIZES = ("data.image_size", "data.crop_size", "data.short_side")
"""Keys for the size of images; a source has the first one of these that it knows in place of the others."""

LEAVE_OUT = "leave it out"
"""How a hint begins where the stage has nothing to write in place of a key."""

NOTES = {
    "training.global_batch_size": "the samples of one optimizer step, over all workers",
    "cluster.gpus_per_worker": "0 computes on the CPU; cluster.workers is the number of processes",
    "cluster.loader_workers": "the data-loading processes of each worker; cluster.workers are the training processes",
    "training.evaluate_every": "as {epochs: 1} or {steps: 500}",
    "training.checkpoint_every": "as {epochs: 1} or {steps: 500}",
    "training.early_stopping": "as {patience: 5}",
    "tracking.notify": "as [finished, failed]; whom to notify is set in the environment, SCALABLEVIT_NOTIFY_WEBHOOK",
    "training.ema_decay": "as 0.9999; null: off",
    "training.precision": "float32 or bfloat16",
    "model.init": "a .safetensors or .pth file, timm:<tag>, models:/<name>@<alias> or stage:<name>",
    "optimizer.schedule": "as {kind: cosine, warmup_epochs: 5}",
}
"""What a key takes, where its name does not say it; shown after the key."""

SENTENCES = {
    "num_classes": "leave it out: the number of classes is read from the data",
    "nc": "leave it out: the number of classes is read from the data",
    "n_classes": "leave it out: the number of classes is read from the data",
    **dict.fromkeys(
        ("amp", "fp16", "use_amp", "mixed_precision", "half"),
        "write training.precision: bfloat16 for mixed precision; float16 is not available",
    ),
    "bf16": "write training.precision: bfloat16",
    **dict.fromkeys(
        ("resume", "resume_from", "auto_resume", "resume_from_checkpoint"),
        "leave it out: submit the same command again, and the run continues from its last checkpoint",
    ),
    **dict.fromkeys(
        ("checkpoint", "ckpt", "checkpoint_path"),
        "write model.init to start from weights; a run resumes when the same command is submitted again",
    ),
    **dict.fromkeys(
        ("save_dir", "output_dir", "out_dir", "work_dir", "log_dir", "default_root_dir"),
        "give --root on the command line, or write cluster.storage",
    ),
    "run_name": "leave it out: a run is named after the recipe, the stage and their hash",
    **dict.fromkeys(
        ("freeze", "frozen_stages", "freeze_backbone", "freeze_layers", "freeze_at"),
        "leave it out: freezing layers is not available yet; optimizer.layer_decay lowers the rate of early layers",
    ),
    **dict.fromkeys(
        ("class_weights", "class_weight", "pos_weight"), "leave it out: weights of classes are not available yet"
    ),
    **dict.fromkeys(
        ("gpus", "num_gpus", "n_gpus", "devices"),
        "write cluster.workers: <number of GPUs> and cluster.gpus_per_worker: 1",
    ),
    "recipe": "give --recipe on the command line",
    "version": "leave it out: it is stated once, at the top of a file",
    "workers": "write cluster.workers for training processes, cluster.loader_workers for the data-loading ones of each",
    **dict.fromkeys(
        ("dataloader", "data_loader"),
        "write training.global_batch_size and cluster.loader_workers",
    ),
    **dict.fromkeys(("val_split", "test_size", "val_ratio"), "name the folders of both splits: data.train, data.val"),
    **dict.fromkeys(
        ("strategy", "distributed", "ddp", "sync_bn"),
        "leave it out: cluster.workers decides, and GPUs share batch statistics",
    ),
    **dict.fromkeys(
        ("webhook", "webhook_url", "slack", "slack_webhook", "teams"),
        "leave it out: write tracking.notify: [finished, failed], and set SCALABLEVIT_NOTIFY_WEBHOOK for the job",
    ),
    **dict.fromkeys(("wandb", "tensorboard", "logger"), "runs are tracked by MLflow: write tracking.uri"),
}
"""What to do instead of names of other tools that no single key replaces."""

AUGMENTATION = (
    "data.rand_augment", "data.color_jitter", "data.random_erasing", "data.mixup", "data.cutmix",
    "data.scale_range", "data.train_short_sides", "data.flip", "data.transforms",
)  # fmt: skip
"""Keys that augment training images; a stage has some of them."""
LISTS = dict.fromkeys(("augment", "augmentation", "augmentations", "transforms", "aug"), AUGMENTATION)
"""Our keys for names that several replace; a hint has those that the stage has."""

AS_SECTION = {
    "data": "write data: {source: ..., root: ..., train: {...}, val: {...}}",
    "model": "write model: {name: ...}",
    "task": "write task: {kind: ...}",
    "optimizer": "write optimizer: {name: ..., lr: ...}",
    "optimizer.schedule": "write optimizer.schedule: {kind: ...}",
    "training.evaluate_every": "write {epochs: ...} or {steps: ...}",
    "training.checkpoint_every": "write {epochs: ...} or {steps: ...}",
    "training.early_stopping": "write training.early_stopping: {patience: ...}",
    "training.nonfinite": "write training.nonfinite: {action: ...}",
    "data.rand_augment": "write data.rand_augment: {magnitude: ...}",
}
"""What to write where a single value is given in place of a section, by dotted path in the stage."""


def key_hint(path: Sequence[str | int], stage: YamlMapping | None = None) -> str:
    """Say what to write in place of an unknown key; empty when nothing is known of it.

    Args:
        path: key path in a recipe or in a stage; only its last part need be unknown.
        stage: plain values of the stage, valid or not: its kinds decide which keys it has; None: it may have any.
    """
    # a file may have `data.image_size: 64` at its top
    names = ".".join(str(part) for part in _in_stage(path)).lower().replace("-", "_").split(".")
    name, dotted = names[-1], ".".join(names)
    if not name:
        return ""
    if name in SENTENCES:
        return SENTENCES[name]
    written_with_dots = len(names) > len(_in_stage(path))
    wanted = _our_keys(name, dotted)
    having = [key for key in wanted if stage is None or has_key(stage, key.split("."))]
    if not having and wanted:
        return _hint_without_key(wanted[0], stage or {})
    if written_with_dots and dotted in having:
        return f"write {name} in the section {'.'.join(names[:-1])}"
    having = [key for key in having if key != dotted]
    if not having:
        return ""
    note = f" ({NOTES[having[0]]})" if len(having) == 1 and having[0] in NOTES else ""
    return "write " + " or ".join(filter(None, (", ".join(having[:-1]), having[-1]))) + note


def stage_with_hint(path: Sequence[str | int], stages: Mapping[str, YamlMapping]) -> tuple[str, str]:
    """Return the first stage that has a key to write in place of another one, else one for which another hint is known.

    Args:
        path: key path in a stage.
        stages: plain values of the stages to choose from.

    Returns:
        The stage's name, and the hint; both are empty where nothing is known.
    """
    hints = {name: hint for name, stage in stages.items() if (hint := key_hint(path, stage))}
    name = min(hints, key=lambda name: hints[name].startswith(LEAVE_OUT), default="")
    return name, hints.get(name, "")


def _our_keys(name: str, dotted: str) -> Sequence[str]:
    """Return the keys, by dotted path in a stage, that somebody may mean by a name."""
    homes = schema_keys().get(name, ())
    if dotted in homes:
        return (dotted,)
    target = KEYS.get(dotted) or KEYS.get(name) or _new_path_by_old_name().get(name)
    return (target,) if target else LISTS.get(name, homes)


def _hint_without_key(key: str, stage: YamlMapping) -> str:
    """Say what a stage has in place of a key that only stages of other kinds have."""
    if key in SIZES and (size := next((other for other in SIZES if has_key(stage, other.split("."))), "")):
        return f"write {size}"
    kinds = [
        info.kind
        for info in TASKS.values()
        if any(
            has_key({"task": {"kind": info.kind}, "data": {"source": name}}, key.split(".")) for name in info.sources
        )
    ]
    return f"{LEAVE_OUT}: only {' and '.join(kinds)} {'have' if len(kinds) > 1 else 'has'} {key}" if kinds else ""


def section_hint(path: Sequence[str | int]) -> str:
    """Say what to write in place of a single value where a section is expected; empty when nothing is known of it."""
    return AS_SECTION.get(".".join(map(str, _in_stage(path))), "")


@cache
def schema_keys() -> dict[str, tuple[str, ...]]:
    """Return the dotted paths in a stage that end in a key, by the key's name."""
    paths_by_name: dict[str, dict[str, None]] = {}
    for path in _paths(Stage, ""):
        paths_by_name.setdefault(path.rpartition(".")[2], {})[path] = None
    return {name: tuple(paths) for name, paths in paths_by_name.items()}


def _paths(annotation: Any, at: str) -> Iterator[str]:
    """Yield the dotted paths of all keys in the sections of a type."""
    for section in sections_in(annotation):
        for name, field in section.model_fields.items():
            path = f"{at}.{name}" if at else name
            yield path
            yield from _paths(field.annotation, path)


@cache
def _new_path_by_old_name() -> dict[str, str]:
    """Return today's dotted path by the last part of a key of version 1, for old keys in a wrong section."""
    return {old.rpartition(".")[2]: f"{old.rpartition('.')[0]}.{new}" for old, new in RENAMED.items()}


def _in_stage(path: Sequence[str | int]) -> Sequence[str | int]:
    return path[2:] if path and path[0] == "stages" else path
