"""The registered model: encoded images in, predictions out. MLflow runs this file ("models from code") to load it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

ARCHIVE = Path(__file__).with_name("code") / "scalablevit.zip"
"""Our package in a registered version, one file; versions of before have its folder, which MLflow puts on the path."""
if ARCHIVE.is_file() and "scalablevit" not in sys.modules:  # a process that has the package keeps its own
    sys.path.insert(0, str(ARCHIVE))


class BadRequest(MlflowException):
    """HTTP 400 with one sentence only; to others MLflow's server adds the request with its image bytes."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """Return the sentence."""
        return str(self.args[0])

    @message.setter
    def message(self, _: str) -> None:
        """Ignore the new message, to which MLflow's server has added the request."""


class ImageModel(PythonModel):
    """Predicts one row for each image; the columns are those of the task's `Prediction.to_dict`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from `config.json` and load its weights from safetensors: nothing is unpickled."""
        from scalablevit.config.stored import stored_stage
        from scalablevit.config.user_code import stored_sums
        from scalablevit.serving.network import load_trained
        from scalablevit.serving.request import Limits

        config = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        # users' code comes from the archive's own copy, which MLflow has put on the path
        where = context.artifacts["config"]
        stage = stored_stage(config["stage"], where, imports=True, expected=stored_sums(config.get("user_code"), where))
        self.limits = Limits.from_environment()
        self.trained = load_trained(stage, config["classes"], context.artifacts["weights"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return predictions for encoded images (JPEG, PNG, ...), one row for each, in their order.

        Images of a request share forward passes of the network where they have equal sizes after preprocessing.

        A request without any image gets one row about the model: `task`, `model_classes` in the order of the
        network's outputs, `max_pixels`, `max_images` and `max_bytes`.

        Args:
            context: MLflow's; not needed.
            model_input: any form that `read_request` takes, with the images in the only column. The type hint must not
                be wider: MLflow would make a signature from it, which refuses tables.
            params: MLflow's; not needed.

        Raises:
            MlflowException: the request is above a limit, or an image, named by its index, cannot be decoded (HTTP 400
                when served).
        """
        import torch

        from scalablevit.data.decoding import BadSample, decode_image, mean_color
        from scalablevit.serving.grouping import in_groups
        from scalablevit.serving.request import RefusedRequest, read_request, variable
        from scalablevit.serving.threads import limit_threads

        trained, limits = self.trained, self.limits
        own, background = trained.stage.data.max_pixels, mean_color(trained.stage.data.mean)
        most, limit = min((limits.max_pixels, variable("max_pixels")), (own, "data.max_pixels"))
        try:
            contents = read_request(model_input, limits)
        except RefusedRequest as error:
            raise BadRequest(str(error)) from None
        if not contents:
            about = {"task": trained.stage.task.kind, "model_classes": list(trained.task.classes), "max_pixels": most,
                     "max_images": limits.max_images, "max_bytes": limits.max_bytes}  # fmt: skip
            return pd.DataFrame([about])

        def decoded() -> Iterator[NDArray[np.uint8]]:
            for index, content in enumerate(contents):
                try:
                    yield decode_image(content, most, f"image {index}", limit=limit, background=background)
                except BadSample as error:
                    raise BadRequest(f"image {index}: {error.reason}") from None

        rows = []
        for images in in_groups(decoded()):
            with torch.inference_mode(), limit_threads():
                rows += [prediction.to_dict() for prediction in trained.predict_batch(images)]
        return pd.DataFrame(rows)


mlflow.models.set_model(ImageModel())
