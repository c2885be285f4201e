"""Normalizing, erasing and mixing, beside timm where it does the same."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from scalablevit.config.data import IMAGENET_MEAN, IMAGENET_STD
from scalablevit.data.mixing import mix, normalize, random_erasing

SETTINGS = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5, "smoothing": 0.1}


def numbered(samples: int, side: int = 12) -> Tensor:
    """Images filled with their own number."""
    return torch.arange(samples, dtype=torch.float32)[:, None, None, None].expand(samples, 3, side, side).clone()


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalizing(channels_last: bool) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8))
    made = normalize(images, IMAGENET_MEAN, IMAGENET_STD, channels_last=channels_last)
    wanted = (images.numpy() / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert made.dtype == torch.float32
    assert np.abs(made.permute(0, 2, 3, 1).numpy() - wanted).max() < 1e-5
    assert made.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert normalize(images[:0], IMAGENET_MEAN, IMAGENET_STD).shape == (0, 3, 5, 7)


def mixed(images: Tensor, labels: Tensor, classes: int, seed: Sequence[int], **changed: float) -> tuple[Tensor, Tensor]:
    return mix(images.clone(), labels, classes, **(SETTINGS | changed), rng=np.random.default_rng(seed))


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_mixup_weights_are_those_of_the_targets(samples: int) -> None:
    images, labels = numbered(samples), torch.arange(samples) % 4
    for seed in range(20):
        made, targets = mixed(images, labels, 4, [seed], cutmix=0.0)
        own = 1.0
        if samples > 1:
            own = 1 - made[0, 0, 0, 0].item() / (samples - 1)  # image 0 holds zeros, its partner samples - 1
        assert torch.allclose(made, images * own + images.flip(0) * (1 - own), atol=1e-5)
        assert torch.allclose(targets, mixup_target(labels, 4, own, 0.1), atol=1e-5)
        assert torch.allclose(targets.sum(1), torch.ones(samples), atol=1e-6)


@pytest.mark.parametrize("samples", [2, 5, 8])
def test_cutmix_weights_are_the_area_left(samples: int) -> None:
    images, labels = numbered(samples), torch.arange(samples) % 4
    shares = []
    for seed in range(60):
        made, targets = mixed(images, labels, 4, [seed], mixup=0.0)
        pasted = made[0, 0] == samples - 1
        rows, columns = pasted.any(1), pasted.any(0)
        assert (pasted == rows[:, None] & columns[None, :]).all()  # one rectangle
        own = 1 - pasted.float().mean().item()
        assert torch.allclose(targets, mixup_target(labels, 4, own, 0.1), atol=1e-5)
        assert (made == torch.where(pasted, images.flip(0), images)).all()
        shares.append(own)
    assert len(set(shares)) > 20


def test_weights_and_kinds_are_distributed_as_timms() -> None:
    images, labels = numbered(2, 16), torch.tensor([0, 1])
    timm = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.7, switch_prob=0.5, label_smoothing=0.0, num_classes=2)
    np.random.seed(0)

    def observe(made: Tensor, targets: Tensor) -> tuple[float, bool, bool]:
        own = targets[0, 0].item()
        flat = (made[0] == made[0, 0, 0, 0]).all().item()
        return own, own == 1.0, not flat

    draws = np.random.default_rng(0)
    settings = SETTINGS | {"probability": 0.7, "smoothing": 0.0}
    mine = np.array([observe(*mix(images.clone(), labels, 2, **settings, rng=draws)) for _ in range(4000)], float)
    theirs = np.array([observe(*timm(images.clone(), labels)) for _ in range(4000)], float)
    quantiles = np.linspace(0.02, 0.98, 25)
    assert np.abs(np.quantile(mine[:, 0], quantiles) - np.quantile(theirs[:, 0], quantiles)).max() < 0.06
    assert np.abs(mine.mean(0) - theirs.mean(0)).max() < 0.04


def test_without_mixing_targets_are_smoothed_labels() -> None:
    images, labels = numbered(3), torch.tensor([2, 0, 1])
    for off in ({"mixup": 0.0, "cutmix": 0.0}, {"probability": 0.0}):
        made, targets = mixed(images, labels, 4, [0], **off)
        assert torch.equal(made, images)
        assert torch.allclose(
            targets, torch.full((3, 4), 0.025).index_put_((torch.arange(3), labels), torch.tensor(0.925))
        )
    assert torch.equal(mixed(images, labels, 3, [0], probability=0.0, smoothing=0.0)[1], torch.eye(3)[labels])


def test_switch_probability_chooses_the_kind() -> None:
    images, labels = numbered(2), torch.tensor([0, 1])

    def cut(seed: int, switch: float) -> bool:
        made, _ = mixed(images, labels, 2, [seed], switch_probability=switch)
        return set(made.unique().tolist()) <= {0.0, 1.0}

    assert all(cut(seed, 1.0) for seed in range(20))
    assert not any(cut(seed, 0.0) for seed in range(20))


def test_draws_decide_everything() -> None:
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    state = torch.get_rng_state()
    np.random.seed(0)

    def both(seed: int) -> tuple[Tensor, Tensor]:
        draws = np.random.default_rng([seed])
        erased = random_erasing(images.clone(), 0.5, draws)
        return mix(erased, labels, 4, **SETTINGS, rng=draws)

    first = both(1)
    np.random.seed(5)
    again = both(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], both(2)[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_erased_rectangles() -> None:
    side, count = 60, 600
    images = torch.full((count, 3, side, side), 100.0)
    made = random_erasing(images, 0.25, np.random.default_rng(0))
    assert made is images
    changed = made != 100.0
    assert (changed.all(1) == changed.any(1)).all()
    touched = [mask.any(0) for mask in changed if mask.any()]
    assert abs(len(touched) / count - 0.25) < 0.05
    areas, aspects = [], []
    for mask in touched:
        rows, columns = mask.any(1), mask.any(0)
        assert (mask == rows[:, None] & columns[None, :]).all()
        areas.append(mask.float().mean().item())
        aspects.append((rows.sum() / columns.sum()).item())
    assert 0.015 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.36
    assert 0.25 < min(aspects) < 0.5
    assert 2.0 < max(aspects) < 3.9
    noise = made[changed]
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02


def test_erasing_probability_ends() -> None:
    images = torch.zeros(6, 3, 20, 20)
    assert not random_erasing(images.clone(), 0.0, np.random.default_rng(0)).any()
    assert all(image.any() for image in random_erasing(images.clone(), 1.0, np.random.default_rng(0)))
