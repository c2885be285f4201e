"""The paper's analyses: ablation, feature maps, receptive fields, costs."""
