# %% [markdown]
# # Search hyper-parameters, from Python
#
# 16 short trainings with other learning rates and drop path rates, then the best values in full. A few minutes on two
# CPU cores, nothing is downloaded.

# %%
import scalablevit as sv

# %% [markdown]
# `tune` names a search space: a file, or a shipped one, as here. The recipe is the shipped one for CIFAR-10, whose only
# stage the space searches, on the built-in shapes.

# %%
recipe = sv.load_recipe(
    "cifar10",
    "name=shapes",
    "tune=demo",
    "data.root=example-data",
    "data.shapes={train_images: 240, val_images: 60, image_size: 64}",
    "data.train.images=classification/train",
    "data.val.images=classification/val",
    "training.epochs=6",
    "training.global_batch_size=32",
    "training.evaluate_every.epochs=2",
    "optimizer.schedule.warmup_epochs=1",
)

# %% [markdown]
# `run` searches before it trains, unless it is given `stages`. The same call again continues both.

# %%
results = sv.run(recipe)
trained = results["pretrain"]
print(f"{trained.name}: {trained.metric} {trained.value:.3f}, {trained.registered_as} version {trained.version}")

# %% [markdown]
# The five best trials are printed, and where the table of all trials, the plots and the recipe with the best values
# are. The results have the best trial, and the model has the stage that it was trained by.

# %%
search = results.search
assert search is not None
values = ", ".join(f"{key}={value:.4g}" for key, value in search.values.items())
print(f"trial {search.trial} of {search.trials}: {search.metric} {search.value:.4f}, {values}")
stage = sv.load_model(trained.run_folder).stage
print(f"best values: lr {stage.optimizer.lr:.4g}, drop path {stage.model.drop_path_rate:.4g}")
