# %% [markdown]
# # Segment images, from Python
#
# As `train_and_predict.py` next to it, for the class of each pixel. A minute or two on two CPU cores, nothing is
# downloaded.

# %%
import scalablevit as sv

# %% [markdown]
# The demo's recipe with fewer and smaller images. Its stage `segment` starts from the weights of `pretrain`.

# %%
recipe = sv.load_recipe(
    "demo",
    "data.root=example-data",
    "data.shapes={train_images: 240, val_images: 60, image_size: 64}",
    "stages.pretrain.training.epochs=3",
    "stages.pretrain.optimizer.schedule.warmup_epochs=0.5",
    "stages.pretrain.training.evaluate_every.epochs=1",
    "stages.segment.data.short_side=64",
    "stages.segment.data.long_side=64",
    "stages.segment.data.crop_size=64",
    "stages.segment.training.epochs=8",
    "stages.segment.training.evaluate_every.epochs=4",
    "stages.segment.optimizer.schedule.warmup_steps=5",
)

# %% [markdown]
# The stage, after the one that it starts from. `metrics` has the intersection over union of each class.

# %%
results = sv.run(recipe, stages="segment")
for stage in results:
    print(f"{stage.name}: {stage.metric} {stage.value:.3f}, {stage.registered_as} version {stage.version}")
print(f"background: {results['segment'].metrics['val/iou/background']:.3f}")

# %% [markdown]
# A prediction's `mask` is uint8 (height, width), at the size of the image as given: each pixel is the index of its
# class in `model.classes`. `shares` are the fractions of the pixels, largest first.

# %%
model = sv.load_model(results["segment"].run_folder)
files = sorted((results.root / "example-data/segmentation/images/val").glob("*.jpg"))[::20]
predictions = model.predict(files)
for file, prediction in zip(files, predictions, strict=True):
    shares = ", ".join(f"{name} {share:.0%}" for name, share in prediction.shares.items())
    print(f"{file.name}: mask {prediction.mask.shape} {prediction.mask.dtype}, {shares}")

# %% [markdown]
# The pixels of one class. Overlays as files:
# `scalablevit predict models:/demo-segment@candidate <images> --out <folder>`.

# %%
background = predictions[0].mask == model.classes.index("background")
print(f"background in the first image: {background.sum()} of {background.size} pixels")
