"""The cost of segmentation models beside the paper's figures."""

from scalablevit.models.counting import Cost, PaperRow

# ScalableViT, tables of ADE20K results at 512 x 2048; S fits with wide_value=True.
PAPER_SEGMENTATION = {
    ("semantic_fpn", "scalablevit_small"): PaperRow(30.4, 174),
    ("semantic_fpn", "scalablevit_base"): PaperRow(79.0, 270),
    ("semantic_fpn", "scalablevit_large"): PaperRow(105.5, 402),
    ("upernet", "scalablevit_small"): PaperRow(56.5, 931),
    ("upernet", "scalablevit_base"): PaperRow(107.0, 1029),
    ("upernet", "scalablevit_large"): PaperRow(135.5, 1162),
}


def dense_cost_beside_paper(head: str, name: str, cost: Cost) -> str:
    """One line with the cost of a head on a backbone, and the paper's figures where the paper has them."""
    line = (
        f"{name} with {head}: {cost.parameters / 1e6:.2f} M parameters, {cost.macs / 1e9:.1f} GFLOPs as the paper "
        "counts (multiply-accumulates of convolutions and linear layers), "
        f"{cost.macs_with_attention / 1e9:.1f} G with attention"
    )
    row = PAPER_SEGMENTATION.get((head, name))
    return line if row is None else f"{line}; paper, ADE20K at 512x2048: {row.parameters_m} M, {row.gflops} GFLOPs"
