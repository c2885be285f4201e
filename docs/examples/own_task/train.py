# %% [markdown]
# # Train a task of your own, from Python
#
# The package `image_tags` next to this file brings a task, a data source and a backbone: images with any number of
# tags. About a minute on two CPU cores, nothing is downloaded.

# %%
import os
from pathlib import Path

import image_tags  # noqa: F401  # registers what the recipe names
from tag_data import write_tag_data

import scalablevit as sv

# %% [markdown]
# The data: an image's tags are the shapes in it.

# %%
root = Path(os.environ.get("SCALABLEVIT_ROOT") or "~/scalablevit").expanduser()
write_tag_data(root, train_images=240, val_images=60)
print((root / "tag-data/val.csv").read_text(encoding="utf-8").splitlines()[0])

# %% [markdown]
# Reading a recipe imports nothing that it names: the package had to be imported before. It travels to the workers, and
# its sum is part of the run.

# %%
recipe = sv.load_recipe(
    "docs/examples/own_task/tags.yaml",
    "training.steps=90",
    "training.evaluate_every.steps=30",
)
results = sv.run(recipe, root=root)
tagged = results["tag"]
print(f"{tagged.name}: {tagged.metric} {tagged.value:.3f}, {tagged.registered_as} version {tagged.version}")

# %% [markdown]
# Predictions are what the package's predictor returns.

# %%
model = sv.load_model(tagged.run_folder)
files = sorted((root / "tag-data/images/val").glob("*.jpg"))[::20]
for file, prediction in zip(files, model.predict(files), strict=True):
    shares = dict(zip(prediction.classes, prediction.probabilities.tolist(), strict=True))
    print(f"{file.name}: {' '.join(prediction.tags) or 'no tag'}; circle {shares['circle']:.2f}")
