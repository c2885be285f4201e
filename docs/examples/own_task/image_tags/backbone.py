"""A small convolutional network, known to timm as `tag_net`."""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

default_cfgs = generate_default_cfgs({  # timm looks for them under this name
    "tag_net.untrained": {
        "num_classes": 1000, "input_size": (3, 32, 32), "first_conv": "stem", "classifier": "head",
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    },
})  # fmt: skip


class TagNet(nn.Module):
    """Three strided convolutions, the mean over places, and a linear layer."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, width: int = 16, **_: Any) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(in_chans, width, 3, 2, 1)
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, 2, 1),
            nn.ReLU(),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Nothing is worth recomputing."""

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        return self.head(torch.flatten(self.body(self.stem(images)).mean((2, 3)), 1))


@register_model
def tag_net(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the network."""
    return build_model_with_cfg(TagNet, "tag_net", pretrained, **kwargs)
