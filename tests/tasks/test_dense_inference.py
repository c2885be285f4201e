from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from harness.batches import mask_batch
from mmengine.config import ConfigDict
from mmseg.models import SegTTAModel
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scalablevit.config.recipe import Stage
from scalablevit.config.task import Segmentation, Sliding
from scalablevit.models.backbone import build_pyramid
from scalablevit.tasks.registry import task_kind
from scalablevit.tasks.segmentation.augmentation import MaskAugmentation
from scalablevit.tasks.segmentation.dense_inference import View, averaged_labels, best_labels, iter_views
from scalablevit.tasks.segmentation.segmentor import Segmentor, head_configs

CLASSES = 5


@pytest.fixture(scope="module")
def network() -> Segmentor:
    """A small Semantic FPN whose predictions differ from place to place, in evaluation mode."""
    torch.manual_seed(0)
    pyramid = build_pyramid("test_resnet")
    task = Segmentation(kind="segmentation", head="semantic_fpn", neck_channels=16, head_channels=16)
    model = Segmentor(pyramid, head_configs(task, pyramid.channels, CLASSES)).eval()
    model.requires_grad_(False)
    layer = model.decode_head.conv_seg
    torch.nn.init.normal_(layer.weight)
    logits = model(_image(96, 80)[None])
    spread, mean = torch.std_mean(logits, dim=(0, 2, 3))
    layer.weight.div_(spread[:, None, None, None])
    layer.bias.copy_(-mean / spread)
    return model


def _image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def _view(model: Segmentor, image: Tensor, sliding: Sliding | None = None, max_pixels: int = 1) -> View:
    return next(iter_views(model, [image], sliding, max_pixels))[1]


@contextmanager
def _mmsegs_settings(model: Segmentor, **test_cfg: Any) -> Iterator[None]:
    model.test_cfg = ConfigDict(test_cfg)
    yield
    model.test_cfg = None


def _sample(image: Tensor, original: tuple[int, int], *, flipped: bool = False) -> SegDataSample:
    size = tuple(image.shape[-2:])
    flip = {"flip": flipped, "flip_direction": "horizontal" if flipped else None}
    return SegDataSample(
        metainfo={"ori_shape": original, "img_shape": size, "pad_shape": size, "img_path": "x", **flip}
    )


@pytest.mark.parametrize("original", [(96, 80), (64, 53), (130, 111)])
def test_whole_image_labels_equal_mmsegs(network: Segmentor, original: tuple[int, int]) -> None:
    image = _image(96, 80)
    with _mmsegs_settings(network, mode="whole"):
        theirs = network.predict(image[None], [_sample(image, original)])[0].pred_sem_seg.data[0]
    ours = best_labels(_view(network, image), original)
    assert ours.shape == original
    assert len(ours.unique()) > 2
    assert torch.equal(ours.long(), theirs)


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((96, 160), 64, 32), ((97, 131), 64, 43), ((50, 140), 64, 64), ((40, 50), 64, 20), ((64, 64), 64, 64)],
)
@pytest.mark.parametrize("max_pixels", [1, 3 * 64 * 64])
def test_sliding_logits_equal_mmsegs(
    network: Segmentor, size: tuple[int, int], window: int, stride: int, max_pixels: int
) -> None:
    image = _image(*size)
    with _mmsegs_settings(network, stride=(stride, stride), crop_size=(window, window)):
        theirs = network.slide_inference(image[None], [{"img_shape": size}])[0]
    view = _view(network, image, Sliding(window=window, stride=stride), max_pixels)
    assert view.size == size
    torch.testing.assert_close(view.logits, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seen", [(40, 60), (100, 130)])
def test_labels_do_not_depend_on_how_many_classes_are_made_at_once(seen: tuple[int, int]) -> None:
    view = View(torch.randn(CLASSES, 10, 15, generator=torch.Generator().manual_seed(1)), seen)
    size = (77, 91)
    whole = best_labels(view, size)
    assert torch.equal(whole.long(), view.at(size, slice(None)).argmax(dim=0))
    assert whole.dtype == torch.uint8
    pixels = max(size[0] * size[1], seen[0] * seen[1])
    for together in (1, 2, 3, 4):
        assert torch.equal(best_labels(view, size, together * pixels), whole)
        assert torch.equal(averaged_labels([view, view], size, together * pixels), whole)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator makes."""

    elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple) else (made,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("reduce", [best_labels, lambda view, size, limit: averaged_labels([view] * 3, size, limit)])
def test_no_tensor_exceeds_the_limit_whatever_the_number_of_classes(
    reduce: Callable[[View, tuple[int, int], int], Tensor],
) -> None:
    view = View(torch.randn(150, 8, 8), (32, 32))
    size, limit = (300, 400), 4 * 300 * 400
    with _Largest() as largest:
        labels = reduce(view, size, limit)
    assert labels.shape == size
    assert largest.elements == limit


def test_images_of_equal_size_share_a_pass_and_keep_their_numbers(network: Segmentor) -> None:
    images = [_image(64, 64, 1), _image(32, 64, 2), _image(64, 64, 3), _image(64, 64, 4)]
    passes: list[tuple[int, ...]] = []

    def counted(batch: Tensor) -> Tensor:
        passes.append(tuple(batch.shape))
        return network(batch)

    views = dict(iter_views(counted, images, None, 2 * 64 * 64))
    assert passes == [(2, 3, 64, 64), (1, 3, 64, 64), (1, 3, 32, 64)]
    assert sorted(views) == [0, 1, 2, 3]
    for number, image in enumerate(images):
        torch.testing.assert_close(views[number].logits, network(image[None])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_prediction_equals_mmsegs_merging(
    network: Segmentor, segmentation_stage: Callable[..., Stage], flip: bool
) -> None:
    scales = [0.5, 1.0, 1.75]
    stage = segmentation_stage(task={"test_time_augmentation": {"scales": scales, "flip": flip}})
    augmentation = task_kind("segmentation").build_augmentation(stage, tuple("abcde"))
    assert isinstance(augmentation, MaskAugmentation)
    assert (augmentation.data.short_side, augmentation.data.long_side) == (112, 224)
    original = (60, 90)
    image = _image(112, 168)  # of the size that `augmentation.data` gives
    sizes = [(32, 48), (64, 96), (112, 168)]
    mask = torch.zeros(original, dtype=torch.uint8)
    ours = augmentation.predict(network, mask_batch(images=[image], masks=[mask]))[0]

    seen = [torch.nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0] for size in sizes]
    predictions = []
    with _mmsegs_settings(network, mode="whole"):
        for each in seen:
            for mirror in (False, True) if flip else (False,):
                inputs = (each.flip(-1) if mirror else each)[None]
                predictions += network.predict(inputs, [_sample(each, original, flipped=mirror)])
    theirs = SegTTAModel(module=network).merge_preds([predictions])[0].pred_sem_seg.data[0]
    assert len(theirs.unique()) > 2
    assert torch.equal(ours.long(), theirs)


def test_a_recipe_without_augmentation_has_none(segmentation_stage: Callable[..., Stage]) -> None:
    assert task_kind("segmentation").build_augmentation(segmentation_stage(), tuple("abcde")) is None
