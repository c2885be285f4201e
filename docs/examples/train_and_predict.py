# %% [markdown]
# # Train a model and use it, from Python
#
# Each `# %%` begins a cell (VS Code, Jupyter with jupytext, Spyder). With the Python of `.venv`, and from the
# repository's folder, it also runs as a script: about a minute on two CPU cores, nothing is downloaded. Runs, models
# and MLflow's database are in SCALABLEVIT_ROOT (`~/scalablevit`).

# %%
import timm
import torch

import scalablevit as sv
import scalablevit.models  # registers ScalableViT with timm

# %% [markdown]
# A recipe with overrides, as on the command line. `recipe.stages["pretrain"].optimizer.lr` is a value of it.

# %%
recipe = sv.load_recipe(
    "pipelines/recipes/demo.yaml",
    "data.root=example-data",
    "data.shapes={train_images: 240, val_images: 60, image_size: 64}",
    "stages.pretrain.training.epochs=3",
    "stages.pretrain.optimizer.schedule.warmup_epochs=0.5",
    "stages.pretrain.training.evaluate_every.epochs=1",
)

# %% [markdown]
# `run` starts Ray on this machine, or goes to the cluster that RAY_ADDRESS names, and leaves it at the end. Only the
# first stage is wanted here. The same call again continues: what is finished is recognised.

# %%
results = sv.run(recipe, stages="pretrain")
again = sv.run(recipe, stages="pretrain")
for stage in (*results, *again):
    print(f"{stage.name}: {stage.metric} {stage.value:.3f}, {stage.registered_as} version {stage.version}")
print(f"trained again: {not again['pretrain'].skipped}")

# %% [markdown]
# The model of a run's folder, and predictions of files; images of Pillow and uint8 arrays do as well.

# %%
model = sv.load_model(results["pretrain"].run_folder)
files = sorted((results.root / "example-data/classification/val").rglob("*.jpg"))[::20]
for file, prediction in zip(files, model.predict(files), strict=True):
    print(f"{file.parent.name}: {prediction.label} ({prediction.probability:.2f}), {prediction.top(3)}")

# %% [markdown]
# The same from the registry, as a torch module.

# %%
registered = sv.load_model(f"models:/{results['pretrain'].registered_as}/{results['pretrain'].version}")
with torch.inference_mode():
    probabilities = registered(registered.preprocess(files)).softmax(dim=1)
print(f"{tuple(probabilities.shape)} probabilities of {', '.join(registered.classes)}")

# %% [markdown]
# An architecture without anything else of the platform.

# %%
backbone = timm.create_model("scalablevit_tiny", num_classes=10)
print(f"{sum(each.numel() for each in backbone.parameters()) / 1e6:.1f} M parameters")
