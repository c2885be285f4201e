"""Backbones: ScalableViT and any timm model with a pyramid."""

from scalablevit.models import scalablevit as scalablevit  # registers the variants in timm
