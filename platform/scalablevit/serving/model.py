"""The registered model: encoded image bytes in, answers out. MLflow runs this file ("models from code") to load it."""

import json
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


class BadRequest(MlflowException):
    """HTTP 400 with its own sentence, before which MLflow's server else writes the request with its image bytes."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The sentence."""
        return str(self.args[0])

    @message.setter
    def message(self, _: str) -> None:
        """Keep the sentence."""


class ImageModel(PythonModel):
    """Answers one row for each image; see the task's `answer` for the columns."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from `config.json` and fill it from safetensors: nothing is unpickled."""
        from scalablevit.config.stored import stored_stage
        from scalablevit.config.user_code import stored_sums
        from scalablevit.serving.network import load_trained
        from scalablevit.serving.request import Limits

        config = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        # users' code: the archive's own copy, which MLflow has put on the path
        where = context.artifacts["config"]
        stage = stored_stage(config["stage"], where, imports=True, expected=stored_sums(config.get("user_code"), where))
        self.limits = Limits.from_environment()
        self.trained = load_trained(stage, config["classes"], context.artifacts["weights"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answers for encoded images (JPEG, PNG, ...) in the only column, in their order.

        Images of a request share passes of the network where they come out in equal sizes.

        `model_input` is any form that `read_request` takes. Its type hint stays: of a wider one, MLflow makes a
        signature of its own, which refuses tables.

        A request without any image is answered by one row about the model: `task`, `model_classes` in the order of the
        network's outputs, `max_pixels`, `max_images` and `max_bytes`.

        Raises:
            MlflowException: a request above the limits, or an image that cannot be decoded, by its number (HTTP 400
                when served).
        """
        import torch

        from scalablevit.data.decoding import BadSample, decode_image, mean_color
        from scalablevit.serving.grouping import in_groups
        from scalablevit.serving.request import RefusedRequest, read_request, variable

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
            for number, content in enumerate(contents):
                try:
                    yield decode_image(content, most, f"image {number}", limit=limit, background=background)
                except BadSample as error:
                    raise BadRequest(f"image {number}: {error.reason}") from None

        answers = []
        for images in in_groups(decoded()):
            with torch.inference_mode():
                answers += [prediction.answer() for prediction in trained.predict_batch(images)]
        return pd.DataFrame(answers)


mlflow.models.set_model(ImageModel())
