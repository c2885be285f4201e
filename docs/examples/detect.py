# %% [markdown]
# # Detect objects, from Python
#
# As `train_and_predict.py` next to it, for boxes and instance masks by Mask R-CNN. About two minutes on two CPU cores,
# nothing is downloaded.

# %%
import scalablevit as sv

# %% [markdown]
# The demo's recipe with fewer and smaller images. Its stage `detect` starts from the weights of `pretrain`. Small
# batches give a short training more steps.

# %%
recipe = sv.load_recipe(
    "demo",
    "data.root=example-data",
    "data.shapes={train_images: 240, val_images: 60, image_size: 64}",
    "stages.pretrain.training.epochs=3",
    "stages.pretrain.optimizer.schedule.warmup_epochs=0.5",
    "stages.pretrain.training.evaluate_every.epochs=1",
    "stages.detect.data.short_side=64",
    "stages.detect.data.long_side=64",
    "stages.detect.training.global_batch_size=8",
    "stages.detect.training.epochs=5",
    "stages.detect.training.evaluate_every.epochs=2.5",
    "stages.detect.optimizer.schedule.decay_epochs=[4]",
    "stages.detect.optimizer.schedule.warmup_steps=20",
)

# %% [markdown]
# The stage, after the one that it starts from. `metrics` has COCO's metrics of boxes and of masks.

# %%
results = sv.run(recipe, stages="detect")
for stage in results:
    print(f"{stage.name}: {stage.metric} {stage.value:.3f}, {stage.registered_as} version {stage.version}")
print(f"masks: {results['detect'].metrics['val/mask_ap']:.3f}")

# %% [markdown]
# A prediction holds the objects of an image, best first: `boxes` float32 (n, 4), x1, y1, x2, y2 in pixels of the image
# as given; `scores` (n,); `labels` (n,), class indices, and `names` of the same classes; `mask(i)`, bool (height,
# width). So short a training is unsure: the scores are low. `sv.load_model(folder, "task.score_threshold=0.5")` leaves
# out all below 0.5.

# %%
model = sv.load_model(results["detect"].run_folder)
files = sorted((results.root / "example-data/detection/val").glob("*.jpg"))[::20]
for file, prediction in zip(files, model.predict(files), strict=True):
    print(f"{file.name}: {len(prediction.scores)} objects, boxes {prediction.boxes.shape} {prediction.boxes.dtype}")
    for number, name in enumerate(prediction.names[:3]):
        x1, y1, x2, y2 = prediction.boxes[number].tolist()
        box = f"x {x1:.0f} to {x2:.0f}, y {y1:.0f} to {y2:.0f}"
        mask = prediction.mask(number)
        print(f"  {name} {prediction.scores[number]:.2f}, {box}, mask {mask.shape} of {mask.sum()} pixels")

# %% [markdown]
# Overlays as files: `scalablevit predict models:/demo-detect@candidate <images> --out <folder>`.
