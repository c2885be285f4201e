"""config/model_names.txt says what timm offers; `python tests/models/test_model_names.py` writes it anew (20 minutes).

Every name that timm can build stands there. It is marked `pyramid` if `build_pyramid` builds it and its maps, on meta
tensors at the architecture's default image size, have the channels and sizes that `Pyramid` promises.
"""

from pathlib import Path

import pytest
import timm
import torch

from scalablevit.config.errors import UserError
from scalablevit.models.backbone import STRIDES, build_pyramid

NAMES_FILE = Path(__file__).parents[2] / "platform/scalablevit/config/model_names.txt"


def has_pyramid(name: str) -> bool:
    """Whether `name` gives four maps with strides 4, 8, 16 and 32; takes no arithmetic."""
    channels, height, width = timm.get_pretrained_cfg(name).input_size
    with torch.device("meta"):
        try:
            pyramid = build_pyramid(name).eval()
        except UserError:
            return False
        maps = pyramid(torch.empty(1, channels, height, width))
    shapes = [(1, dim, -(-height // s), -(-width // s)) for dim, s in zip(pyramid.channels, STRIDES, strict=True)]
    return [tuple(level.shape) for level in maps] == shapes


def line(name: str) -> str:
    return f"{name} pyramid\n" if has_pyramid(name) else f"{name}\n"


def test_the_list_names_what_timm_offers() -> None:
    listed = [entry.split()[0] for entry in NAMES_FILE.read_text().splitlines()]
    assert listed == sorted(timm.list_models()), "timm changed: run python tests/models/test_model_names.py"


MARKED = ["scalablevit_tiny", "resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0", "hrnet_w18_small", "vgg11"]
UNMARKED = ["vit_tiny_patch16_224", "inception_v3", "mixer_s32_224"]


@pytest.mark.parametrize("name", MARKED + UNMARKED)
def test_the_mark_is_what_the_architecture_gives(name: str) -> None:
    assert line(name) in NAMES_FILE.read_text().splitlines(keepends=True)
    assert has_pyramid(name) == (name in MARKED)


if __name__ == "__main__":
    NAMES_FILE.write_text("".join(map(line, sorted(timm.list_models()))))
