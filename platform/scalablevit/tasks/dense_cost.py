"""The cost of segmentation models and detectors next to the paper's values."""

from scalablevit.models.counting import Cost, PaperRow, giga

# ScalableViT, tables of ADE20K results at 512 x 2048; S fits with wide_value=True.
PAPER_SEGMENTATION = {
    ("semantic_fpn", "scalablevit_small"): PaperRow(30.4, 174),
    ("semantic_fpn", "scalablevit_base"): PaperRow(79.0, 270),
    ("semantic_fpn", "scalablevit_large"): PaperRow(105.5, 402),
    ("upernet", "scalablevit_small"): PaperRow(56.5, 931),
    ("upernet", "scalablevit_base"): PaperRow(107.0, 1029),
    ("upernet", "scalablevit_large"): PaperRow(135.5, 1162),
}

# ScalableViT, tables of COCO results at 800 x 1280; S fits with wide_value=True.
PAPER_DETECTION = {
    ("retinanet", "scalablevit_small"): PaperRow(36.4, 238),
    ("retinanet", "scalablevit_base"): PaperRow(85.6, 330),
    ("retinanet", "scalablevit_large"): PaperRow(112.6, 457),
    ("mask_rcnn", "scalablevit_small"): PaperRow(46.3, 256),
    ("mask_rcnn", "scalablevit_base"): PaperRow(94.9, 349),
    ("mask_rcnn", "scalablevit_large"): PaperRow(121.4, 477),
}


def describe_dense_cost(head: str, name: str, cost: Cost, size: tuple[int, int]) -> str:
    """Return one line with the cost of a head on a backbone, and the paper's values where the paper has them.

    Args:
        head: the recipe's `task.head`.
        name: timm's name of the backbone.
        cost: of one image.
        size: height and width of that image, pixels.
    """
    line = (
        f"{name} with {head} at {size[0]}x{size[1]}: {cost.parameters / 1e6:.2f} M parameters, "
        f"{giga(cost.macs)} GFLOPs as the paper counts, {giga(cost.macs_with_attention)} G with attention"
    )
    if row := PAPER_SEGMENTATION.get((head, name)):
        return f"{line}; paper, ADE20K at 512x2048: {row.parameters_m} M, {row.gflops} GFLOPs"
    if row := PAPER_DETECTION.get((head, name)):
        return f"{line}; paper, COCO at 800x1280: {row.parameters_m} M, {row.gflops} GFLOPs"
    return line
