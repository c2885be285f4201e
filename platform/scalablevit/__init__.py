"""ScalableViT: train, search, track and register vision backbones."""
