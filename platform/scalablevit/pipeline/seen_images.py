"""Compare the images of an evaluation with those that the model was trained on: on images seen it is too good."""

from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.data import Data
from scalablevit.config.errors import UserError
from scalablevit.data.contents import ContentCache
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.findings import name_shared
from scalablevit.inspection.statistics import shared_images
from scalablevit.io import sha256_of
from scalablevit.run_files import CONFIG, CONFIG_NAME, LISTINGS, RUNS
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import store_of
from scalablevit.training.data_listing import open_stored

UNKNOWN = "not compared with what it was trained on"


@dataclass(frozen=True)
class SeenImages:
    """How many images of an evaluation a model was trained on."""

    count: int | None
    """None: not known."""
    words: str
    """The same as text, with the reason where it is not known."""


def find_seen(
    model: str, weights: Path, sha256: str, trained: Data, val: Source, most_fraction: float, root: Path
) -> SeenImages:
    """Count the validation images whose bytes are those of an image that the model was trained on.

    What a run was trained on, its listing says. The run is found below the root by the model's files, so that no
    address of a registry is followed.

    Args:
        model: name of the model, for texts.
        weights: file of its weights, with its config next to it.
        sha256: of that file, in hexadecimal.
        trained: the data section that it was trained by.
        val: the split that it is evaluated on.
        most_fraction: fraction of the images, 0 to 1, that may be among those.
        root: the platform's root.

    Raises:
        UserError: there are more.
    """
    try:
        train = _training_split(trained, root, _run_of(weights, sha256, root))
    except (UserError, OSError) as error:
        return SeenImages(None, f"{UNKNOWN}: {error.what if isinstance(error, UserError) else error}")
    shared = shared_images(train, val)
    if not shared.count:
        return SeenImages(0, f"none of {shared.of} images is among the {len(train)} that it was trained on")
    what = (
        f"{shared.count} of {shared.of} validation images are among those that {model} was trained on (equal bytes; "
        f"validation = training): {name_shared(shared)}"
    )
    if shared.count > most_fraction * shared.of:
        raise UserError(
            f"{what}; data.max_shared_fraction allows {most_fraction:g} of them",
            where="data.val",
            fix="name images that it has not seen, or raise data.max_shared_fraction if the metric on known images is "
            "meant",
        )
    return SeenImages(shared.count, what)


def _run_of(weights: Path, sha256: str, root: Path) -> RunStore:
    """Return the run below the root whose exported files these are.

    Raises:
        UserError: there is none.
    """
    config = weights.with_name(CONFIG_NAME).read_bytes()
    for file in sorted((root / RUNS).glob(f"*/{CONFIG}")):
        own = file.with_name(weights.name)
        if file.read_bytes() == config and own.is_file() and (own == weights or sha256_of(own) == sha256):
            return store_of(file.parents[1])
    raise UserError(f"its run is not below {root / RUNS}")


def _training_split(trained: Data, root: Path, run: RunStore) -> Source:
    """Return the training split as the run listed it, with the sums of its images.

    Raises:
        UserError: the run has no listing with sums, or the images are in files that have changed since.
    """
    if run.read(LISTINGS) is None:
        raise UserError("its run has no listing of that")
    train = open_stored(trained, "train", root, run.location)
    if train.contents is None:
        raise UserError("its run has no sums of that")
    if type(train).image_sums is not Source.image_sums:  # inside files that have to be read again
        listed, train = train, open_source(trained, "train", root)
        train.read_contents(ContentCache.in_root(root), "data.train")
        if train.digest() != listed.digest():
            raise UserError("that has changed since")
    return train
