"""The registered model: encoded image bytes in, answers out. MLflow runs this file ("models from code") to load it."""

import json
from pathlib import Path
from typing import Any

import mlflow.models
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

INPUT_COLUMN = 0


class ImageModel(PythonModel):
    """Answers one row for each image; see the task's `answer` for the columns."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the network from `config.json` and fill it from safetensors: nothing is unpickled."""
        import safetensors.torch
        import torch

        from scalablevit.config.recipe import Stage
        from scalablevit.tasks.task import build_task

        config = json.loads(Path(context.artifacts["config"]).read_text(encoding="utf-8"))
        self.stage = Stage.model_validate_json(json.dumps(config["stage"]))
        self.task = build_task(self.stage, tuple(config["classes"]))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = self.task.build_model()
        self.network.load_state_dict(safetensors.torch.load_file(context.artifacts["weights"]))
        self.network.to(self.device).eval()

    def predict(  # type: ignore[no-untyped-def]
        self,
        context: PythonModelContext,
        # pd.DataFrame with one binary column, or list[bytes]; MLflow takes an annotation for a schema of its own
        model_input,  # noqa: ANN001
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answers for encoded images (JPEG, PNG, ...), in their order.

        Raises:
            MlflowException: an image that cannot be decoded, by its number (HTTP 400 when served).
        """
        import torch

        from scalablevit.data.decoding import BadSample, decode_image

        encoded = model_input.iloc[:, INPUT_COLUMN].tolist() if isinstance(model_input, pd.DataFrame) else model_input
        answers = []
        for number, content in enumerate(encoded):
            try:
                image = decode_image(content, self.stage.data.max_pixels, f"image {number}")
            except BadSample as error:
                raise MlflowException.invalid_parameter_value(f"image {number}: {error.reason}") from None
            with torch.inference_mode():
                answers.append(self.task.answer(self.network, image, self.device))
        return pd.DataFrame(answers)


mlflow.models.set_model(ImageModel())
