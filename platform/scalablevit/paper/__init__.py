"""The paper's analysis: ablation, feature maps, receptive fields, costs."""
