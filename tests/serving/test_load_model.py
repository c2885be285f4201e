"""Registered models in Python; tests/api loads those of run folders."""

import json

import numpy as np
import pytest
import torch
from harness.predicting import trained

import scalablevit as sv
from scalablevit.config.stored import stored_config, stored_stage
from scalablevit.models.cpu_linear import OneDNNLinear, is_available
from scalablevit.serving.network import load_trained


@pytest.mark.parametrize("source", ["models:/toy-segment/1", "models:/toy-segment@candidate"])
def test_a_registered_model_is_that_of_its_run(registry, source):
    """Version 1 is of the run with seed 0, version 2, the candidate, of that with seed 1."""
    found = sv.load_model(source, root=registry)
    expected = trained(registry, "segment")
    assert (found.task, found.classes) == ("segmentation", expected.task.classes)
    weights, of_seed_0 = found.network.state_dict(), expected.network.state_dict()
    equal = all(torch.equal(weights[key], of_seed_0[key]) for key in of_seed_0)
    assert list(weights) == list(of_seed_0) and equal == source.endswith("/1")
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    (prediction,) = sv.predict(source, image, root=registry)
    assert prediction.mask.shape == (40, 56)
    assert np.array_equal(prediction.mask, found.predict(image)[0].mask)


def test_a_version_that_is_not_registered(registry):
    with pytest.raises(sv.UserError, match="nobody"):
        sv.load_model("models:/nobody@champion", root=registry)


@pytest.mark.skipif(not is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("library", ["onednn", "torch", None])
def test_a_model_computes_by_the_library_of_its_evaluation(registry, library):
    """None: a version that was registered before there was a choice."""
    folder = registry / "runs" / "toy-segment-0" / "model"
    config = json.loads((folder / "config.json").read_bytes())
    del config["stage"]["training"]["cpu_linear"]
    if library is not None:
        config["stage"]["training"]["cpu_linear"] = library
    stage = stored_stage(config["stage"])
    assert stored_config(config)["stage"]["training"]["cpu_linear"] == (library or "torch")
    loaded = load_trained(stage, config["classes"], folder / "weights.safetensors", torch.device("cpu"))
    found = {type(module) for module in loaded.network.modules() if isinstance(module, torch.nn.Linear)}
    assert found == {OneDNNLinear if library == "onednn" else torch.nn.Linear}
    assert list(loaded.network.state_dict()) == list(trained(registry, "segment").network.state_dict())
