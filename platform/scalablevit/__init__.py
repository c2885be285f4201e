"""ScalableViT: train, search, track and register vision backbones."""

__version__ = "0.1.0"
