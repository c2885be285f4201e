"""Names of architectures, known without importing torch or timm."""

import difflib
from functools import cache
from importlib.resources import files

from scalablevit.config.errors import UserError

LIST = files("scalablevit.config") / "model_names.txt"
"""Written by `tests/models/test_model_names.py`; a test compares it with the installed timm."""


@cache
def known_models() -> dict[str, bool]:
    """Return every architecture, and whether it has the feature maps of strides 4, 8, 16, 32 that dense tasks need."""
    rows = (line.split() for line in LIST.read_text(encoding="ascii").splitlines() if line and line[0] != "#")
    return {name: "pyramid" in marks for name, *marks in rows}


def check_model_name(name: str, *, dense: bool, registered: bool = False) -> None:
    """Refuse an architecture that does not exist, or has no feature pyramid where one is needed.

    Args:
        name: of the architecture.
        dense: whether the task is dense (segmentation, detection) and needs feature maps of strides 4, 8, 16 and 32.
        registered: whether users' code is imported, which may register architectures with timm: an unknown name is then
            no error here, and whoever builds the model checks it.

    Raises:
        UserError: with the nearest names.
    """
    models = known_models()
    if registered and name not in models:
        return
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3)
        raise UserError(
            f"unknown architecture {name!r}",
            where="model.name",
            fix=f"did you mean {', '.join(near)}?" if near else "see config/model_names.txt for all names",
        )
    if dense and not models[name]:
        raise UserError(
            f"{name} has no maps with strides 4, 8, 16 and 32, which dense tasks need",
            where="model.name",
            fix="choose one marked `pyramid` in config/model_names.txt, such as scalablevit_small",
        )
