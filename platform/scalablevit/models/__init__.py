"""Backbones: ScalableViT and any timm model with a pyramid.

Importing this package registers ScalableViT with timm, which then creates its models like any others:

    import scalablevit.models
    import timm

    model = timm.create_model("scalablevit_small", num_classes=10)

`timm.list_models("scalablevit*")` names the architectures. There are no pretrained weights to download.
"""

from scalablevit.models import scalablevit as scalablevit  # registers the variants in timm
