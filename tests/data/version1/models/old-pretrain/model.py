"""The registered model: encoded image bytes in, answers out. MLflow runs this file ("models from code") to load it."""

import json
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext


class ImageModel(PythonModel):
    """Answers one row for each image; see the task's `answer` for the columns."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from `config.json` and fill it from safetensors: nothing is unpickled."""
        from scalablevit.config.recipe import Stage
        from scalablevit.serving.network import load_trained

        config = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        stage = Stage.model_validate_json(json.dumps(config["stage"]))
        self.trained = load_trained(stage, config["classes"], context.artifacts["weights"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Answers for encoded images (JPEG, PNG, ...) in the only column, in their order.

        Raises:
            MlflowException: an image that cannot be decoded, by its number (HTTP 400 when served).
        """
        import torch

        from scalablevit.data.decoding import BadSample, decode_image

        trained = self.trained
        answers = []
        for number, content in enumerate(model_input.iloc[:, 0]):
            try:
                image = decode_image(content, trained.stage.data.max_pixels, f"image {number}")
            except BadSample as error:
                raise MlflowException.invalid_parameter_value(f"image {number}: {error.reason}") from None
            with torch.inference_mode():
                answers.append(trained.task.answer(trained.network, image, trained.device))
        return pd.DataFrame(answers)


mlflow.models.set_model(ImageModel())
